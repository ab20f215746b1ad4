"""One endpoint of a teacher for the scheduler: a client, a limit and a circuit breaker."""

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

#: Factor on `down_after` for a server that refuses every request for load: it is alive, and its limit may be per
#: minute.
_RATE_LIMIT_PATIENCE = 5
#: Minimum spacing of two requests, as a share of the even spacing over one answer's duration. Without it, requests
#: that are answered together would always be sent and answered together, each waiting for the others.
_SPACING = 1 / 6
#: Maximum pause between two requests, in seconds.
_LONGEST_SPACING = 0.002
#: Assumed duration of an answer before the first one, in seconds: the first requests are spread over it.
_FIRST_ANSWER = 0.1
#: Tolerance for the timer's resolution, in seconds.
_EARLY = 0.001
#: Number of rows that must fail without an answer in between before the endpoint counts as the cause.
_FAILING = 3
#: Weight of the latest answer in the mean duration of an answer.
_MEMORY = 0.1


class Lane:
    """All requests of one run to one endpoint.

    Args:
        client (`TeacherClient`): Client of the endpoint.
        limit (`Share` or `AdaptiveLimit`): Share of a server with several callers, or a separate limit.
        policy (`RetryPolicy`): Retries and circuit breaker.
        patient (`bool`, defaults to `False`): Whether to wait without limit for an endpoint that does not answer.
        spaced (`bool`, defaults to `False`): Whether to keep a minimum spacing between two requests.
        clock (`Callable[[], float]`, *optional*): Monotonic clock, in seconds.
        rng (`random.Random`, *optional*): Source of the jitter.
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
        """`True` if the circuit is open: after many consecutive failures, only one request at a time is sent."""
        return self._failures >= self._policy.breaker_after

    @property
    def opens_at(self) -> float:
        """Earliest time of the next request, in seconds of the clock."""
        return max(self.resume_at, self._next - _EARLY)

    @property
    def places(self) -> int:
        """Number of requests that may start now."""
        if self.down is not None or self._clock() < self.opens_at:
            return 0
        free = self.share.free
        one_by_one = self.is_open or (self._refusals.doubts > 0 and not self._refusals.seen)
        return min(free, 1 - self.in_flight) if one_by_one else free

    @property
    def in_flight(self) -> int:
        """Number of requests of this teacher in flight to the endpoint."""
        return self.share.in_flight

    @property
    def is_full(self) -> bool:
        """`True` if the next request can start only when a request in flight, of any teacher, has finished."""
        if self.down is not None or self._clock() < self.resume_at:
            return False
        return self.places <= 0 and not (self.is_open and self.in_flight > 0)

    def enter(self) -> bool:
        """Counts a request in flight; returns `False` and pauses shortly if other processes hold all slots."""
        if not self.share.enter():
            self.resume_at = self._clock() + SLOT_POLL
            return False
        if self._spaced:
            takes = _FIRST_ANSWER if self._answer_takes is None else self._answer_takes * _SPACING
            self._next = max(self._next, self._clock()) + min(_LONGEST_SPACING, takes / self.share.current)
        return True

    def leave(self) -> None:
        """Counts a request as no longer in flight."""
        self.share.exit()

    def settle(self) -> None:
        """Unlocks the spare slots, so that other processes can take them."""
        self.share.settle()

    def succeeded(self, seconds: float | None = None) -> None:
        """Records an answer with its latency in seconds, or, without one, the refusal of a row by a healthy server."""
        self._failures, self._failing_since, self._seen = 0, None, True
        self._failing.clear()
        if seconds is not None:
            self._refusals.answered()
            before = seconds if self._answer_takes is None else self._answer_takes
            self._answer_takes = (1 - _MEMORY) * before + _MEMORY * seconds

    def refused(self, error: RowError) -> None:
        """Records the refusal of a row; the same refusal of every row marks the endpoint as down."""
        self.succeeded()
        self.down = self.down or self._refusals.refused(error)

    def doubted(self, error: TeacherDownError) -> None:
        """Records a refusal that may apply to all requests; repeated ones mark the endpoint as down."""
        if self._refusals.believes(error):
            self.down = self.down or str(error)

    @property
    def seen(self) -> bool:
        """`True` if the server has answered, or has refused a single row."""
        return self._seen

    @property
    def fails_all(self) -> bool:
        """`True` if several rows have failed without an answer in between, so that the endpoint is the cause."""
        return len(self._failing) >= _FAILING

    def failed(self, error: RetryableError, row: str | None = None) -> None:
        """Records a failure for the state of the endpoint; call it before [`leave`].

        Args:
            error (`RetryableError`): Error of the request.
            row (`str`, *optional*): Key of the failed row.
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
                return  # refused while others were accepted: the server is healthy
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
    """Retry policy and circuit breaker of an endpoint.

    Args:
        attempts (`int`, defaults to 6): Maximum attempts of a row that fails for reasons other than load.
        patience (`int`, defaults to 100): Maximum attempts of a row that is refused for load.
        base_delay, max_delay (`float`, defaults to 0.25 and 30): Bounds of the backoff, in seconds; the n-th delay is
            drawn uniformly from `[0, min(max_delay, base_delay * 2**(n - 1))]` (full jitter).
        longest_pause (`float`, defaults to 300): Maximum pause in seconds; a longer `Retry-After` is cut to it.
        breaker_after (`int`, defaults to 16): Consecutive failures that open the circuit of an endpoint; it is then
            probed with one request at a time.
        down_after (`float`, defaults to 300): Seconds without any answer after which an endpoint is down; longer than
            most servers take to restart.
        down_after_unseen (`float`, defaults to 10): Seconds without a first answer after which an endpoint is down.
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
        """Returns the maximum delay before the attempt after `step` failures (1 or more), in seconds."""
        return min(self.max_delay, self.base_delay * 2.0 ** min(step - 1, 20))
