"""The Typer application, and options and functions that its commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from persyn_hf import columns
from persyn_hf.config import STAGES, RunConfig
from persyn_hf.config.overrides import parse_overrides
from persyn_hf.errors import ConfigError
from persyn_hf.packages import is_installed
from persyn_hf.run.report import name_missing
from persyn_hf.text import markup
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="persyn-hf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: persyn-hf doctor run.yaml && persyn-hf run run.yaml. Each command's --help has an example.",
    help="For every prompt, find the teacher your student learns most from, and build a personalised training set.",
)


class Stage(StrEnum):
    """Values of `--until`."""

    PROBE = "probe"
    SCORE = "score"
    ROUTER = "router"
    ROUTE = "route"
    GENERATE = "generate"
    PUBLISH = "publish"


assert tuple(Stage) == STAGES, "the stages of `--until` are those of the pipeline"

UntilOption = Annotated[
    Stage, typer.Option(help="Stop after this stage. A later run continues from there without repeating work.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress bars.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the configuration, such as reward.alpha=0.2 or teachers.qwen.timeout=60. The value is "
        "YAML. May be repeated. `persyn-hf schema --markdown` lists every key.",
    ),
]


class Command(TyperCommand):
    """A command that rejects its former flags and names the `--set` that replaces each."""

    moved: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises an error for a former flag before other arguments are parsed."""
        for argument in args[: args.index("--")] if "--" in args else args:
            flag = argument.partition("=")[0]
            if flag in self.moved:
                raise ConfigError(f"The option {flag} was replaced; use --set '{self.moved[flag]}'.")
        return super().parse_args(ctx, args)


def moved_to_set(**keys: str) -> type[Command]:
    """Builds the class of a command with former flags.

    Args:
        keys (`str`): Replacement of each flag, in the form that follows `--set`, by the flag's name with underscores.
    """
    flags = {f"--{name.replace('_', '-')}": key for name, key in keys.items()}
    return type("MovedFlags", (Command,), {"moved": flags})


def read_run(path: Path, settings: Sequence[str] | None, **flags: object) -> RunConfig:
    """Reads a configuration file and applies the command line's options.

    Args:
        path (`Path`): Path of the YAML file.
        settings (`Sequence[str]`, *optional*): Values of `--set`.
        flags: Values of other flags by the key that they set, with `__` for the dot; `None` sets nothing. They
            override `--set`.
    """
    return RunConfig.from_yaml(path, merged_overrides(settings, **flags))


def merged_overrides(settings: Sequence[str] | None, **flags: object) -> dict[str, object]:
    """Merges the command line's options into values by dotted key; see [`read_run`]."""
    given = {key.replace("__", "."): value for key, value in flags.items() if value is not None}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return parse_overrides(settings or ()) | given


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"persyn-hf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that precede a command."""


def _confirmed(question: str) -> bool:
    return typer.confirm(question, err=True)


def run_and_report(
    config: RunConfig,
    until: Stage,
    quiet: bool,
    source: str,
    before: Callable[[Path, Console], None] | None = None,
    yes: bool = False,
) -> None:
    """Runs a configuration and prints its report. The exit code is 3 if prompts have no answer or no score."""
    from rich.console import Console

    from persyn_hf.run.pipeline import run
    from persyn_hf.run.report import print_report

    quiet_libraries(quiet)
    confirm = _confirmed if sys.stdin.isatty() and sys.stderr.isatty() else None
    result = run(config, until=until.value, progress=not quiet, source=source, yes=yes, confirm=confirm)
    console = Console(width=None if sys.stdout.isatty() else 100)
    if before is not None:
        before(result.folder, console)
    print_report(result.report, console)
    for stage in result.stages:
        state = "already finished" if stage.reused else f"{stage.seconds:.0f} s"
        console.print(f"{stage.name:<10}{state}", highlight=False)
    console.print(f"Results: {markup(result.folder)}", highlight=False, soft_wrap=True)
    if result.missing:
        table = result.folder / "stages" / f"{result.answers}.parquet"
        retried = result.answers == "generate" and config.accept is not None
        what = "an answer that could be judged" if retried else "an answer"
        typer.echo(f"{result.missing} rows of {table} got no{what[2:]}. Run again to ask for them.", err=True)
        for line in name_missing(table, columns.ACCEPT_ERROR if retried else columns.ERROR, what):
            typer.echo(line, err=True)
    for name, count in result.unscored.items():
        table = result.folder / "stages" / f"{name}.parquet"
        typer.echo(f"{count} rows of {table} have no score. Run again to request them.", err=True)
        for line in name_missing(table, columns.QUALITY_ERROR, "a score"):
            typer.echo(line, err=True)
    if result.missing or result.unscored:
        raise typer.Exit(3)


def quiet_libraries(quiet: bool) -> None:
    """Silences transformers' loading bars and reports, and with `quiet` the progress bars of datasets."""
    from datasets import disable_progress_bars

    if is_installed("transformers"):
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if quiet:
        disable_progress_bars()
