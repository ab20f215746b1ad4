"""Printing of a plan, alone or next to the actual numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from persyn_hf.config import POLICY_LABELS
from persyn_hf.planning.actual import Actual
from persyn_hf.planning.plan import Line, RunPlan
from persyn_hf.text import headed_table, markup, tame

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_plan(plan: RunPlan, console: Console, actual: Actual | None = None) -> None:
    """Prints the tables of a plan. With `actual`, every number is followed by the actual one.

    Args:
        plan (`RunPlan`): Prediction of the run.
        console (`Console`): Console to print to.
        actual (`Actual`, *optional*): Totals of the finished run.
    """
    console.print(_teachers(plan, actual))
    if actual is None:
        console.print(_stage_times(plan.seconds))
    if plan.scorers:
        console.print(_scorers(plan))
    console.print(_policies(plan))
    if actual is not None and actual.errors:
        console.print(f"{actual.errors} answers failed and are not counted.", highlight=False)
    for note in plan.notes:
        console.print(f"• {tame(note)}", highlight=False, markup=False)


def _teachers(plan: RunPlan, actual: Actual | None) -> Table:
    facts = {(line.stage, line.teacher): line for line in actual.lines} if actual is not None else {}
    title = f"{plan.prompts} prompts, {plan.probe} of them in the probe"
    names = ("answers", "prompt tokens", "completion tokens", "USD", "time")
    table = headed_table(title if actual is None else f"{title}: planned → actual", ("stage", "teacher"), names, True)
    for line in plan.lines:
        fact = facts.get((line.stage, line.teacher))
        table.add_row(
            line.stage,
            markup(line.teacher),
            _pair(_count(line.generations), _count(fact.generations) if fact else None),
            _pair(_count(line.prompt_tokens), _count(fact.prompt_tokens) if fact else None),
            _pair(_count(line.completion_tokens), _count(fact.completion_tokens) if fact else None),
            _pair(_money(line.cost), _money(fact.cost) if fact else None),
            _pair(_duration(line.seconds), _duration(fact.seconds) if fact else None),
        )
    table.add_section()
    table.add_row("total", "", *_totals(plan.lines, actual), "")
    return table


def _totals(lines: Sequence[Line], actual: Actual | None) -> list[str]:
    facts = actual.lines if actual is not None else ()
    cells = []
    for name in ("generations", "prompt_tokens", "completion_tokens", "cost"):
        show = _money if name == "cost" else _count
        total = show(sum(getattr(line, name) for line in lines))
        cells.append(_pair(total, show(sum(getattr(line, name) for line in facts)) if facts else None))
    return cells


def _stage_times(seconds: Mapping[str, float]) -> Table:
    table = headed_table("Time of a stage", ("stage",), ("time",), True)
    for stage, time in seconds.items():
        table.add_row(stage, _duration(time))
    return table


def _scorers(plan: RunPlan) -> Table:
    table = headed_table(
        "Scoring the probe", ("model",), ("parameters", "tokens", "FLOPs", "weights", "with one pass", "time"), True
    )
    for scorer in plan.scorers:
        table.add_row(
            f"{markup(scorer.model)} ({scorer.role})",
            f"{scorer.parameters / 1e6:,.0f} M",
            _count(scorer.tokens),
            f"{scorer.flops:.2g}",
            f"{scorer.weight_bytes / 2**30:.2f} GiB",
            f"{scorer.memory_bytes / 2**30:.2f} GiB",
            "–" if scorer.seconds is None else _duration(scorer.seconds),
        )
    return table


def _policies(plan: RunPlan) -> Table:
    names = ("answers", "completion tokens", "USD", "answers to score", "break-even probe")
    table = headed_table(f"Other ways to answer the same {plan.prompts} prompts", ("policy",), names, True)
    for policy in plan.policies:
        even = "–" if policy.break_even is None else f"{policy.break_even:,.0f}"
        table.add_row(
            POLICY_LABELS[policy.name],
            _count(policy.generations),
            _count(policy.tokens),
            _money(policy.cost),
            _count(policy.scored),
            even,
        )
    return table


def _pair(planned: str, actual: str | None) -> str:
    return planned if actual is None else f"{planned} → {actual}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _money(cost: float) -> str:
    """Formats a cost in USD; a dash without a price."""
    if not cost:
        return "–"
    return f"{cost:.2f}" if cost >= 0.005 else f"{cost:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
