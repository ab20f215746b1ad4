"""Report at the end of a run: allocation and means per teacher, held-out rewards, cost and saved generations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import HELD_OUT_POLICIES, POLICY_LABELS, RunConfig
from persyn_hf.run.acceptance import Acceptance
from persyn_hf.text import headed_table, markup, tame

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import Console


@dataclass(frozen=True)
class TeacherLine:
    """One teacher in the report.

    Args:
        name (`str`): Name of the teacher.
        allocated (`int`): Number of prompts routed to it.
        answered (`int`), failed (`int`), truncated (`int`): Counts over its probe and routed answers.
        quality, reward (`float`, *optional*), learnability (`float`, *optional*, nats/token): Means over its probe
            answers; `None` without scores.
    """

    name: str
    allocated: int
    answered: int
    failed: int
    truncated: int
    quality: float | None
    learnability: float | None
    reward: float | None


@dataclass(frozen=True)
class PaidScores:
    """Totals of the ledger for a judge, or for a student behind a server.

    Args:
        kind (`str`): `judge` or `student`.
        model (`str`): Name of the model.
        replies (`int`): Number of scores.
        unread (`int`): Number of a judge's replies without a score, which were paid for too.
        prompt_tokens, completion_tokens (`int`): Total tokens.
        cost (`float`): Total cost, in USD.
    """

    kind: str
    model: str
    replies: int
    unread: int
    prompt_tokens: int
    completion_tokens: int
    cost: float

    def __str__(self) -> str:
        unread = f" and {self.unread:,} replies without a score" if self.unread else ""
        tokens = f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens, {self.cost:.4f} USD"
        return f"{self.kind} {self.model}: {self.replies:,} scores{unread}, {tokens}."


def read_paid_scores(config: RunConfig, ledger: Path) -> list[PaidScores]:
    """Reads the totals of a run's judges and served student, over all runs that share the ledger."""
    from persyn_hf.ledger.ledger import Ledger

    parts = config.quality.parts if config.quality is not None else ()
    asked = [("judge", part.judge.model) for part in parts if part.judge is not None]
    if config.student is not None and config.student.endpoint is not None:
        asked.append(("student", config.student.model))
    if not asked or not ledger.exists():
        return []
    with Ledger(ledger) as opened:
        totals = opened.totals()
    found = []
    for kind, model in dict.fromkeys(asked):
        own = [line for line in totals if line["model"] == model and line["kind"].partition(" ")[0] == kind]
        read = sum(line["answers"] for line in own if line["kind"] == kind)
        sums = {
            name: sum(line[name] for line in own) for name in ("answers", "prompt_tokens", "completion_tokens", "cost")
        }
        unread = sums.pop("answers") - read
        found.append(PaidScores(kind, model, read, unread, **sums))
    return found


@dataclass(frozen=True)
class RunReport:
    """Results of a run.

    Args:
        teachers (`Sequence[TeacherLine]`): Teachers in the configuration's order.
        held_out (`Mapping[str, Any]`): Cross-validated rewards of the policies; empty for a pretrained router.
        fallback (`str`, *optional*): The teacher that gets every prompt because the router did not beat it.
        verdict (`str`, *optional*): Whether the router earns its place, and what would help where it does not.
        generations (`int`): Answers that the run got; a probe answer that is used again counts once.
        generations_all (`int`): Answers that generate-then-select would have requested.
        left_out (`Mapping[str, str]`): Teachers that mostly failed on the probe and are no candidates, with what they
            gave.
        dropped (`Mapping[str, int]`): Prompts that were left out as bad ones, by reason.
        scores (`Sequence[PaidScores]`): Paid scores of judges and of a student behind a server.
        kept (`Mapping[str, int]`): Answers in the published set (`rows`), and those left out, by what became of them.
        accept (`Acceptance`, *optional*): Outcome of the attempts, where answers are requested until one is good.
    """

    teachers: Sequence[TeacherLine]
    held_out: Mapping[str, Any]
    fallback: str | None
    verdict: str | None
    generations: int
    generations_all: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    scores: Sequence[PaidScores] = ()
    accept: Acceptance | None = None

    @property
    def saved(self) -> float:
        """Ratio of generate-then-select's generations to the run's, failed ones included; NaN without any."""
        asked = self.generations + sum(line.failed for line in self.teachers)
        return self.generations_all / asked if asked else math.nan

    def to_dict(self) -> dict[str, object]:
        """Returns plain values, for `report.json`."""
        return asdict(self)


def build_report(
    config: RunConfig,
    prompts: Dataset,
    probe: Dataset | None,
    scored: Dataset | None,
    routed: Dataset | None,
    generated: Dataset | None,
    block: Mapping[str, Any] | None,
) -> RunReport:
    """Builds the report from the tables of the finished stages; the other tables are `None`."""
    allocated: Counter[str] = Counter()
    if routed is not None and columns.ROUTES in routed.column_names:
        allocated.update(name for own in routed[columns.ROUTES] for name in own)
    elif routed is not None:
        allocated.update(routed[columns.ROUTE])
    answers = _distinct_answers(probe, generated)
    means = _means(scored) if scored is not None else {}
    lines = []
    for teacher in config.teachers:
        own = [answer for (_, name, *_), answer in answers.items() if name == teacher.name]
        failed = sum(error is not None for error, _ in own)
        lines.append(
            TeacherLine(
                name=teacher.name,
                allocated=allocated[teacher.name],
                answered=len(own) - failed,
                failed=failed,
                truncated=sum(columns.is_cut(reason) for _, reason in own),
                **means.get(teacher.name, {"quality": None, "learnability": None, "reward": None}),
            )
        )
    held_out = dict((block or {}).get("held_out") or {})
    return RunReport(
        teachers=tuple(lines),
        held_out=held_out,
        fallback=(block or {}).get("fallback"),
        verdict=held_out.get("reason"),
        generations=sum(error is None for error, _ in answers.values()),
        generations_all=len(prompts) * len(config.teachers),
        left_out=dict((block or {}).get("left_out") or {}),
        accept=Acceptance.of(generated, config.accept) if generated is not None and config.accept else None,
    )


def _distinct_answers(*tables: Dataset | None) -> dict[columns.RowKey, tuple[str | None, str | None]]:
    """Maps row keys to (error, finish reason), so that a probe answer that is reused counts once."""
    answers: dict[columns.RowKey, tuple[str | None, str | None]] = {}
    for table in tables:
        if table is not None:
            outcomes = zip(table[columns.ERROR], table[columns.FINISH_REASON], strict=True)
            answers.update(zip(columns.row_keys(table), outcomes, strict=True))
    return answers


def _means(scored: Dataset) -> dict[str, dict[str, float | None]]:
    names = (columns.QUALITY, columns.LEARNABILITY, columns.REWARD)
    values: dict[str, dict[str, list[float]]] = {}
    for teacher, *row in zip(scored[columns.TEACHER][:], *(scored[name][:] for name in names), strict=True):
        own = values.setdefault(teacher, {name: [] for name in names})
        for name, value in zip(names, row, strict=True):
            if value is not None:
                own[name].append(value)
    return {
        teacher: {name: sum(own[name]) / len(own[name]) if own[name] else None for name in names}
        for teacher, own in values.items()
    }


def print_report(report: RunReport, console: Console) -> None:
    """Prints the report as tables and sentences."""
    total = sum(line.allocated for line in report.teachers)
    names = ("prompts", "share", "answers", "failed", "cut", "quality", "learnability", "reward")
    table = headed_table("Teachers", ("teacher",), names)
    for line in report.teachers:
        share = f"{line.allocated / total:.0%}" if total else "–"
        table.add_row(
            markup(line.name),
            str(line.allocated),
            share,
            str(line.answered),
            str(line.failed),
            str(line.truncated),
            _number(line.quality),
            _number(line.learnability),
            _number(line.reward),
        )
    console.print(table)
    for name, gave in report.left_out.items():
        console.print(
            f"{markup(name)} {markup(gave)} on the probe, so it is excluded (`router.min_answered`).", highlight=False
        )
    if report.held_out:
        _print_held_out(report, console)
    if total and report.generations:
        console.print(
            f"{report.generations} answers instead of {report.generations_all} "
            f"for generate-then-select: {report.saved:.1f}× fewer.",
            highlight=False,
        )
    if report.accept is not None:
        console.print(markup(str(report.accept)), highlight=False)
    for scores in report.scores:
        console.print(markup(str(scores)), highlight=False)
    for sentence in _left(report):
        console.print(markup(sentence), highlight=False)


#: Descriptions of answers left out of the set, by the fields of `Kept`.
_FATES = {
    "failed": "without an answer",
    "truncated": "cut at `max_tokens` (`publish.keep_truncated` keeps them)",
    "empty": "empty",
}
#: Descriptions of answers left out by `hygiene` and `accept`, which cards use too.
LEFT_OUT_WORDS = {
    "not_accepted": "no attempt was good enough",
    "open": "nobody answered or scored it yet",
    "refused": "refuses the request",
    "copied": "copies its prompt",
    "low_quality": "quality too low",
}
#: Descriptions of prompts that `hygiene` dropped before generation.
DROPPED_WORDS = {
    "duplicate": "duplicate of an earlier prompt",
    "near_duplicate": "near-duplicate of an earlier prompt",
    "too_short": "too short",
    "too_long": "too long",
    "contaminated": "overlaps with a benchmark",
}


def _left(report: RunReport) -> Iterator[str]:
    """Yields sentences that count the rows of the set, and those left out by reason."""
    if report.kept:
        counts = dict(report.kept)
        rows = counts.pop("rows", 0)
        gone = [f"{count:,} {(_FATES | LEFT_OUT_WORDS).get(name, name)}" for name, count in counts.items() if count]
        said = f"; left out: {', '.join(gone)}" if gone else ""
        yield f"{rows:,} of {rows + sum(counts.values()):,} answers are in the set{said}."
    if report.dropped:
        reasons = "; ".join(f"{count:,} × {DROPPED_WORDS.get(name, name)}" for name, count in report.dropped.items())
        yield f"{sum(report.dropped.values()):,} prompts were dropped: {reasons}."


def _print_held_out(report: RunReport, console: Console) -> None:
    title = f"Held out: {report.held_out.get('prompts')} probe prompts"
    table = headed_table(title, ("policy",), ("mean reward", "95% interval"))
    for key in HELD_OUT_POLICIES:
        entry = report.held_out.get(key)
        if entry:
            table.add_row(POLICY_LABELS[key], f"{entry['mean']:.3f}", f"{entry['low']:.3f} to {entry['high']:.3f}")
    console.print(table)
    if report.verdict:
        style = "bold" if report.fallback is not None else ""
        console.print(markup(report.verdict), highlight=False, style=style)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


#: Maximum number of prompt ids and reasons listed for one teacher.
_NAMED = 5


def name_missing(table: Path, column: str = columns.ERROR, what: str = "an answer") -> list[str]:
    """Returns lines about each teacher's failed rows: their number, the first prompts and the most common reasons.

    Args:
        table (`Path`): Path of a stage's table.
        column (`str`, defaults to `"error"`): Column with the reason of a failure.
        what (`str`, defaults to `"an answer"`): Name of the missing value.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = [columns.PROMPT_ID, columns.TEACHER, column]
    rows = pq.read_table(table, columns=names, filters=pc.is_valid(pc.field(column))).to_pylist()
    lines = []
    for teacher, count in Counter(row[columns.TEACHER] for row in rows).most_common():
        own = [row for row in rows if row[columns.TEACHER] == teacher]
        ids = ", ".join(row[columns.PROMPT_ID] for row in own[:_NAMED]) + (", …" if count > _NAMED else "")
        reasons = Counter(row[column] for row in own).most_common(_NAMED)
        lines.append(f"  {tame(teacher)}: {count} without {what} (prompts {ids})")
        lines += [f"    {number} x {tame(reason)}" for reason, number in reasons]
    return lines
