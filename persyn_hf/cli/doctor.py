"""`doctor`: checks the installation and a configuration."""

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
        Path | None, typer.Argument(help="YAML file of the run. Default: check only the installation.")
    ] = None,
    settings: SetOption = None,
    try_one: Annotated[
        bool,
        typer.Option("--try", help="Generate and score one real answer per teacher; the run reuses these answers."),
    ] = False,
) -> None:
    """Check versions, devices and the Hub token; with a configuration, everything that a run checks before it starts.

    These checks cover settings, prompts, references, models, endpoints and disk space. The command also shows every
    teacher's first request. It loads no weights and, without --try, generates no answers. Exit code 1 if a check
    fails.
    """
    from persyn_hf.doctor import check_configuration, check_endpoints, check_installation

    if config is None and (settings or try_one):
        flag = "--set" if settings else "--try"
        raise ConfigError(f"{flag} needs the run's YAML file: persyn-hf doctor run.yaml {flag} …")
    quiet_libraries(quiet=True)
    findings = check_installation()
    if config is not None:
        run = read_run(config, settings)
        findings += check_configuration(run, source=str(config)) + check_endpoints(run.teachers)
        probe = _probe(run)
        findings += _services(run, probe)
    _print(findings)
    if config is not None and probe is not None:
        _show_first(run, probe)
    failed = sum(finding.state == "fail" for finding in findings)
    if failed:
        typer.echo(f"{failed} of {len(findings)} checks failed.", err=True)
        raise typer.Exit(1)
    if try_one:
        assert probe is not None, "a check fails without prompts"
        _try(run, probe)


def _print(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for finding in findings:
        table.add_row(f"[{styles[finding.state]}]{finding.state}[/]", markup(finding.topic), _cell(finding.message))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _cell(message: str) -> str:
    """Formats a message, with the indentation of its lines."""
    return "\n".join(markup(line) if line == line.lstrip() else f"  {markup(line)}" for line in message.splitlines())


def _services(run: RunConfig, probe: Dataset | None) -> list[Finding]:
    from persyn_hf.doctor.servers import check_services

    return list(check_services(run, probe[0]["prompt"])) if probe is not None else []


def _probe(run: RunConfig) -> Dataset | None:
    """Returns the prompts in the order of the run; `None` if they cannot be read."""
    from persyn_hf.doctor.cleaning import load_clean_prompts
    from persyn_hf.prompts.reading import random_probe

    try:
        prompts = load_clean_prompts(run).prompts
    except PersynError:  # the checks of the configuration report it
        return None
    if run.router.pretrained is not None or run.probe.method != "random":
        return prompts
    return random_probe(prompts, min(run.probe.size, len(prompts)), run.seed)


def _show_first(run: RunConfig, probe: Dataset) -> None:
    from persyn_hf.doctor.first_prompt import first_requests

    try:
        requests = list(first_requests(run, probe))
    except PersynError:  # the checks of the configuration report it
        return
    typer.echo("First request to every teacher:")
    for request in requests:
        for line in request.lines():
            typer.echo(line)


def _try(run: RunConfig, probe: Dataset) -> None:
    """Generates and scores one answer per teacher, after printing the maximum cost."""
    from persyn_hf import columns
    from persyn_hf.doctor.first_prompt import first_requests
    from persyn_hf.generation.generate import generate_parallel
    from persyn_hf.run.folder import RunFolder
    from persyn_hf.run.trial import try_teachers

    most = sum(request.most for request in first_requests(run, probe))
    priced = f"at most {most:.2g} USD" if most else "no price is configured"
    typer.echo(f"Requesting one answer from each of {len(run.teachers)} teachers ({priced}) …")
    ledger = RunFolder(run.output_dir).ledger
    scoring = run.router.pretrained is None
    failed = try_teachers(run, probe, ledger, scoring, run.teachers).failures
    if failed:
        _print(failed)
        raise typer.Exit(1)
    for row in generate_parallel(probe.select([0]), run.teachers, ledger, run.seed, progress=False):
        typer.echo(f"  {tame(row[columns.TEACHER])}: {tame(row[columns.COMPLETION], 400)}")
    typer.echo("Every teacher answered" + (", and every answer was scored." if scoring else "."))
