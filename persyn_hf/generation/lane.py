"""One endpoint of a teacher, as the scheduler sees it: a client, a limit and a circuit breaker."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.endpoints.refusals import Refusals
from persyn_hf.endpoints.server import SLOT_POLL, Server, Share
from persyn_hf.errors import RetryableError, RowError, TeacherDownError, UnavailableError
from persyn_hf.generation.client import TeacherClient

#: A teacher that refuses everything for load is alive (its limit may be per minute): it is waited for longer.
_RATE_LIMIT_PATIENCE = 5
#: Share of the even spacing over one answer's time between two requests. Requests that were answered together
#: would otherwise be sent and answered together for ever, each waiting for the others.
_SPACING = 1 / 6
#: Longest pause between two requests, in seconds.
_LONGEST_SPACING = 0.002
#: Time of an answer before the first one is known, in seconds: the first requests are spread over it.
_FIRST_ANSWER = 0.1
#: Tolerance for the timer's resolution, in seconds.
_EARLY = 0.001
#: Rows that must fail, with no answer between, for the endpoint to be what fails.
_FAILING = 3
#: Weight of the latest answer in the time that one takes.
_MEMORY = 0.1


class Lane:
    """All requests of one run to one endpoint.

    Args:
        client (`TeacherClient`): How it is asked.
        limit (`Share` or `AdaptiveLimit`): Its part in a server that others ask too, or a limit of its own.
        policy (`RetryPolicy`): When the circuit opens, and when the endpoint is down.
        patient (`bool`, defaults to `False`): Never give an endpoint up for not answering.
        spaced (`bool`, defaults to `False`): Let a moment pass between two requests.
        clock (`Callable[[], float]`, *optional*): Monotonic seconds.
        rng (`random.Random`, *optional*): Draws the jitter.
    """

    def __init__(
        self,
        client: TeacherClient,
        limit: Share | AdaptiveLimit,
        policy: RetryPolicy,
        *,
        patient: bool = False,
        spaced: bool = False,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.client = client
        self.share = limit if isinstance(limit, Share) else Server(limit).join()
        self.down: str | None = None
        self.resume_at = 0.0
        self._policy = policy
        self._patient = patient
        self._spaced = spaced
        self._next = 0.0
        self._answer_takes: float | None = None
        self._clock = clock
        self._rng = rng or random.Random()
        self._failures = 0
        self._failing_since: float | None = None
        self._seen = False
        self._refusals = Refusals()
        self._failing: set[str] = set()

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open: so many failures in a row that one request at a time suffices."""
        return self._failures >= self._policy.breaker_after

    @property
    def opens_at(self) -> float:
        """When the next request may start, as far as time decides."""
        return max(self.resume_at, self._next - _EARLY)

    @property
    def places(self) -> int:
        """Requests that may start now."""
        if self.down is not None or self._clock() < self.opens_at:
            return 0
        free = self.share.free
        one_by_one = self.is_open or (self._refusals.doubts > 0 and not self._refusals.seen)
        return min(free, 1 - self.in_flight) if one_by_one else free

    @property
    def in_flight(self) -> int:
        """Requests of this teacher that the endpoint is answering now."""
        return self.share.in_flight

    @property
    def is_full(self) -> bool:
        """Whether another request may start as soon as one of those in flight, of whatever teacher, has ended."""
        if self.down is not None or self._clock() < self.resume_at:
            return False
        return self.places <= 0 and not (self.is_open and self.in_flight > 0)

    def enter(self) -> bool:
        """Counts a request in flight; false, and a short pause, where other processes hold all slots."""
        if not self.share.enter():
            self.resume_at = self._clock() + SLOT_POLL
            return False
        if self._spaced:
            takes = _FIRST_ANSWER if self._answer_takes is None else self._answer_takes * _SPACING
            self._next = max(self._next, self._clock()) + min(_LONGEST_SPACING, takes / self.share.current)
        return True

    def leave(self) -> None:
        """The request is no more in flight."""
        self.share.exit()

    def settle(self) -> None:
        """Leaves places that were left, and not entered again, to other processes."""
        self.share.settle()

    def succeeded(self, seconds: float | None = None) -> None:
        """The server answered, in so many seconds; or it refused the row, which says nothing against it either."""
        self._failures, self._failing_since, self._seen = 0, None, True
        self._failing.clear()
        if seconds is not None:
            self._refusals.answered()
            before = seconds if self._answer_takes is None else self._answer_takes
            self._answer_takes = (1 - _MEMORY) * before + _MEMORY * seconds

    def refused(self, error: RowError) -> None:
        """The server refused a row; where it refuses every one in the same words, the endpoint is down."""
        self.succeeded()
        self.down = self.down or self._refusals.refused(error)

    def doubted(self, error: TeacherDownError) -> None:
        """The server refused a request as if it would refuse all; believed where it does so again and again."""
        if self._refusals.believes(error):
            self.down = self.down or str(error)

    @property
    def seen(self) -> bool:
        """Whether the server has answered, or refused a row by itself."""
        return self._seen

    @property
    def fails_all(self) -> bool:
        """Whether several rows have failed and none was answered since: the endpoint fails, and not the rows."""
        return len(self._failing) >= _FAILING

    def failed(self, error: RetryableError, row: str | None = None) -> None:
        """Takes into account what a failure says about the endpoint as a whole; call before [`leave`].

        Args:
            error (`RetryableError`): The failure.
            row (`str`, *optional*): The row that failed, by its key.
        """
        now = self._clock()
        if row is not None and error.status is not None and error.status >= 500 and not self.fails_all:
            self._failing.add(row)
        gone = isinstance(error, UnavailableError)
        if error.retry_after is not None:
            self.resume_at = max(self.resume_at, now + min(error.retry_after, self._policy.longest_pause))
        if gone:
            self.share.unavailable()
        elif error.overloaded:
            self.share.overloaded()
            if self.share.beside > 1:
                return  # refused beside others that were accepted: the server is well
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since
        if self.is_open:
            step = 1 + self._failures - self._policy.breaker_after
            self.resume_at = max(self.resume_at, now + self._rng.uniform(0, self._policy.bound(step)))
        if self._patient:
            return
        bound = self._policy.down_after if self._seen else self._policy.down_after_unseen
        if error.overloaded and not gone:
            bound *= _RATE_LIMIT_PATIENCE
        if (self.is_open or (gone and self._failures > 1)) and now - self._failing_since >= bound:
            self.down = self.down or f"no answer for {bound:g} seconds; the last error: {error}"


@dataclass(frozen=True)
class RetryPolicy:
    """When to ask again.

    Args:
        attempts (`int`, defaults to 6): Attempts of a row that fails for other reasons than load.
        patience (`int`, defaults to 100): Attempts of a row that is refused for load.
        base_delay, max_delay (`float`, defaults to 0.25 and 30): Seconds; the n-th delay is drawn uniformly from
            `[0, min(max_delay, base_delay * 2**(n - 1))]` (full jitter).
        longest_pause (`float`, defaults to 300): Seconds; a longer `Retry-After` is cut to this.
        breaker_after (`int`, defaults to 16): Failures in a row, with no answer between, that open the circuit of an
            endpoint: then one request at a time tries whether the server is back.
        down_after (`float`, defaults to 300): Seconds without any answer after which an endpoint is down: more than
            most servers take to start again.
        down_after_unseen (`float`, defaults to 10): The same before the first answer of all.
    """

    attempts: int = 6
    patience: int = 100
    base_delay: float = 0.25
    max_delay: float = 30.0
    longest_pause: float = 300.0
    breaker_after: int = 16
    down_after: float = 300.0
    down_after_unseen: float = 10.0

    def bound(self, step: int) -> float:
        """The longest delay before the attempt after `step` failures (1 or more), in seconds."""
        return min(self.max_delay, self.base_delay * 2.0 ** min(step - 1, 20))
