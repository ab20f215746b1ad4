"""Retries prompts whose answers are not accepted, with the next teacher or another sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Accept, Quality, Teacher
from persyn_hf.ledger.money import is_out_of_money
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
    never: Sequence[str] = (),
    **how: Any,
) -> Dataset:
    """Generates answers to each prompt until one is accepted or the maximum number of attempts is reached.

    A prompt whose answer a judge gave no score, or for whose next attempt `max_cost` left no money, is left as it is:
    it costs no further attempt, and the next run goes on with it.

    Args:
        routed (`Dataset`): With `route`, and `route_scores` for `accept.retry: next`.
        teachers (`Sequence[Teacher]`), seed (`int`): The run's.
        accept (`Accept`): When an answer is good enough, and how many are asked for.
        quality (`Quality`): Quality of an answer.
        score_names (`Sequence[str]`, *optional*): The teachers in the order of `route_scores`; default: in theirs.
        never (`Sequence[str]`, defaults to `()`): Teachers that no retry asks.
        how: `ledger`, `progress`, `max_cost`, as in [`generate_routed`].

    Returns:
        `Dataset`: One row per attempt, prompt by prompt, with `attempt`, `quality` and `accepted`, and with
        `accept_error` in the last row of a prompt that nobody answered, that was not judged, or that no money was
        left for.
    """
    from datasets import concatenate_datasets

    tries = _tries(routed, [one for one in teachers if one.name not in never], teachers, accept, score_names)
    judged = any(part.judge is not None for part in quality.parts)
    search = _Search(routed, tries, accept, judged)
    wave = search.next_wave()
    while wave or not search.tables:
        asked = search.ask_for(wave)
        search.take(wave, _answered(asked, teachers, seed, quality, score_names, how))
        wave = [row for row in wave if search.goes_on(row)] or search.next_wave()
    return search.in_order(concatenate_datasets(search.tables))


@dataclass
class _Search:
    """State of every prompt: the tries that it may have, those that it had, and their outcome.

    Args:
        routed (`Dataset`), accept (`Accept`): As in [`answer_until_accepted`].
        tries (`list[list[Try]]`): Whom each prompt may ask, in order.
        judged (`bool`): Whether an answer without a score may get one from the next run.
    """

    routed: Dataset
    tries: list[list[Try]]
    accept: Accept
    judged: bool
    tables: list[Dataset] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.used = [0] * len(self.routed)
        self.accepted = [False] * len(self.routed)
        self.held: dict[int, str] = {}  # why the next run is to go on with a prompt
        self.no_money = False
        self.begun = 0
        self.places: list[tuple[int, int]] = []
        self.facts: list[tuple[bool, str | None]] = []

    def next_wave(self) -> list[int]:
        """Returns the next prompts to start: all, or as many as accepted answers are missing from `target_rows`."""
        target = self.accept.target_rows
        if target is None:
            missing = len(self.routed)
        else:  # one that waits for its score may be good
            missing = 0 if self.no_money else target - sum(self.accepted) - len(self.held)
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
        names = (columns.QUALITY, columns.QUALITY_ERROR, columns.FINISH_REASON, columns.ERROR, columns.TEACHER)
        for row, quality, unjudged, reason, error, teacher in zip(
            wave, *(answers[name] for name in names), strict=True
        ):
            whole = error is None and reason == "stop"
            good = whole and quality is not None and quality >= self.accept.min_quality
            if is_out_of_money(error):
                self.held[row], self.no_money = str(error), True
            elif whole and self.judged and unjudged is not None:
                self.held[row] = f"no score: {unjudged}"
            self.places.append((row, self.used[row]))
            self._strike(row, (teacher, self.tries[row][self.used[row]][1]))
            self.used[row] += 1
            self.accepted[row] = good
            self.facts.append((good, error))

    def _strike(self, row: int, answered: Try) -> None:
        """Takes the try of a teacher that answered in another one's place from those that are left."""
        done = self.used[row] + 1
        self.tries[row][done:] = [one for one in self.tries[row][done:] if one != answered]

    def goes_on(self, row: int) -> bool:
        """Returns whether a prompt is requested once more."""
        return not self.accepted[row] and row not in self.held and self.used[row] < len(self.tries[row])

    def in_order(self, made: Dataset) -> Dataset:
        """Returns all attempts, grouped by prompt, with `accepted` and `accept_error`."""
        order = sorted(range(len(self.places)), key=self.places.__getitem__)
        made = made.select(order)
        facts = [self.facts[place] for place in order]
        rows = [self.places[place][0] for place in order]
        answered = {row for row, (_, error) in zip(rows, facts, strict=True) if error is None}
        last = [place + 1 == len(rows) or rows[place + 1] != row for place, row in enumerate(rows)]
        errors = [
            (self.held.get(row) or (error if row not in answered else None)) if is_last else None
            for row, (_, error), is_last in zip(rows, facts, last, strict=True)
        ]
        made = set_column(made, columns.ACCEPTED, [good for good, _ in facts], "bool")
        return set_column(made, columns.ACCEPT_ERROR, errors, "string")


def _tries(
    routed: Dataset,
    candidates: Sequence[Teacher],
    teachers: Sequence[Teacher],
    accept: Accept,
    score_names: Sequence[str] | None,
) -> list[list[Try]]:
    """Whom each prompt asks, in order."""
    by_name = {teacher.name: teacher for teacher in teachers}
    names, known = list(score_names or by_name), {teacher.name for teacher in candidates}
    fixed = {teacher.name for teacher in teachers if teacher.sampling.is_fixed}
    scores = routed[columns.ROUTE_SCORES] if columns.ROUTE_SCORES in routed.column_names else [None] * len(routed)
    found = []
    for route, own in zip(routed[columns.ROUTE], scores, strict=True):
        ranked = [route]
        if accept.retry == "next" and own is not None:
            by_score = sorted(zip(names, own, strict=True), key=lambda pair: -pair[1])
            ranked += [name for name, _ in by_score if name != route and name in known]
        found.append(order_of_tries(ranked, fixed, accept.attempts))
    return found


def order_of_tries(ranked: Sequence[str], fixed: Collection[str], attempts: int) -> list[Try]:
    """Each teacher once, best first, then those that have another answer once more, until the attempts are used up.

    Args:
        ranked (`Sequence[str]`): The teachers that may be asked, best first.
        fixed (`Collection[str]`): Teachers that give the same answer every time.
        attempts (`int`): Most tries.

    Example:
        >>> order_of_tries(["a", "b"], {"a"}, 4)
        [('a', 0), ('b', 0), ('b', 1), ('b', 2)]
    """
    several = [name for name in ranked if name not in fixed]
    tries = [(name, 0) for name in ranked]
    tries += [(name, attempt) for attempt in range(1, attempts) for name in several]
    return tries[:attempts]


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
