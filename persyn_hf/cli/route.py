"""`route`: what a router says of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persyn_hf.cli.app import app
from persyn_hf.config import Prompts


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
