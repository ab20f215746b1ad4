"""The scheduler: keeps one teacher saturated, retries transient failures, and always terminates."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from persyn_hf.errors import RetryableError, RowError, TeacherDownError, UnavailableError
from persyn_hf.generation.attempts import Attempt, Doubt, Doubts, Job, Listener, last_words
from persyn_hf.generation.budget import Purse
from persyn_hf.generation.client import Request
from persyn_hf.generation.lane import Lane, RetryPolicy
from persyn_hf.ledger.completion import Completion

#: Jobs that are prepared before a slot is free for them.
_READY = 16
#: Statuses of refusals that may be a transient gateway error, and the number of attempts of such a row.
_LAPSES, _LAPSED_ATTEMPTS = frozenset({401, 404, 405, 410}), 3

__all__ = ["Job", "Listener", "RetryPolicy", "TeacherPool"]


class TeacherPool:
    """All requests of one run to one teacher, over all of its endpoints.

    The number of workers is bounded by the endpoints' limits, jobs are drawn from the iterator as slots become free,
    and rows that wait for another attempt hold no slot, so memory does not grow with the number of rows.

    Args:
        lanes (`Sequence[Lane]`): Endpoints of the teacher; a request goes to the one with the smallest load.
        listener (`Listener`): Callbacks for the results.
        timeout (`float`, *optional*): Deadline of one request, in seconds.
        policy (`RetryPolicy`, *optional*): Retries and circuit breaker.
        purse (`Purse`, *optional*): Budget of the teacher.
        hedge_after (`float`, *optional*): Seconds after which a request is sent a second time.
        clock (`Callable[[], float]`, *optional*): Monotonic clock, in seconds.
        rng (`random.Random`, *optional*): Source of the jitter.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        listener: Listener,
        *,
        timeout: float | None = None,
        policy: RetryPolicy | None = None,
        purse: Purse | None = None,
        hedge_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.lanes = list(lanes)
        self.stopped: str | None = None
        self._timeout = timeout
        self._on_answer = listener.on_answer
        self._on_error = listener.on_error
        self._policy = policy or RetryPolicy()
        self._purse = purse
        self._hedge_after = hedge_after
        self._on_turn = listener.on_turn
        self._clock = clock
        self._rng = rng or random.Random()
        self._changed = asyncio.Event()
        self._jobs: Iterator[Job] = iter(())
        self._waiting: list[Attempt] = []
        self._ready: deque[Job] = deque()
        self._stalled: Attempt | None = None  # drawn, but the budget does not allow it now
        self._doubts = Doubts()
        self._tasks: set[asyncio.Task[None]] = set()
        self._order = 0
        self._exhausted = False
        self._fatal: BaseException | None = None
        if purse is not None:
            purse.budget.watch(self._changed.set)

    @property
    def down(self) -> str | None:
        """Reasons why all endpoints of the teacher are down; `None` while one of them is not."""
        reasons = [lane.down for lane in self.lanes]
        if None in reasons:
            return None
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))

    @property
    def in_flight(self) -> int:
        """Number of requests in flight."""
        return sum(lane.in_flight for lane in self.lanes)

    @property
    def drawn(self) -> bool:
        """`True` if every job has been attempted at least once; the remaining ones wait for a retry."""
        return self._exhausted and not self._ready

    def stop(self, reason: str) -> None:
        """Stops sending requests; those in flight may finish."""
        self.stopped = self.stopped or reason
        self._changed.set()

    async def run(self, jobs: Iterator[Job]) -> None:
        """Sends requests until every job is answered or has failed, the teacher is down, or the budget is used up.

        Afterwards, [`down`] and `stopped` say whether jobs remain without an answer or an error.

        Args:
            jobs (`Iterator[Job]`): Jobs, drawn as slots become free; may be endless.

        Raises:
            PersynError: If a callback raises it (for example, the ledger cannot be written); the requests in flight
                are then cancelled.
        """
        self._jobs, self._exhausted = jobs, False
        try:
            while self._fatal is None:
                self._changed.clear()
                self._on_turn()
                self._launch()
                for lane in self.lanes:
                    lane.settle()
                self._prepare()
                if not self._tasks and (self._ended or self._out_of_money()):
                    self._close_doubts()
                    if self._ended:
                        break
                    continue
                await self._wait()
        finally:
            for lane in self.lanes:
                lane.share.waits_no_more()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fatal is not None:
            raise self._fatal
        self._on_turn()

    @property
    def _ended(self) -> bool:
        """`True` if no more requests may start."""
        if self.down is not None or self.stopped is not None:
            return True
        return self._exhausted and not self._ready and not self._waiting and self._stalled is None

    def _out_of_money(self) -> bool:
        if self._stalled is None or self._purse is None or not self._purse.budget.idle:
            return False
        self.stopped = self._purse.budget.exceeded
        return True

    def _launch(self) -> None:
        """Starts a worker for every free slot, as long as there are rows."""
        while (taken := self._take()) is not None:
            task = asyncio.create_task(self._work(*taken))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    async def _work(self, lane: Lane, attempt: Attempt, held: float) -> None:
        """Runs a worker, which makes one attempt after the other as long as there is a slot for it.

        The next request is sent before the next answer is read, so that answers that arrive together are spread out.
        """
        taken: tuple[Lane, Attempt, float] | None = lane, attempt, held
        while taken is not None:
            await self._ask(*taken)
            self._changed.set()
            taken = self._take() if self._fatal is None else None

    def _take(self) -> tuple[Lane, Attempt, float] | None:
        """Returns the next attempt with its endpoint and reserved amount; `None` if none can start now."""
        while not self._ended:
            lane = max(self.lanes, key=_room)
            attempt = self._next(lane) if lane.places > 0 else None
            if attempt is None:
                return None
            held = self._purse.hold(attempt.job.request) if self._purse is not None else 0.0
            if held is None:
                self._stalled = attempt
                return None
            if lane.enter():
                return lane, attempt, held
            self._give_back(held, False)
            heapq.heappush(self._waiting, attempt)
        return None

    def _next(self, lane: Lane) -> Attempt | None:
        if self._stalled is not None:
            attempt, self._stalled = self._stalled, None
            return attempt
        # An open circuit is probed with a row that has failed already, not with new rows.
        if self._waiting and (self._waiting[0].due <= self._clock() or lane.is_open):
            return heapq.heappop(self._waiting)
        job = self._ready.popleft() if self._ready else self._draw()
        if job is None:
            return None
        self._order += 1
        return Attempt(0.0, self._order, job)

    def _draw(self) -> Job | None:
        job = None if self._exhausted else next(self._jobs, None)
        self._exhausted = job is None
        return job

    def _prepare(self) -> None:
        """Prepares the next jobs ahead of time, because building one takes longer than sending it."""
        while len(self._ready) < _READY and (job := self._draw()) is not None:
            self._ready.append(job)

    async def _wait(self) -> None:
        """Waits for an answer, a free slot, the time of the next attempt or the end of a pause."""
        times = []
        now = self._clock()
        # A row that the budget does not allow now blocks all rows after it.
        ready = not self._ended and self._stalled is None and not self.drawn
        due = self._waiting[0].due if self._waiting and not self._ended and self._stalled is None else None
        for lane in self.lanes:
            if lane.is_full and (ready or (due is not None and due <= now)):
                lane.share.wait(self._changed.set)
            else:
                lane.share.waits_no_more()
        if not self._ended:
            times = [
                lane.opens_at
                for lane in self.lanes
                if lane.down is None and lane.opens_at > now and (lane.share.free > 0 or lane.resume_at > now)
            ]
            free = any(lane.places > 0 for lane in self.lanes)
            times += [due] if due is not None and (free or due > now) else []
            times += [now] if ready and free else []  # a pause has ended since the slots were assigned
        if not times:
            await self._changed.wait()
            return
        timer = asyncio.get_running_loop().call_later(max(0.0005, min(times) - now), self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fatal = error

    async def _ask(self, lane: Lane, attempt: Attempt, held: float) -> None:
        """Makes one attempt and records its outcome for the endpoint, the budget and the row."""
        attempt.tried += 1
        request = attempt.job.request
        sent, began = lane.share.server.mark(), self._clock()
        charged = True  # unless the server says otherwise: a cancelled request may have been charged for
        try:
            async with asyncio.timeout(self._timeout):
                completion = await self._complete(lane, request)
        except TimeoutError:
            lane.share.unavailable()
            error = RetryableError(f"no complete answer in {self._timeout:g} seconds", attempts=3)
            lane.failed(error)
            self._retry(lane, attempt, error)
        except RetryableError as error:
            charged = error.maybe_charged
            lane.failed(error, attempt.job.key)
            self._retry(lane, attempt, error)
        except RowError as error:
            charged = error.maybe_charged
            lane.refused(error)
            self._on_error(attempt.job, str(error))
        except TeacherDownError as error:
            charged = False
            lane.doubted(error)
            self._doubts.add(Doubt(lane, attempt, error, self._clock()))
            if lane.down is not None:
                for doubt in self._doubts.take(lane):
                    self._hand_on(doubt.attempt)
        else:
            seconds = self._clock() - began
            lane.share.answered_since(sent, seconds, completion.completion_tokens)
            lane.succeeded(seconds)
            if self._purse is not None:
                self._purse.paid(held, request, completion)
                held = 0.0
            self._on_answer(attempt.job, completion)
            self._settle_doubts(lane, began)
            return
        finally:
            lane.leave()
            if held:
                self._give_back(held, charged)

    def _settle_doubts(self, lane: Lane, began: float) -> None:
        """Resolves the refusals before `began`, the start of an answered request: they applied to their rows."""
        if not self._doubts:
            return
        for doubt in self._doubts.take(lane, began):
            self._convict(doubt)

    def _convict(self, doubt: Doubt) -> None:
        """Fails the row of a refusal, or retries it if the refusal may be a transient gateway error."""
        attempt = doubt.attempt
        if doubt.error.status in _LAPSES and attempt.tried < _LAPSED_ATTEMPTS:
            attempt.due = self._clock()
            heapq.heappush(self._waiting, attempt)
        else:
            self._on_error(attempt.job, last_words(attempt, doubt.error))

    def _close_doubts(self) -> None:
        """Resolves the remaining refusals: without any answer they applied to all requests, else to their rows."""
        for doubt in self._doubts.take():
            if doubt.lane.down is None and not doubt.lane.seen:
                doubt.lane.down = str(doubt.error)
            if doubt.lane.down is None and self.stopped is None:
                self._convict(doubt)
            else:
                self._hand_on(doubt.attempt)

    def _give_back(self, held: float, charged: bool) -> None:
        if self._purse is not None:
            self._purse.failed(held, charged)

    async def _complete(self, lane: Lane, request: Request) -> Completion:
        """Sends a request, and a second one after `hedge_after` seconds without an answer; the first answer counts."""
        if self._hedge_after is None:
            return await lane.client.complete(request)
        first = asyncio.create_task(lane.client.complete(request))
        asked = {first}
        try:
            done, _ = await asyncio.wait(asked, timeout=self._hedge_after)
            if not done:
                asked |= self._hedge(lane, request)
            while True:
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                asked -= done
                best = next((task for task in done if task.exception() is None), None)
                if best is not None or not asked:
                    return (best or done.pop()).result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _hedge(self, lane: Lane, request: Request) -> set[asyncio.Task[Completion]]:
        """Sends a second request, preferably to another endpoint; returns no task if there is no slot or budget."""
        others = [other for other in self.lanes if other is not lane and other.places > 0]
        chosen = max(others, key=_room, default=lane)
        held = self._purse.hold(request) if self._purse is not None else 0.0
        if held is None:
            return set()
        if chosen.places <= 0 or not chosen.enter():
            self._give_back(held, False)
            return set()

        def ended(task: asyncio.Task[Completion]) -> None:
            chosen.leave()
            self._give_back(held, True)  # one of the two requests is paid for without use

        task = asyncio.create_task(chosen.client.complete(request))
        task.add_done_callback(ended)
        return {task}

    def _retry(self, lane: Lane, attempt: Attempt, error: RetryableError) -> None:
        """Schedules a retry of a failed attempt, or fails its row."""
        if lane.down is not None:
            self._hand_on(attempt)
            return
        gone = isinstance(error, UnavailableError)
        patient = error.overloaded or gone
        allowed = error.attempts or (self._policy.patience if patient else self._policy.attempts)
        attempt.failed[allowed] = attempt.failed.get(allowed, 0) + 1  # a 503 does not use up the attempts for timeouts
        waits = (patient and lane.is_open) or (lane.fails_all and attempt.tried < self._policy.patience)
        if attempt.failed[allowed] >= allowed and not waits:
            self._on_error(attempt.job, last_words(attempt, error))
            return
        # A row refused for load needs no longer delay than others, because the limit has already been lowered.
        step = 1 if error.overloaded and not gone else attempt.tried
        attempt.due = self._clock() + self._rng.uniform(0, self._policy.bound(step)) + (error.retry_after or 0.0)
        heapq.heappush(self._waiting, attempt)

    def _hand_on(self, attempt: Attempt) -> None:
        """Returns an attempt whose endpoint is down to the queue, for the other endpoints or the end of the run."""
        attempt.due = self._clock()
        heapq.heappush(self._waiting, attempt)


def _room(lane: Lane) -> float:
    """Returns the free share of an endpoint; -1 if it has no free slot."""
    places = lane.places
    return places / lane.share.current if places > 0 else -1.0
