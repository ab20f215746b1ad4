"""The scheduler: keeps one teacher as busy as it can bear, retries what may succeed, and ends in every case."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from persyn_hf.errors import RetryableError, RowError, TeacherDownError, TeacherError
from persyn_hf.generation.client import Completion, Request, TeacherClient, UnavailableError
from persyn_hf.generation.limit import AdaptiveLimit

#: A teacher that refuses everything for load is alive (its limit may be per minute): it is waited for longer.
_RATE_LIMIT_PATIENCE = 5


@dataclass(frozen=True)
class RetryPolicy:
    """When to ask again.

    Args:
        attempts (`int`, defaults to 6): Attempts of a row that fails for other reasons than load.
        patience (`int`, defaults to 100): Attempts of a row that is refused for load.
        base_delay, max_delay (`float`, defaults to 0.25 and 30): Seconds; the n-th delay is drawn uniformly from
            `[0, min(max_delay, base_delay * 2**n)]` (full jitter).
        longest_pause (`float`, defaults to 300): Seconds; a longer `Retry-After` is cut to this.
        breaker_after (`int`, defaults to 16): Failures in a row, with no answer between, that open the circuit: then
            one request at a time tries whether the server is back.
        down_after (`float`, defaults to 60): Seconds without any answer after which a teacher is down.
        down_after_unseen (`float`, defaults to 10): The same before the first answer of all.
    """

    attempts: int = 6
    patience: int = 100
    base_delay: float = 0.25
    max_delay: float = 30.0
    longest_pause: float = 300.0
    breaker_after: int = 16
    down_after: float = 60.0
    down_after_unseen: float = 10.0


@dataclass(frozen=True)
class Job:
    """One row to be answered, under the key of its answer."""

    key: str
    request: Request


@dataclass(order=True)
class _Attempt:
    due: float
    order: int
    job: Job = field(compare=False)
    tried: int = field(compare=False, default=0)


class TeacherPool:
    """All requests of one run to one teacher.

    At most `limit` tasks exist at a time, jobs are drawn from the iterator as places get free, and rows that wait for
    another attempt hold no place; so memory does not grow with the number of rows.

    Args:
        client (`TeacherClient`): How the teacher is asked.
        jobs (`Iterator[Job]`): What is to be asked; may be endless.
        limit (`AdaptiveLimit`): Requests in flight.
        timeout (`float`): Seconds that one request may take in all, whatever arrives meanwhile.
        on_answer (`Callable[[Job, Completion], None]`): Called once for each answered job.
        on_error (`Callable[[Job, str], None]`): Called once for each job that failed for good.
        policy (`RetryPolicy`, *optional*): When to ask again.
        clock (`Callable[[], float]`, *optional*): Monotonic seconds.
        rng (`random.Random`, *optional*): Draws the jitter.
    """

    def __init__(
        self,
        client: TeacherClient,
        jobs: Iterator[Job],
        limit: AdaptiveLimit,
        timeout: float | None,
        on_answer: Callable[[Job, Completion], None],
        on_error: Callable[[Job, str], None],
        *,
        policy: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.limit = limit
        self.down: str | None = None
        self._client = client
        self._jobs = jobs
        self._timeout = timeout
        self._on_answer = on_answer
        self._on_error = on_error
        self._policy = policy or RetryPolicy()
        self._clock = clock
        self._rng = rng or random.Random()
        self._waiting: list[_Attempt] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._order = 0
        self._exhausted = False
        self._paused_until = 0.0
        self._failures = 0
        self._failing_since: float | None = None
        self._answered = False
        self._fatal: BaseException | None = None

    async def run(self) -> None:
        """Asks until every job is answered or has failed.

        Raises:
            PersynError: Whatever the callbacks raise (a ledger that cannot be written); requests in flight are
                cancelled then.
        """
        self._changed = asyncio.Event()
        try:
            while self._fatal is None:
                self._changed.clear()
                self._launch()
                if not self._tasks and (self.down is not None or (self._exhausted and not self._waiting)):
                    break
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fatal is not None:
            raise self._fatal
        for attempt in self._waiting:
            self._on_error(attempt.job, f"the teacher is down: {self.down}")

    @property
    def _open(self) -> bool:
        """Whether the circuit is open: so many failures in a row that one request at a time suffices."""
        return self._failures >= self._policy.breaker_after

    def _launch(self) -> None:
        while self.down is None and self._places() > 0:
            attempt = self._next()
            if attempt is None:
                return
            self.limit.in_flight += 1
            task = asyncio.create_task(self._ask(attempt))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _places(self) -> int:
        if self._clock() < self._paused_until:
            return 0
        return min(self.limit.free, 1 - self.limit.in_flight) if self._open else self.limit.free

    def _next(self) -> _Attempt | None:
        if self._waiting and self._waiting[0].due <= self._clock():
            return heapq.heappop(self._waiting)
        if self._exhausted or (self._open and self._waiting):
            return None
        job = next(self._jobs, None)
        if job is None:
            self._exhausted = True
            return None
        self._order += 1
        return _Attempt(0.0, self._order, job)

    async def _wait(self) -> None:
        """Waits for an answer, the next attempt's time or the end of a pause."""
        now = self._clock()
        times = [self._waiting[0].due] if self._waiting and self.limit.free > 0 else []
        if self._paused_until > now:
            times = [self._paused_until]
        if not times:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(max(0.001, min(times) - now), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal = error

    async def _ask(self, attempt: _Attempt) -> None:
        attempt.tried += 1
        try:
            async with asyncio.timeout(self._timeout):
                completion = await self._client.complete(attempt.job.request)
        except TimeoutError:
            self._retry(attempt, RetryableError(f"no complete answer in {self._timeout:g} seconds", attempts=3))
        except RetryableError as error:
            self._retry(attempt, error)
        except RowError as error:
            self._succeeded()
            self._on_error(attempt.job, str(error))
        except TeacherDownError as error:
            self.down = self.down or str(error)
            self._on_error(attempt.job, f"the teacher is down: {error}")
        else:
            self.limit.answered()
            self._succeeded()
            self._on_answer(attempt.job, completion)
        finally:
            self.limit.in_flight -= 1

    def _succeeded(self) -> None:
        self._failures, self._failing_since, self._answered = 0, None, True

    def _retry(self, attempt: _Attempt, error: RetryableError) -> None:
        """Puts a failed attempt back, or ends it."""
        now = self._clock()
        self._note(error, now)
        policy = self._policy
        patient = error.overloaded or isinstance(error, UnavailableError)
        allowed = error.attempts or (policy.patience if patient else policy.attempts)
        if self.down is not None or (attempt.tried >= allowed and not (patient and self._open)):
            self._on_error(attempt.job, self._last_words(attempt, error))
            return
        step = attempt.tried
        if self._open:
            step += self._failures - policy.breaker_after
        elif error.overloaded and not isinstance(error, UnavailableError):
            step = 1  # the limit has fallen already; the row itself is as good as any other
        delay = self._rng.uniform(0, min(policy.max_delay, policy.base_delay * 2.0 ** min(step, 20)))
        if error.retry_after is not None:
            wait = min(error.retry_after, policy.longest_pause)
            delay += wait
            self._paused_until = max(self._paused_until, now + wait)
        attempt.due = now + delay
        heapq.heappush(self._waiting, attempt)

    def _note(self, error: RetryableError, now: float) -> None:
        """What a failure says about the teacher as a whole."""
        gone = isinstance(error, UnavailableError)
        if gone:
            self.limit.unavailable()
        elif error.overloaded:
            self.limit.overloaded()
        if error.overloaded and not gone and self.limit.in_flight > 1:
            return  # refused beside others that were accepted: the server is well
        self._failures += 1
        self._failing_since = now if self._failing_since is None else self._failing_since
        bound = self._policy.down_after if self._answered else self._policy.down_after_unseen
        if error.overloaded and not gone:
            bound *= _RATE_LIMIT_PATIENCE
        if (self._open or (gone and self._failures > 1)) and now - self._failing_since >= bound:
            self.down = self.down or f"no answer for {bound:g} seconds; the last error: {error}"

    def _last_words(self, attempt: _Attempt, error: TeacherError) -> str:
        if self.down is not None:
            return f"the teacher is down: {self.down}"
        return f"{error} (after {attempt.tried} attempts)" if attempt.tried > 1 else str(error)
