"""`allocate`: routes for the whole set from a routed table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from persyn_hf.cli.app import app
from persyn_hf.errors import ConfigError
from persyn_hf.tables import replaced
from persyn_hf.text import tame_lines

if TYPE_CHECKING:
    from datasets import Dataset


@app.command()
def allocate(
    routed: Annotated[Path, typer.Argument(help="A Parquet file with `route_scores`, as `route` writes it.")],
    output: Annotated[Path, typer.Option(help="The Parquet file to write, with `route` set (and `routes`).")],
    router: Annotated[str | None, typer.Option(help="The router that made the scores; it names the teachers.")] = None,
    teachers: Annotated[str | None, typer.Option(help="Instead: the teachers in the scores' order, a,b,c.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the router.")] = None,
    policy: Annotated[
        str, typer.Option(help="persyn, or a baseline: strong, mix, family-strong, car, random, oracle.")
    ] = "persyn",
    max_share: Annotated[
        list[str] | None, typer.Option(help="Largest share of the prompts: 0.5 for every teacher, or name=0.5.")
    ] = None,
    min_share: Annotated[list[str] | None, typer.Option(help="Smallest share: 0.05, or name=0.05.")] = None,
    budget: Annotated[float | None, typer.Option(help="USD for all answers; needs --cost.", min=0)] = None,
    cost: Annotated[list[str] | None, typer.Option(help="USD for one answer, name=0.002, for every teacher.")] = None,
    makespan: Annotated[
        str | None, typer.Option(help="Seconds for the slowest teacher, or `shortest`; needs --throughput.")
    ] = None,
    throughput: Annotated[list[str] | None, typer.Option(help="Answers per second, name=3.5, for each.")] = None,
    top_k: Annotated[int, typer.Option(help="Different teachers for each prompt.", min=1)] = 1,
    temperature: Annotated[float, typer.Option(help="Diversity: noise on the scores.", min=0)] = 0.0,
    scale: Annotated[str, typer.Option(help="What is summed: bradley-terry, win-rate, or reward.")] = "bradley-terry",
    probe: Annotated[Path | None, typer.Option(help="Scored answers (Parquet) that a baseline chooses by.")] = None,
    student_family: Annotated[str | None, typer.Option(help="For family-strong.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="A teacher's family, name=Qwen2.5.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is random.", min=0)] = 0,
) -> None:
    """Choose teachers for the whole set: the largest sum of scores within shares, money and time.

    Exit code 1 where no allocation keeps all limits; the message says which, and by how much.
    """
    from persyn_hf.routing.allocation import allocate as allocation

    table = _read(routed)
    made = allocation.allocate(
        table,
        _teacher_names(router, revision, teachers),
        policy=policy,
        max_share=_shares(max_share, "--max-share"),
        min_share=_shares(min_share, "--min-share"),
        budget=budget,
        cost=_numbers(cost, "--cost"),
        makespan=_seconds(makespan),
        throughput=_numbers(throughput, "--throughput"),
        top_k=top_k,
        temperature=temperature,
        scale=cast(Any, scale),
        probe=_read(probe) if probe is not None else None,
        families=dict(_pairs(family, "--family")),
        student_family=student_family,
        seed=seed,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(output) as staged:
        made.apply(table).to_parquet(staged)
    typer.echo(tame_lines(made))
    typer.echo(f"{output}: {len(table)} prompts")


def _read(path: Path) -> Dataset:
    from datasets import Dataset

    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    return Dataset.from_parquet(str(path))


def _teacher_names(router: str | None, revision: str | None, teachers: str | None) -> list[str]:
    if (router is None) == (teachers is None):
        raise ConfigError("Give exactly one of --router and --teachers, to name the teachers in the scores' order.")
    if teachers is not None:
        return [name.strip() for name in teachers.split(",")]
    from persyn_hf.routing.router import PersynRouter

    return list(PersynRouter.from_pretrained(str(router), revision=revision).teachers)


def _pairs(given: Sequence[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for one in given or []:
        name, sign, value = one.rpartition("=")
        if not sign:
            raise ConfigError(f"{option} must be given as name=value, got {one}.")
        pairs.append((name, value))
    return pairs


def _numbers(given: Sequence[str] | None, option: str) -> dict[str, float] | None:
    return {name: _number(value, option) for name, value in _pairs(given, option)} or None


def _shares(given: Sequence[str] | None, option: str) -> float | dict[str, float] | None:
    if given and len(given) == 1 and "=" not in given[0]:
        return _number(given[0], option)
    return _numbers(given, option)


def _seconds(given: str | None) -> Any:
    return given if given in (None, "shortest") else _number(str(given), "--makespan")


def _number(value: str, option: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ConfigError(f"{option} must be a number, got {value}.") from None
