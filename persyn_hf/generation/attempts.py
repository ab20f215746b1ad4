"""Rows on their way through a pool: what is to be asked, the attempts at it, and refusals whose meaning is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from persyn_hf.errors import TeacherDownError, TeacherError
from persyn_hf.generation.client import Request
from persyn_hf.generation.lane import Lane
from persyn_hf.ledger.completion import Completion


@dataclass(frozen=True)
class Job:
    """One row to be answered, under the key of its answer."""

    key: str
    request: Request


@dataclass(frozen=True)
class Listener:
    """Who hears of what becomes of a pool's jobs.

    Args:
        on_answer (`Callable[[Job, Completion], None]`): Called once for each answered job.
        on_error (`Callable[[Job, str], None]`): Called once for each job that failed for good.
        on_turn (`Callable[[], None]`, *optional*): Called after every few answers, before new requests.
    """

    on_answer: Callable[[Job, Completion], None]
    on_error: Callable[[Job, str], None]
    on_turn: Callable[[], None] = lambda: None


@dataclass(order=True)
class Attempt:
    """A row that is asked, or waits to be asked again.

    Args:
        due (`float`): When it may be asked, in the pool's seconds.
        order (`int`): When it was drawn.
        job (`Job`): What is asked.
        tried (`int`): How often it was asked.
        failed (`dict[int, int]`): Failures, by how often failures of that kind may be.
    """

    due: float
    order: int
    job: Job = field(compare=False)
    tried: int = field(compare=False, default=0)
    failed: dict[int, int] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """A refusal that reads as if it were meant for every request (403, 404), of a server that may mean one row.

    Args:
        lane (`Lane`): The endpoint.
        attempt (`Attempt`): The row.
        error (`TeacherDownError`): The refusal.
        since (`float`): When it came, in the pool's seconds.
    """

    lane: Lane
    attempt: Attempt
    error: TeacherDownError
    since: float


class Doubts:
    """Refusals whose meaning is open, until requests that were sent later are answered, or refused likewise."""

    def __init__(self) -> None:
        self._open: list[Doubt] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, doubt: Doubt) -> None:
        """One more."""
        self._open.append(doubt)

    def take(self, lane: Lane | None = None, before: float | None = None) -> list[Doubt]:
        """Takes out those of an endpoint, by default of all, that came before a time, by default at any."""
        taken = [
            doubt
            for doubt in self._open
            if (lane is None or doubt.lane is lane) and (before is None or doubt.since < before)
        ]
        self._open = [doubt for doubt in self._open if doubt not in taken]
        return taken


def last_words(attempt: Attempt, error: TeacherError) -> str:
    """The error of a row that has failed for good."""
    return f"{error} (after {attempt.tried} attempts)" if attempt.tried > 1 else str(error)
