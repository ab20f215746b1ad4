"""`run` and `demo`: run the pipeline up to `--until`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persyn_hf.cli.app import (
    QuietOption,
    SetOption,
    Stage,
    UntilOption,
    app,
    merged_overrides,
    read_run,
    run_and_report,
)
from persyn_hf.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console


@app.command("run", epilog="Example: persyn-hf run run.yaml --until score --set reward.alpha=0.2")
def run_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run; see examples/quickstart.yaml.")],
    until: UntilOption = Stage.PUBLISH,
    output_dir: Annotated[Path | None, typer.Option(help="Run folder. Default: the file's `output_dir`.")] = None,
    settings: SetOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Pay again for answers with changed settings, without confirmation.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a configuration: probe, score, router, route, generate, publish.

    The run checks everything it can, then generates and scores one answer per teacher before it sends the other
    requests. It skips finished stages, and the folder's ledger keeps every answer, so none is requested twice.
    Exit code 0: success. 1: failure. 2: invalid configuration. 3: success, but some prompts have no answer or score.
    """
    run_and_report(read_run(config, settings, output_dir=output_dir), until, quiet, source=str(config), yes=yes)


@app.command(epilog="Example: persyn-hf demo --probe-size 40 --limit 120 --set reward.alpha=0")
def demo(
    output_dir: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    models: Annotated[Path, typer.Option(help="Folder for the demo's weights and prompts.")] = Path(".models"),
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Write weights and prompts, then stop.")
    ] = False,
    probe_size: Annotated[int | None, typer.Option(min=10, help="Number of probe prompts.")] = None,
    limit: Annotated[int | None, typer.Option(min=20, help="Number of prompts, for a shorter demo.")] = None,
    until: UntilOption = Stage.PUBLISH,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run the whole pipeline on small real models, without endpoints, accounts or a GPU.

    The four teachers are SmolLM2-135M-Instruct with different prompts and sampling, and the student is the same model.
    The 480 instructions have constraints that a program can check; the router uses MiniLM. The demo takes some minutes
    on two cores; a second call skips all finished stages.
    """
    from persyn_hf.demo.settings import demo_settings, prepare_demo

    overrides = merged_overrides(settings, probe__size=probe_size, prompts__limit=limit)
    prepare_demo(models)
    if prepare_only:
        return
    config = RunConfig.from_dict(demo_settings(models, output_dir), "demo", overrides)
    run_and_report(config, until, quiet, source="demo", before=_print_strengths)


def _print_strengths(folder: Path, console: Console) -> None:
    from persyn_hf.demo.strengths import constraint_shares, print_strengths
    from persyn_hf.run.folder import RunFolder

    print_strengths(constraint_shares(RunFolder(folder).read("probe")), console)
