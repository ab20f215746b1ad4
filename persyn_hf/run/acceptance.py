"""Outcome of a run's attempts: their number, and how many of each teacher's were good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import Accept

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Acceptance:
    """Outcome of requesting answers until one is good enough.

    Args:
        prompts (`int`): Prompts that were asked.
        answers (`int`), failed (`int`): Attempts that were answered, and those that were not.
        accepted (`int`): Prompts with a good answer.
        given_up (`int`): Prompts of which no answer was good enough.
        open (`int`): Prompts that nobody answered or scored yet: the next run goes on with them.
        answers_of, accepted_of (`Mapping[str, int]`): By teacher, its answers and those that were accepted.
        target_rows (`int`, *optional*): Accepted answers that were wanted.
    """

    prompts: int
    answers: int
    failed: int
    accepted: int
    given_up: int
    open: int
    answers_of: Mapping[str, int]
    accepted_of: Mapping[str, int]
    target_rows: int | None = None

    @classmethod
    def of(cls, attempts: Dataset, accept: Accept) -> Acceptance:
        """Counts a table of attempts.

        Args:
            attempts (`Dataset`): From [`answer_until_accepted`].
            accept (`Accept`): The run's.
        """
        names = (columns.PROMPT_ID, columns.TEACHER, columns.ACCEPTED, columns.ERROR, columns.ACCEPT_ERROR)
        ids, teachers, accepted, errors, left = (attempts[name][:] for name in names)
        answered = Counter(teacher for teacher, error in zip(teachers, errors, strict=True) if error is None)
        passed = Counter(teacher for teacher, good in zip(teachers, accepted, strict=True) if good)
        prompts, good, still = len(set(ids)), passed.total(), sum(reason is not None for reason in left)
        return cls(
            prompts=prompts,
            answers=answered.total(),
            failed=len(ids) - answered.total(),
            accepted=good,
            given_up=prompts - good - still,
            open=still,
            answers_of=dict(answered.most_common()),
            accepted_of={name: passed[name] for name, _ in answered.most_common()},
            target_rows=accept.target_rows,
        )

    def __str__(self) -> str:
        return f"accept: {', '.join(self._parts())}.{self._shares()}"

    def _parts(self) -> Iterator[str]:
        yield f"{self.answers:,} answers to {self.prompts:,} prompts"
        if self.failed:
            yield f"{self.failed:,} attempts without an answer"
        wanted = f" of {self.target_rows:,} wanted" if self.target_rows is not None else ""
        yield f"{self.accepted:,}{wanted} accepted"
        yield f"{self.given_up:,} given up as no answer was good enough"
        if self.open:
            yield f"{self.open:,} left for the next run"

    def _shares(self) -> str:
        shares = ", ".join(
            f"{name} {self.accepted_of[name] / count:.0%} of {count:,}" for name, count in self.answers_of.items()
        )
        return f" Passed: {shares}." if shares else ""
