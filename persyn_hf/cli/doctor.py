"""`doctor`: is this installation, and this configuration, ready to run?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persyn_hf.cli.app import SetOption, app, quiet_libraries, read_run
from persyn_hf.errors import ConfigError, PersynError
from persyn_hf.text import markup, tame

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.config import RunConfig
    from persyn_hf.doctor import Finding


@app.command(epilog="Example: persyn-hf doctor run.yaml --set teachers.qwen.endpoint=http://localhost:8001 --try")
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="The YAML file of a run; left out, only the installation is checked.")
    ] = None,
    settings: SetOption = None,
    try_one: Annotated[
        bool,
        typer.Option("--try", help="Ask every teacher for one real answer, and score it; the run uses these answers."),
    ] = False,
) -> None:
    """Check versions, devices and the Hub token; with a configuration, all that a run checks before it begins.

    That is: its settings, prompts, references, models, endpoints and disk. The first prompt is shown as every teacher
    gets it. Weights are not loaded, and without --try no answer is asked for. Exit code 1 where something would stop
    a run.
    """
    from persyn_hf.doctor import check_configuration, check_endpoints, check_installation

    if config is None and (settings or try_one):
        flag = "--set" if settings else "--try"
        raise ConfigError(f"{flag} needs the YAML file of a run: persyn-hf doctor run.yaml {flag} …")
    quiet_libraries(quiet=True)
    findings = check_installation()
    if config is not None:
        run = read_run(config, settings)
        findings += check_configuration(run, source=str(config)) + check_endpoints(run.teachers)
        findings += _services(run)
    _print(findings)
    if config is not None:
        _show_first(run)
    failed = sum(finding.state == "fail" for finding in findings)
    if failed:
        typer.echo(f"{failed} of {len(findings)} checks failed.", err=True)
        raise typer.Exit(1)
    if try_one:
        _try(run)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for finding in findings:
        table.add_row(f"[{styles[finding.state]}]{finding.state}[/]", markup(finding.topic), _cell(finding.message))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cell(message: str) -> str:
    """A message of several lines keeps them."""
    return "\n".join(markup(line) if line == line.lstrip() else f"  {markup(line)}" for line in message.splitlines())


def _services(run: RunConfig) -> list[Finding]:
    from persyn_hf.doctor.servers import check_services

    try:
        prompt = _probe(run)[0]["prompt"]
    except PersynError:  # told by the checks of the configuration
        return []
    return list(check_services(run, prompt))


def _probe(run: RunConfig) -> Dataset:
    """The prompts in the order in which the run asks them."""
    from persyn_hf.doctor.cleaning import load_clean_prompts
    from persyn_hf.prompts.reading import random_probe

    prompts = load_clean_prompts(run).prompts
    if run.router.pretrained is not None or run.probe.method != "random":
        return prompts
    return random_probe(prompts, min(run.probe.size, len(prompts)), run.seed)


def _show_first(run: RunConfig) -> None:
    from persyn_hf.doctor.first_prompt import first_requests

    try:
        requests = list(first_requests(run, _probe(run)))
    except PersynError:  # told by the checks of the configuration
        return
    typer.echo("The first prompt, as every teacher gets it:")
    for request in requests:
        for line in request.lines():
            typer.echo(line)


def _try(run: RunConfig) -> None:
    """Asks for one answer of every teacher, and says what it cost."""
    from persyn_hf import columns
    from persyn_hf.doctor.first_prompt import first_requests
    from persyn_hf.generation.generate import generate_parallel
    from persyn_hf.run.folder import RunFolder
    from persyn_hf.run.trial import try_teachers

    probe = _probe(run)
    most = sum(request.most for request in first_requests(run, probe))
    priced = f"at most {most:.2g} USD" if most else "no price is configured"
    typer.echo(f"Asking {len(run.teachers)} teachers for one answer each ({priced}) …")
    ledger = RunFolder(run.output_dir).ledger
    scoring = run.router.pretrained is None
    failed = try_teachers(run, probe, ledger, scoring, run.teachers).failures
    if failed:
        _print(failed)
        raise typer.Exit(1)
    for row in generate_parallel(probe.select([0]), run.teachers, ledger, run.seed, progress=False):
        typer.echo(f"  {tame(row[columns.TEACHER])}: {tame(row[columns.COMPLETION], 400)}")
    typer.echo("Every teacher answers" + (", and its answer was scored." if scoring else "."))
