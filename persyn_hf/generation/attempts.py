"""Jobs of a pool, the attempts at each, and refusals that may apply to one row or to all requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from persyn_hf.errors import TeacherDownError, TeacherError
from persyn_hf.generation.client import Request
from persyn_hf.generation.lane import Lane
from persyn_hf.ledger.completion import Completion


@dataclass(frozen=True)
class Job:
    """Request of one row, with the key of its answer."""

    key: str
    request: Request


@dataclass(frozen=True)
class Listener:
    """Callbacks for the results of a pool's jobs.

    Args:
        on_answer (`Callable[[Job, Completion], None]`): Called once for each answered job.
        on_error (`Callable[[Job, str], None]`): Called once for each job that failed permanently.
        on_turn (`Callable[[], None]`, *optional*): Called after every few answers, before new requests.
    """

    on_answer: Callable[[Job, Completion], None]
    on_error: Callable[[Job, str], None]
    on_turn: Callable[[], None] = lambda: None


@dataclass(order=True)
class Attempt:
    """A job in flight, or waiting for its next attempt.

    Args:
        due (`float`): Earliest time of the next attempt, in seconds of the pool's clock.
        order (`int`): Sequence number of the job.
        job (`Job`): Job to answer.
        tried (`int`): Number of attempts so far.
        failed (`dict[int, int]`): Number of failures, by the allowed number of failures of that kind.
    """

    due: float
    order: int
    job: Job = field(compare=False)
    tried: int = field(compare=False, default=0)
    failed: dict[int, int] = field(compare=False, default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """A refusal that seems to apply to every request (403, 404), but may apply to one row only.

    Args:
        lane (`Lane`): Endpoint that refused.
        attempt (`Attempt`): Refused attempt.
        error (`TeacherDownError`): Error of the refusal.
        since (`float`): Time of the refusal, in seconds of the pool's clock.
    """

    lane: Lane
    attempt: Attempt
    error: TeacherDownError
    since: float


class Doubts:
    """Open refusals, kept until later requests are answered or refused in the same way."""

    def __init__(self) -> None:
        self._open: list[Doubt] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, doubt: Doubt) -> None:
        """Adds a refusal."""
        self._open.append(doubt)

    def take(self, lane: Lane | None = None, before: float | None = None) -> list[Doubt]:
        """Removes and returns the refusals of an endpoint (default: all) that came before a time (default: any)."""
        taken = [
            doubt
            for doubt in self._open
            if (lane is None or doubt.lane is lane) and (before is None or doubt.since < before)
        ]
        self._open = [doubt for doubt in self._open if doubt not in taken]
        return taken


def last_words(attempt: Attempt, error: TeacherError) -> str:
    """Formats the error of a row that has failed permanently."""
    return f"{error} (after {attempt.tried} attempts)" if attempt.tried > 1 else str(error)
