"""`doctor`: is this installation, and this configuration, ready to run?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from persyn_hf.cli.app import SetOption, app, quiet_libraries, read_run
from persyn_hf.errors import ConfigError
from persyn_hf.text import markup


@app.command(epilog="Example: persyn-hf doctor run.yaml --set teachers.qwen.endpoint=http://localhost:8001")
def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="The YAML file of a run; left out, only the installation is checked.")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Check versions, devices and the Hub token; with a configuration, also its prompts, models, endpoints and disk.

    Weights are not loaded and no answer is asked for. Exit code 1 where something would stop a run.
    """
    from rich.console import Console
    from rich.table import Table

    from persyn_hf.doctor import check_configuration, check_endpoints, check_installation

    if config is None and settings:
        raise ConfigError("--set needs the YAML file whose keys it sets: persyn-hf doctor run.yaml --set …")
    quiet_libraries(quiet=True)
    findings = check_installation()
    if config is not None:
        run = read_run(config, settings)
        findings += check_configuration(run) + check_endpoints(run.teachers)
    table = Table(show_header=False, box=None)
    styles = {"ok": "green", "note": "yellow", "fail": "bold red"}
    for finding in findings:
        table.add_row(f"[{styles[finding.state]}]{finding.state}[/]", markup(finding.topic), markup(finding.message))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    failed = sum(finding.state == "fail" for finding in findings)
    if failed:
        typer.echo(f"{failed} of {len(findings)} checks failed.", err=True)
        raise typer.Exit(1)
