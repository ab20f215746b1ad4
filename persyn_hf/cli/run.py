"""`run` and `demo`: the whole way, or as far as `--until`."""

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
    config: Annotated[Path, typer.Argument(help="The YAML file of the run; see examples/quickstart.yaml.")],
    until: UntilOption = Stage.PUBLISH,
    output_dir: Annotated[
        Path | None, typer.Option(help="The run folder, instead of the file's `output_dir`.")
    ] = None,
    settings: SetOption = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Buy answers again where a setting has changed, without a question.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run a configuration: probe, score, router, route, generate, publish.

    Everything that can be checked beforehand is; then every teacher gives one answer, which is scored, before the rest
    is asked for. Finished stages are skipped; answers are kept in the folder's ledger and never asked for twice.
    Exit code 0: all done. 1: something failed. 2: the configuration is wrong. 3: done, but some prompts got no answer.
    """
    run_and_report(read_run(config, settings, output_dir=output_dir), until, quiet, source=str(config), yes=yes)


@app.command(epilog="Example: persyn-hf demo --probe-size 40 --limit 120 --set reward.alpha=0")
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    models: Annotated[Path, typer.Option(help="Where the demo's weights and prompts are laid out.")] = Path(".models"),
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Lay out weights and prompts and stop.")
    ] = False,
    probe_size: Annotated[int | None, typer.Option(min=10, help="Fewer probe prompts, for a shorter demo.")] = None,
    limit: Annotated[int | None, typer.Option(min=20, help="Fewer prompts in all, for a shorter demo.")] = None,
    until: UntilOption = Stage.PUBLISH,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run everything on real small models, with no endpoint, no account and no GPU.

    SmolLM2-135M-Instruct, asked in four ways, teaches itself 480 instructions whose constraints a program can check;
    the router is trained on MiniLM. Takes some minutes on two cores; a second call finds everything done.
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
