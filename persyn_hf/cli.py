"""The command `persyn-hf`: thin commands over the pipeline."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persyn_hf import __version__
from persyn_hf.config import STAGES, Prompts, RunConfig
from persyn_hf.errors import ConfigError, PersynError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="persyn-hf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find, for every prompt, the teacher your student learns most from, and build its training set that way.",
)


class Stage(StrEnum):
    """The stages, as `--until` takes them."""

    PROBE = "probe"
    SCORE = "score"
    ROUTER = "router"
    ROUTE = "route"
    GENERATE = "generate"
    PUBLISH = "publish"


assert tuple(Stage) == STAGES, "the stages of `--until` are those of the pipeline"

UntilOption = Annotated[
    Stage, typer.Option(help="Stop after this stage. A later run goes on from there and repeats nothing.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"persyn-hf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command("run")
def run_command(
    config: Annotated[Path, typer.Argument(help="The YAML file of the run; see examples/quickstart.yaml.")],
    until: UntilOption = Stage.PUBLISH,
    output_dir: Annotated[
        Path | None, typer.Option(help="The run folder, instead of the file's `output_dir`.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Run a configuration: probe, score, router, route, generate, publish.

    Finished stages are found in the run folder and skipped; answers are kept in its ledger and never asked for twice.
    Exit code 0: all done. 1: something failed. 2: the configuration is wrong. 3: done, but some prompts got no answer.
    """
    overrides = {"output_dir": str(output_dir)} if output_dir is not None else {}
    _run(RunConfig.from_yaml(config, overrides), until, quiet, source=str(config))


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option(help="The run folder.")] = Path("runs/demo"),
    models: Annotated[Path, typer.Option(help="Where the demo's weights and prompts are laid out.")] = Path(".models"),
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Lay out weights and prompts and stop.")
    ] = False,
    probe_size: Annotated[int | None, typer.Option(min=10, help="Fewer probe prompts, for a shorter demo.")] = None,
    limit: Annotated[int | None, typer.Option(min=20, help="Fewer prompts in all, for a shorter demo.")] = None,
    until: UntilOption = Stage.PUBLISH,
    quiet: QuietOption = False,
) -> None:
    """Run everything on real small models, with no endpoint, no account and no GPU.

    SmolLM2-135M-Instruct, asked in four ways, teaches itself 480 instructions whose constraints a program can check;
    the router is trained on MiniLM. Takes some minutes on two cores; a second call finds everything done.
    """
    from persyn_hf.demo.settings import demo_settings, prepare_demo

    prepare_demo(models)
    if prepare_only:
        return
    settings = demo_settings(models, output_dir)
    if probe_size is not None:
        settings["probe"]["size"] = probe_size
    if limit is not None:
        settings["prompts"]["limit"] = limit
    _run(RunConfig.from_dict(settings, source="demo"), until, quiet, source="demo", before=_print_strengths)


def _print_strengths(folder: Path, console: Console) -> None:
    from datasets import Dataset

    from persyn_hf.demo.strengths import constraint_shares, print_strengths

    probe = Dataset.from_parquet(str(folder / "stages/probe.parquet"), cache_dir=str(folder / ".cache"))
    print_strengths(constraint_shares(probe), console)


@app.command()
def route(
    router: Annotated[str, typer.Argument(help="A router: Hub repository or local folder.")],
    prompts: Annotated[str, typer.Argument(help="Prompts: .jsonl, .json, .csv or .parquet, or a Hub dataset.")],
    output: Annotated[Path, typer.Option(help="The Parquet file to write, with `route` and `route_scores` added.")],
    column: Annotated[str, typer.Option(help="The prompt column: strings or chat messages.")] = "prompt",
    split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the router.")] = None,
) -> None:
    """Say for every prompt which teacher to ask. Nothing is generated."""
    from collections import Counter

    from persyn_hf.prompts import load_prompts
    from persyn_hf.routing.router import PersynRouter

    loaded = load_prompts(Prompts(source=prompts, column=column, split=split), where="PROMPTS")
    routed = loaded.map(PersynRouter.from_pretrained(router, revision=revision), batched=True, desc="route")
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.with_name(f".{output.name}.staged")
    routed.to_parquet(staged)
    staged.replace(output)
    for name, count in Counter(routed["route"]).most_common():
        typer.echo(f"{count:>8}  {count / len(routed):>4.0%}  {name}")
    typer.echo(f"{output}: {len(routed)} prompts")


@app.command()
def push(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run that has finished `generate`.")],
    dataset_repo_id: Annotated[str, typer.Option(help="The dataset repository, as `me/my-student-data`.")],
    router_repo_id: Annotated[str | None, typer.Option(help="The router's repository, as `me/my-router`.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="New repositories are public; private if left out.")
    ] = False,
    output_dir: Annotated[Path | None, typer.Option(help="The run folder, instead of the file's.")] = None,
) -> None:
    """Push a run's personalised dataset, and its router, to the Hub with their cards."""
    overrides = {"output_dir": str(output_dir)} if output_dir is not None else {}
    settings = RunConfig.from_yaml(config, overrides)
    wanted = {"dataset_repo_id": dataset_repo_id, "router_repo_id": router_repo_id, "private": not public}
    publish = settings.publish.model_dump(mode="json") | wanted
    _run(
        RunConfig.from_dict(settings.model_dump(mode="json") | {"publish": publish}, source="push"),
        Stage.PUBLISH,
        quiet=False,
        source=str(config),
    )


def _run(
    config: RunConfig,
    until: Stage,
    quiet: bool,
    source: str,
    before: Callable[[Path, Console], None] | None = None,
) -> None:
    from rich.console import Console

    from persyn_hf.pipeline import run
    from persyn_hf.report import print_report

    _quiet_libraries(quiet)
    result = run(config, until=until.value, progress=not quiet, source=source)
    console = Console(width=None if sys.stdout.isatty() else 100)
    if before is not None:
        before(result.folder, console)
    print_report(result.report, console)
    for stage in result.stages:
        state = "found finished" if stage.reused else f"{stage.seconds:.0f} s"
        console.print(f"{stage.name:<10}{state}", highlight=False)
    console.print(f"Everything is in {result.folder}", highlight=False, soft_wrap=True)
    if result.missing:
        typer.echo(
            f"{result.missing} prompts got no answer; the `error` column of {result.folder}/stages/generate.parquet "
            "says why. Run again to ask for them.",
            err=True,
        )
        raise typer.Exit(3)


def _quiet_libraries(quiet: bool) -> None:
    """The command shows its own progress; transformers' loading bars and reports say nothing that a user acts on."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if quiet:
        disable_progress_bars()


def main() -> None:
    """The entry point: errors are one clear line each on standard error."""
    try:
        app()
    except ConfigError as error:
        typer.echo(f"persyn-hf: {error}", err=True)
        sys.exit(2)
    except PersynError as error:
        typer.echo(f"persyn-hf: {type(error).__name__}: {error}", err=True)
        sys.exit(1)
