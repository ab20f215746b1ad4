"""`allocate`: assigns teachers to a routed table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field

from persyn_hf.cli.app import SetOption, app, merged_overrides, moved_to_set
from persyn_hf.config import Allocation, Policy, Settings
from persyn_hf.config.overrides import read_overridden
from persyn_hf.errors import ConfigError
from persyn_hf.prompts.sources import read_table
from persyn_hf.tables import replaced
from persyn_hf.text import tame_lines

if TYPE_CHECKING:
    pass

#: Keys that only a run reads. This command takes `cost` and `throughput` instead.
_OF_A_RUN = ("expected_tokens", "prompt_tokens", "tokens_per_second")


class _TableAllocation(Allocation):
    """The section `allocation` for any table: scores may be rewards, and the probe may hold every prompt."""

    policy: Policy = "persyn"  # type: ignore[assignment]
    scale: Literal["bradley-terry", "win-rate", "reward"] = "bradley-terry"  # type: ignore[assignment]


class _TableSettings(Settings):
    """Keys of `--set` for `allocate`."""

    allocation: _TableAllocation = _TableAllocation()
    cost: dict[str, float] | None = None
    throughput: dict[str, float] | None = None
    families: dict[str, str] | None = None
    seed: int = Field(0, ge=0)


@app.command(
    cls=moved_to_set(
        max_share="allocation.max_share.NAME=0.5",
        min_share="allocation.min_share.NAME=0.05",
        budget="allocation.budget=…",
        cost="cost.NAME=0.002",
        makespan="allocation.makespan=…",
        throughput="throughput.NAME=3.5",
        top_k="allocation.top_k=…",
        temperature="allocation.temperature=…",
        scale="allocation.scale=…",
        student_family="allocation.student_family=…",
        family="families.NAME=…",
        seed="seed=…",
    ),
    epilog="Example: persyn-hf allocate routed.parquet --output out.parquet --router org/router "
    "--set allocation.max_share=0.5",
)
def allocate(
    routed: Annotated[Path, typer.Argument(help="Parquet file with `route_scores`, as written by `route`.")],
    output: Annotated[Path, typer.Option(help="Parquet file to write, with `route` (and `routes`).")],
    router: Annotated[str | None, typer.Option(help="Router that computed the scores; provides the teachers.")] = None,
    teachers: Annotated[
        str | None, typer.Option(help="Teachers in the order of the scores, as a,b,c; instead of --router.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the router.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="persyn, or a baseline: strong, mix, family-strong, car, random or oracle.")
    ] = None,
    probe: Annotated[Path | None, typer.Option(help="Scored answers (Parquet) to fit a baseline on.")] = None,
    settings: SetOption = None,
) -> None:
    """Assign a teacher to every prompt, maximising the total score within share, budget and time limits.

    --set takes the keys of the section allocation; cost.NAME (USD per answer) for allocation.budget;
    throughput.NAME (answers per second) for allocation.makespan; families.NAME; and seed.
    Exit code 1 if no allocation meets all limits; the message names the limits and the shortfall.
    """
    from persyn_hf.routing.allocation import allocate as allocation

    made = _settings(merged_overrides(settings, allocation__policy=policy))
    table, options = read_table(str(routed), "ROUTED"), made.allocation
    result = allocation.allocate(
        table,
        _teacher_names(router, revision, teachers),
        policy=options.policy,
        max_share=options.max_share,
        min_share=options.min_share,
        budget=options.budget,
        cost=made.cost,
        makespan=options.makespan,
        throughput=made.throughput,
        top_k=options.top_k,
        temperature=options.temperature,
        scale=options.scale,
        probe=read_table(str(probe), "--probe") if probe is not None else None,
        families=made.families,
        student_family=options.student_family,
        strong_share=options.strong_share,
        beta=options.beta,
        seed=made.seed,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced(output) as staged:
        result.apply(table).to_parquet(staged)
    typer.echo(tame_lines(result))
    typer.echo(f"{output}: {len(table)} prompts")


def _settings(overrides: dict[str, object]) -> _TableSettings:
    made = read_overridden(_TableSettings, {}, overrides, "allocate")
    unread = [key for key in _OF_A_RUN if key in made.allocation.model_fields_set]
    if unread:
        raise ConfigError(
            f"--set: `allocation.{unread[0]}` applies only to a run, which has its teachers' prices; give `cost.NAME` "
            "(USD per answer) or `throughput.NAME` (answers per second) instead."
        )
    return made


def _teacher_names(router: str | None, revision: str | None, teachers: str | None) -> list[str]:
    if (router is None) == (teachers is None):
        raise ConfigError("Give exactly one of --router and --teachers, for the teachers in the order of the scores.")
    if teachers is not None:
        return [name.strip() for name in teachers.split(",")]
    from persyn_hf.routing.router import PersynRouter

    return list(PersynRouter.from_pretrained(str(router), revision=revision).teachers)
