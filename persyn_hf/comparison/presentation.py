"""Presentation of a comparison: tables for terminals and Markdown, a plot, and findings as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf.comparison.statistics import Difference, PolicyMean, Summary
from persyn_hf.config import policy_label
from persyn_hf.packages import require
from persyn_hf.text import markup

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class PolicyFacts:
    """Contents of a policy's training sets, over its seeds.

    Args:
        student (`str`): Name of the student.
        policy (`str`): Name of the policy.
        rows (`int`): Prompts in every set.
        left_out (`int`): Prompts left out of all sets, because a policy's teacher failed or its answer was cut off.
        tokens (`float`, *optional*): Mean tokens of an answer.
        reward (`float`, *optional*): Mean reward of the answers; known if all teachers answered all prompts.
        shares (`Mapping[str, float]`): Shares of the teachers, largest first.
        same_as (`str`, *optional*): Earlier policy with identical sets.
    """

    student: str
    policy: str
    rows: int
    left_out: int
    tokens: float | None
    reward: float | None
    shares: Mapping[str, float]
    same_as: str | None = None


def comparison_markdown(summary: Summary, facts: Sequence[PolicyFacts]) -> str:
    """Renders the whole comparison as one Markdown page.

    Args:
        summary (`Summary`): Result of [`summarise`].
        facts (`Sequence[PolicyFacts]`): Facts of every student and policy.
    """
    parts = ["# Comparison\n"]
    for student in _students(summary):
        parts.append(f"## {student}\n")
        parts.append(_markdown(*_means(summary, facts, student)))
        if any(one.student == student for one in summary.differences):
            parts.append(
                f"{policy_label(summary.reference)} minus each other policy, paired by seed and prompt. `p seeds`: "
                "paired t-test over the seeds' means. `p prompts`: sign-flip permutation test over the prompts' "
                "means; `p Holm`: the same, corrected for the number of policies.\n"
            )
            parts.append(_markdown(*_differences(summary, student)))
        parts += [f"- {line}" for line in findings(summary, facts, student)] + [""]
    parts.append("Intervals are 95%, from a bootstrap over seeds and prompts.\n")
    return "\n".join(parts)


def print_comparison(summary: Summary, facts: Sequence[PolicyFacts], console: Console) -> None:
    """Prints the tables and findings of [`comparison_markdown`] to a terminal."""
    from rich.table import Table

    for student in _students(summary):
        for title, (header, rows) in (
            (student, _means(summary, facts, student)),
            (f"{policy_label(summary.reference)} minus …", _differences(summary, student)),
        ):
            if not rows:
                continue
            table = Table(title=markup(title), title_justify="left")
            for position, name in enumerate(header):
                table.add_column(markup(name), justify="right" if position else "left")
            for row in rows:
                table.add_row(*map(markup, row))
            console.print(table)
        for line in findings(summary, facts, student):
            console.print(f"- {markup(line)}", highlight=False)


def findings(summary: Summary, facts: Sequence[PolicyFacts], student: str) -> Iterator[str]:
    """Yields the findings on one student as sentences: prompts left out, best policy, and causes of a missing gain.

    If the rewards of all policies are known, three causes can be distinguished: the *router* (its reward is below the
    oracle's), the *proxy* (a higher reward does not make a better student) and the *data* (prompts left out).
    """
    own = [fact for fact in facts if fact.student == student]
    if own and own[0].left_out:
        total = own[0].rows + own[0].left_out
        yield f"Data: {own[0].left_out} of {total} prompts were left out, because a policy has no usable answer there."
    cells = [cell for cell in summary.cells if cell.student == student]
    if not cells:
        return
    main = [cell for cell in cells if cell.evaluation == cells[0].evaluation]
    best = max(cell.value.mean for cell in main)
    winners = [cell for cell in main if cell.value.mean == best]
    names = ", ".join(policy_label(cell.policy) for cell in winners)
    yield f"Best in {main[0].evaluation}: {names} with {winners[0].value}."
    rewards = {fact.policy: fact.reward for fact in own if fact.reward is not None}
    yield from _router_line(summary.reference, rewards)
    yield from _proxy_line(rewards, main)


def _router_line(reference: str, rewards: Mapping[str, float]) -> Iterator[str]:
    if not {reference, "oracle"} <= set(rewards):
        return
    others = {policy: value for policy, value in rewards.items() if policy not in (reference, "oracle")}
    if not others:
        return
    name = max(others, key=lambda policy: others[policy])
    if rewards["oracle"] - others[name] <= 1e-12:
        yield f"Router: no gap to close: {policy_label(name)} earns the oracle's mean reward, {others[name]:.3f}."
        return
    share = (rewards[reference] - others[name]) / (rewards["oracle"] - others[name])
    yield (
        f"Router: {policy_label(reference)} earns a mean reward of {rewards[reference]:.3f}, the best other policy "
        f"({policy_label(name)}) {others[name]:.3f}, the oracle {rewards['oracle']:.3f}: {share:.0%} of that gap is "
        "closed."
    )


def _proxy_line(rewards: Mapping[str, float], main: Sequence[PolicyMean]) -> Iterator[str]:
    pairs = [(rewards[cell.policy], cell.value.mean) for cell in main if cell.policy in rewards]
    if len({reward for reward, _ in pairs}) < 3 or len({score for _, score in pairs}) < 2:
        return
    from scipy.stats import spearmanr

    found = spearmanr(*zip(*pairs, strict=True))
    yield (
        f"Proxy: over {len(pairs)} policies the mean reward of a set and its students' score in {main[0].evaluation} "
        f"have Spearman's rho {found.statistic:+.2f}."
    )


def _students(summary: Summary) -> list[str]:
    return list(dict.fromkeys(cell.student for cell in summary.cells))


def _means(summary: Summary, facts: Sequence[PolicyFacts], student: str) -> tuple[list[str], list[list[str]]]:
    cells = [cell for cell in summary.cells if cell.student == student]
    evaluations = list(dict.fromkeys(cell.evaluation for cell in cells))
    values = {(cell.policy, cell.evaluation): str(cell.value) for cell in cells}
    fact_of = {fact.policy: fact for fact in facts if fact.student == student}
    rows = []
    for policy in dict.fromkeys(cell.policy for cell in cells):
        fact = fact_of.get(policy)
        rows.append(
            [
                policy_label(policy),
                *(values.get((policy, evaluation), "") for evaluation in evaluations),
                "" if fact is None or fact.reward is None else f"{fact.reward:.3f}",
                "" if fact is None or fact.tokens is None else f"{fact.tokens:.0f}",
                "" if fact is None else _teachers(fact),
            ]
        )
    return ["policy", *evaluations, "reward", "tokens", "teachers"], rows


def _teachers(fact: PolicyFacts) -> str:
    if fact.same_as is not None:
        return f"the set of {policy_label(fact.same_as)}"
    return ", ".join(f"{name} {share:.0%}" for name, share in [*fact.shares.items()][:3])


def _differences(summary: Summary, student: str) -> tuple[list[str], list[list[str]]]:
    header = ["policy", "evaluation", "difference", "p seeds", "p prompts", "p Holm"]
    return header, [_difference_row(one) for one in summary.differences if one.student == student]


def _difference_row(one: Difference) -> list[str]:
    value = f"{one.value.mean:+.3f} [{one.value.low:+.3f}, {one.value.high:+.3f}]"
    seeds = "" if one.p_seeds is None else f"{one.p_seeds:.3f}"
    return [policy_label(one.policy), one.evaluation, value, seeds, f"{one.p_prompts:.3f}", f"{one.p_holm:.3f}"]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines) + "\n"


_WIDTH, _HEIGHT = 4.2, 3.2


def plot_comparison(summary: Summary, path: Path) -> None:
    """Draws means with their intervals and every seed's mean, and writes a PNG.

    Args:
        summary (`Summary`): Result of [`summarise`].
        path (`Path`): Path of the PNG file.
    """
    require("plot a comparison", "matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    students = list(dict.fromkeys(cell.student for cell in summary.cells))
    evaluations = list(dict.fromkeys(cell.evaluation for cell in summary.cells))
    figure = Figure(figsize=(_WIDTH * len(evaluations), _HEIGHT * len(students)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(students), len(evaluations), squeeze=False)
    for row, student in enumerate(students):
        for column, evaluation in enumerate(evaluations):
            panel = axes[row][column]
            cells = [cell for cell in summary.cells if (cell.student, cell.evaluation) == (student, evaluation)]
            for place, cell in enumerate(reversed(cells)):
                color = "C1" if cell.policy == summary.reference else "C0"
                panel.plot([cell.value.low, cell.value.high], [place, place], color=color, linewidth=2)
                panel.plot([cell.value.mean], [place], "o", color=color)
                panel.plot(cell.by_seed, [place] * len(cell.by_seed), "|", color="0.4", markersize=8)
            panel.set_yticks(range(len(cells)), [policy_label(cell.policy) for cell in reversed(cells)])
            panel.set_title(student)
            panel.set_xlabel(evaluation)
            panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120, metadata={"Software": None})
