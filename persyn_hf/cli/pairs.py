"""`pairs` and `export-routes`: what a finished run is good for beside its training set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persyn_hf.cli.app import app, quiet_libraries
from persyn_hf.config import RunConfig
from persyn_hf.errors import ConfigError
from persyn_hf.tables import replaced

if TYPE_CHECKING:
    from persyn_hf.run.folder import RunFolder

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


class Which(StrEnum):
    """The pairs that `--which` takes."""

    BEST_WORST = "best-worst"
    ADJACENT = "adjacent"
    ALL = "all"


class By(StrEnum):
    """The columns that `--by` takes."""

    REWARD = "reward"
    QUALITY = "quality"


@app.command("pairs", epilog="Example: persyn-hf pairs runs/qwen --min-margin 0.2 --push --repo-id me/my-data")
def pairs_command(
    run: RunArgument,
    which: Annotated[
        Which, typer.Option(help="The best and the worst answer, every two neighbours, or every two answers.")
    ] = Which.BEST_WORST,
    by: Annotated[By, typer.Option(help="The column that is compared.")] = By.REWARD,
    min_margin: Annotated[float, typer.Option(min=0.0, help="The smallest difference of a pair.")] = 0.0,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Pair answers that were cut by `max_tokens` too.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="The Parquet file. Default: RUN/pairs.parquet.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the pairs as a configuration of the dataset.")] = False,
    repo_id: Annotated[
        str | None, typer.Option(help="The dataset's repository. Default: the run's `publish.dataset_repo_id`.")
    ] = None,
) -> None:
    """Make preference pairs of the run's scored probe, as TRL's DPOTrainer reads them.

    They are pushed as the configuration `pairs`; beside a training set of another configuration than `default`, as
    `NAME-pairs`.
    """
    from persyn_hf.run.pairs import PAIRS_CONFIG, preference_pairs, push_pairs

    quiet_libraries(quiet=True)
    config, folder = _read(run, "score")
    options: dict[str, Any] = {"which": which.value, "by": by.value}
    made = preference_pairs(folder.read("score"), min_margin=min_margin, keep_truncated=keep_truncated, **options)
    target = output or run / "pairs.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as staged:
        made.to_parquet(staged)
    typer.echo(f"{target}: {len(made)} pairs, mean margin {sum(made['margin'][:]) / len(made):.3f}")
    if push:
        named = {} if repo_id is None else {"dataset_repo_id": repo_id}
        where = config.publish.model_dump(include=set(_PUSHED)) | named
        name = config.publish.config_name
        config_name = PAIRS_CONFIG if name == "default" else f"{name}-{PAIRS_CONFIG}"
        typer.echo(push_pairs(made, where, config_name=config_name))


_PUSHED = ("dataset_repo_id", "private", "revision", "create_pr", "commit_message", "allow_secrets")


@app.command("export-routes", epilog="Example: persyn-hf export-routes runs/qwen --server large=http://gpu1:8000")
def export_routes_command(
    run: RunArgument,
    output: Annotated[Path | None, typer.Option(help="The folder to write. Default: RUN/trl.")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="TEACHER=URL", help="A teacher's vLLM server, where the run asked it elsewhere."),
    ] = None,
) -> None:
    """Write the run's routes for TRL's AsyncDistillationTrainer: `teacher_id` and `teacher_server_urls`."""
    from persyn_hf.run.trl_routes import export_routes

    quiet_libraries(quiet=True)
    config, folder = _read(run, "route")
    if config.student is None:
        raise ConfigError(f"{run}: the run has no `student`, whose tokenizer the teachers must share.")
    pairs = [one.partition("=") for one in server or ()]
    known = {teacher.name for teacher in config.teachers}
    wrong = ["".join(pair) for pair in pairs if pair[0] not in known or not pair[2]]
    if wrong:
        raise ConfigError(f"--server takes TEACHER=URL with a teacher of the run, got {', '.join(wrong)}.")
    source = "allocate" if config.allocation.active else "route"
    made = export_routes(
        folder.read(source), config.teachers, config.student, servers={name: url for name, _, url in pairs}
    )
    target = made.save(output or run / "trl")
    typer.echo(f"{target}: {len(made.data)} prompts for {', '.join(made.teacher_server_urls)}")


def _read(run: Path, stage: str) -> tuple[RunConfig, RunFolder]:
    """The configuration and the folder of a run that has come to a stage."""
    from persyn_hf.run.folder import RunFolder

    if not (run / "config.yaml").is_file() or not (run / "stages" / f"{stage}.parquet").exists():
        raise ConfigError(f"{run} is no folder of a run that has done the stage `{stage}`.")
    return RunConfig.from_yaml(run / "config.yaml"), RunFolder(run)
