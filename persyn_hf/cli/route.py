"""`route` and `evaluate`: applies a router to prompts, and evaluates it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from persyn_hf.cli.app import app
from persyn_hf.config import Prompts
from persyn_hf.tables import replaced
from persyn_hf.text import tame


@app.command(epilog="Example: persyn-hf route org/router prompts.jsonl --output routed.parquet")
def route(
    router: Annotated[str, typer.Argument(help="A router: Hub repository or local folder.")],
    prompts: Annotated[str, typer.Argument(help="Prompts: a file, a folder, a pattern with `*`, or a Hub dataset.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write: all columns, `route` and `route_scores`.")],
    column: Annotated[str | None, typer.Option(help="Column of the prompts. Default: detected.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub dataset.")] = "train",
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the router.")] = None,
) -> None:
    """Choose a teacher for every prompt with a router. No answers are generated."""
    from collections import Counter

    from persyn_hf.prompts.reading import load_prompts
    from persyn_hf.routing.router import PersynRouter

    loaded = load_prompts(Prompts(source=prompts, column=column, split=split), where="PROMPTS")
    routed = loaded.map(PersynRouter.from_pretrained(router, revision=revision), batched=True, desc="route")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(output) as staged:
        routed.to_parquet(staged)
    for name, count in Counter(routed["route"]).most_common():
        typer.echo(f"{count:>8}  {count / len(routed):>4.0%}  {tame(name)}")
    typer.echo(f"{output}: {len(routed)} prompts")


@app.command(epilog="Example: persyn-hf evaluate org/router scored.parquet --json result.json")
def evaluate(
    router: Annotated[str, typer.Argument(help="A router: Hub repository or local folder.")],
    scored: Annotated[Path, typer.Argument(help="Scored answers (Parquet) to prompts that it was not trained on.")],
    probe: Annotated[
        Path | None, typer.Option(help="Scored answers (Parquet) that it was trained on; adds kNN to the table.")
    ] = None,
    student_family: Annotated[
        str | None, typer.Option(help="Model family of the student; adds Family-Strong to the table.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the router.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap and of the random policies.")] = 0,
    json_output: Annotated[Path | None, typer.Option("--json", help="JSON file for all metrics.")] = None,
) -> None:
    """Evaluate a router and the baselines on scored answers of every teacher: gap closed, regret, calibration …"""
    import json
    import sys

    from rich.console import Console

    from persyn_hf.cli.app import quiet_libraries
    from persyn_hf.routing.evaluate import evaluate_router
    from persyn_hf.routing.router import PersynRouter

    quiet_libraries(quiet=True)
    loaded = PersynRouter.from_pretrained(router, revision=revision)
    result = evaluate_router(
        loaded,
        _scored_table(scored),
        None if probe is None else _scored_table(probe),
        student_family=student_family,
        seed=seed,
        show=False,
    )
    Console(width=None if sys.stdout.isatty() else 120).print(result, highlight=False)
    if json_output is not None:
        json_output.write_text(json.dumps(result.as_dict(), indent=2) + "\n")


def _scored_table(path: Path) -> Mapping[str, list[Any]]:
    """Reads a Parquet file as columns, without a copy in the datasets cache."""
    import pyarrow.parquet

    from persyn_hf.errors import ConfigError

    try:
        return cast("Mapping[str, list[Any]]", pyarrow.parquet.read_table(path).to_pydict())
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"Cannot read scored answers from {path}: {error}") from error
