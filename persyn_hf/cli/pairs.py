"""`pairs` and `export-routes`: further training data from a finished run."""

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

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]


class Which(StrEnum):
    """Values of `--which`."""

    BEST_WORST = "best-worst"
    ADJACENT = "adjacent"
    ALL = "all"


class By(StrEnum):
    """Values of `--by`."""

    REWARD = "reward"
    QUALITY = "quality"


@app.command("pairs", epilog="Example: persyn-hf pairs runs/qwen --min-margin 0.2 --push --repo-id me/my-data")
def pairs_command(
    run: RunArgument,
    which: Annotated[
        Which, typer.Option(help="Pairs of a prompt: best and worst answer, neighbours in the ranking, or all.")
    ] = Which.BEST_WORST,
    by: Annotated[By, typer.Option(help="Column to rank answers by.")] = By.REWARD,
    min_margin: Annotated[float, typer.Option(min=0.0, help="Minimum difference within a pair.")] = 0.0,
    keep_truncated: Annotated[
        bool, typer.Option("--keep-truncated", help="Also pair answers that were cut at `max_tokens`.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Parquet file to write. Default: RUN/pairs.parquet.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Push the pairs as a configuration of the dataset.")] = False,
    repo_id: Annotated[
        str | None, typer.Option(help="Dataset repository. Default: the run's `publish.dataset_repo_id`.")
    ] = None,
) -> None:
    """Build preference pairs from the run's scored probe, in the format of TRL's DPOTrainer.

    The pairs are pushed as the configuration `pairs`, or as `NAME-pairs` if the training set's configuration NAME is
    not `default`.
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
    output: Annotated[Path | None, typer.Option(help="Folder to write. Default: RUN/trl.")] = None,
    server: Annotated[
        list[str] | None,
        typer.Option(metavar="TEACHER=URL", help="A teacher's vLLM server, if it differs from the run's endpoint."),
    ] = None,
) -> None:
    """Export the run's routes for TRL's AsyncDistillationTrainer: `teacher_id` and `teacher_server_urls`."""
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
    """Opens a run that has finished a stage: its configuration and its folder."""
    from persyn_hf.run.folder import RunFolder

    if not (run / "config.yaml").is_file() or not (run / "stages" / f"{stage}.parquet").exists():
        raise ConfigError(f"{run} must be the folder of a run that has finished the stage `{stage}`.")
    return RunConfig.from_yaml(run / "config.yaml"), RunFolder(run)
