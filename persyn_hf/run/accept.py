"""Retries prompts whose answers are not accepted, with the next teacher or another sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Accept, Quality, Teacher
from persyn_hf.tables import set_column

if TYPE_CHECKING:
    from datasets import Dataset

#: A teacher's name, and the number of its earlier attempts at the prompt.
Try = tuple[str, int]


def answer_until_accepted(
    routed: Dataset,
    *,
    teachers: Sequence[Teacher],
    seed: int,
    accept: Accept,
    quality: Quality,
    score_names: Sequence[str] | None = None,
    **how: Any,
) -> Dataset:
    """Generates answers to each prompt until one is accepted or the maximum number of attempts is reached.

    Args:
        routed (`Dataset`): Prompts with `route`, and with `route_scores` for `accept.retry: next`.
        teachers (`Sequence[Teacher]`), seed (`int`): Teachers and random seed of the run.
        accept (`Accept`): Acceptance criterion and number of attempts.
        quality (`Quality`): Measure of an answer's quality.
        score_names (`Sequence[str]`, *optional*): Names of the teachers in the order of `route_scores`. Default: the
            order of `teachers`.
        how: `ledger`, `progress` and `max_cost`, as in [`generate_routed`].

    Returns:
        `Dataset`: One row per attempt, grouped by prompt, with `attempt`, `quality` and `accepted`. If no attempt at a
        prompt got an answer, its last row has `accept_error`.
    """
    from datasets import concatenate_datasets

    search = _Search(routed, teachers, accept, score_names)
    wave = search.next_wave()
    while wave or not search.tables:
        asked = search.ask_for(wave)
        search.take(wave, _answered(asked, teachers, seed, quality, score_names, how))
        wave = [row for row in wave if search.goes_on(row)] or search.next_wave()
    return search.in_order(concatenate_datasets(search.tables))


@dataclass
class _Search:
    """State of every prompt: its possible attempts, the number used, and whether one was accepted."""

    routed: Dataset
    teachers: Sequence[Teacher]
    accept: Accept
    score_names: Sequence[str] | None
    tables: list[Dataset] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tries = _tries(self.routed, self.teachers, self.accept, self.score_names)
        self.used = [0] * len(self.routed)
        self.accepted = [False] * len(self.routed)
        self.begun = 0
        self.places: list[tuple[int, int]] = []
        self.facts: list[tuple[bool, str | None]] = []

    def next_wave(self) -> list[int]:
        """Returns the next prompts to start: all, or as many as accepted answers are missing from `target_rows`."""
        target = self.accept.target_rows
        missing = len(self.routed) if target is None else target - sum(self.accepted)
        wave = range(self.begun, min(self.begun + max(missing, 0), len(self.routed)))
        self.begun = wave.stop
        return list(wave)

    def ask_for(self, wave: Sequence[int]) -> Dataset:
        """Returns the rows of a wave, each with the teacher and number of its next attempt."""
        asked = self.routed.select(wave)
        tries = [self.tries[row][self.used[row]] for row in wave]
        asked = set_column(asked, columns.ROUTE, [teacher for teacher, _ in tries], "string")
        return set_column(asked, columns.ATTEMPT, [attempt for _, attempt in tries], "int64")

    def take(self, wave: Sequence[int], answers: Dataset) -> None:
        """Records the answers of a wave, one per row."""
        self.tables.append(answers)
        outcomes = zip(
            wave, answers[columns.QUALITY], answers[columns.FINISH_REASON], answers[columns.ERROR], strict=True
        )
        for row, quality, reason, error in outcomes:
            good = error is None and reason == "stop" and quality is not None and quality >= self.accept.min_quality
            self.places.append((row, self.used[row]))
            self.used[row] += 1
            self.accepted[row] = good
            self.facts.append((good, error))

    def goes_on(self, row: int) -> bool:
        """Returns True if a prompt gets another attempt."""
        return not self.accepted[row] and self.used[row] < len(self.tries[row])

    def in_order(self, made: Dataset) -> Dataset:
        """Returns all attempts, grouped by prompt, with `accepted` and `accept_error`."""
        order = sorted(range(len(self.places)), key=self.places.__getitem__)
        made = made.select(order)
        facts = [self.facts[place] for place in order]
        rows = [self.places[place][0] for place in order]
        answered = {row for row, (_, error) in zip(rows, facts, strict=True) if error is None}
        last = [place + 1 == len(rows) or rows[place + 1] != row for place, row in enumerate(rows)]
        errors = [
            error if is_last and row not in answered else None
            for row, (_, error), is_last in zip(rows, facts, last, strict=True)
        ]
        made = set_column(made, columns.ACCEPTED, [good for good, _ in facts], "bool")
        return set_column(made, columns.ACCEPT_ERROR, errors, "string")


def _tries(
    routed: Dataset, teachers: Sequence[Teacher], accept: Accept, score_names: Sequence[str] | None
) -> list[list[Try]]:
    """Returns the attempts of each prompt, in order. A greedy teacher has only one answer, so it gets one attempt."""
    known = {teacher.name: teacher for teacher in teachers}
    names = list(score_names or known)
    scores = routed[columns.ROUTE_SCORES] if columns.ROUTE_SCORES in routed.column_names else [None] * len(routed)
    found = []
    for route, own in zip(routed[columns.ROUTE], scores, strict=True):
        ranked = [route]
        if accept.retry == "next" and own is not None:
            by_score = sorted(zip(names, own, strict=True), key=lambda pair: -pair[1])
            ranked += [name for name, _ in by_score if name != route and name in known]
        several = [name for name in ranked if known[name].sampling.temperature != 0]
        rounds = [(name, 0) for name in ranked]
        rounds += [(name, attempt) for attempt in range(1, accept.attempts) for name in several]
        found.append(rounds[: accept.attempts])
    return found


def _answered(
    asked: Dataset,
    teachers: Sequence[Teacher],
    seed: int,
    quality: Quality,
    score_names: Sequence[str] | None,
    how: Mapping[str, Any],
) -> Dataset:
    """Generates the answers of one wave and scores their quality."""
    from persyn_hf.generation.generate import generate_routed
    from persyn_hf.scoring.quality import persyn_quality

    priced = any(teacher.has_price for teacher in teachers)
    spending = {"max_cost": how.get("max_cost") if priced else None}
    answers = generate_routed(asked, teachers=teachers, seed=seed, score_names=score_names, **{**how, **spending})
    kept: dict[str, Any] = {name: how.get(name) for name in ("ledger", "max_cost")}
    values: dict[str, list[object]] = {columns.QUALITY: [], columns.QUALITY_ERROR: []}
    for batch in answers.iter(1000):
        scored = persyn_quality(batch, **kept, **quality.model_dump(exclude_none=True))
        values[columns.QUALITY] += scored[columns.QUALITY]
        values[columns.QUALITY_ERROR] += scored.get(columns.QUALITY_ERROR) or [None] * len(scored[columns.QUALITY])
    answers = set_column(answers, columns.QUALITY, values[columns.QUALITY], "float64")
    return set_column(answers, columns.QUALITY_ERROR, values[columns.QUALITY_ERROR], "string")


def accepted_answers(attempts: Dataset) -> Dataset:
    """Selects the accepted answers from a table of attempts: at most one per prompt."""
    return attempts.filter(lambda accepted: accepted, input_columns=columns.ACCEPTED, desc="accepted")
