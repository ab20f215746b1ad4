"""Parallel requests, with retries, to a server that is not a teacher: a judge, a student or a router."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_exponential_jitter

from persyn_hf.config import Service
from persyn_hf.endpoints.aiohttp_wire import open_wire
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.event_loop import say
from persyn_hf.endpoints.faults import body_error
from persyn_hf.endpoints.gate import Gate, gate
from persyn_hf.endpoints.refusals import Refusals
from persyn_hf.endpoints.wire import Wire, encoded, exchange
from persyn_hf.errors import (
    PassingError,
    RequestError,
    RetryableError,
    RowError,
    ScoringError,
    TeacherDownError,
    UnavailableError,
)

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Sends one request and returns the JSON of its answer: `await send(url)` is a GET, `await send(url, body)` a POST.
Send = Callable[..., Awaitable[Any]]

#: Seconds without any answer after which a server that has answered before is down.
_DOWN_AFTER = 300.0
#: Where it refuses for load it is alive (its limit may be per minute), and waited for so many times as long.
_LOAD_PATIENCE = 5
#: Seconds for which one is waited for that has refused for load from the start: longer than a limit per minute.
_LOAD_UNSEEN = 90.0
#: Tries of a request that is refused for load.
_LOAD_ATTEMPTS = 100
#: First pause between two tries, and the most by which chance lengthens one, seconds.
_FIRST_PAUSE = 0.3


@dataclass(frozen=True)
class Patience:
    """Limits for the requests to a server: concurrency, timeout, attempts and pauses.

    Args:
        max_concurrency (`int`): Requests in flight at once.
        timeout (`float`): Seconds for one request.
        attempts (`int`): Tries of one request that fails for other reasons than load.
        max_response_bytes (`int`): An answer is not read further than this.
        longest_pause (`float`, defaults to 30): Seconds between two tries; ten times as many where the server asks for
            them.
        down_after (`float`, defaults to 300): Seconds without any answer after which a server that has answered
            before is down; five times as many where it refuses for load.
    """

    max_concurrency: int
    timeout: float
    attempts: int
    max_response_bytes: int
    longest_pause: float = 30.0
    down_after: float = _DOWN_AFTER

    @classmethod
    def of(cls, service: Service) -> Patience:
        """Reads the settings of a service."""
        return cls(
            service.max_concurrency,
            service.timeout,
            service.attempts,
            service.max_response_bytes,
            down_after=service.down_after or _DOWN_AFTER,
        )


@dataclass
class _Pulse:
    """State of a server: the time since it last answered."""

    down_after: float
    seen: bool = False
    failing_since: float | None = None

    def answered(self) -> None:
        """A request was answered."""
        self.seen, self.failing_since = True, None

    def may_come_back(self, error: RetryableError) -> bool:
        """Returns whether a request that failed because of load, or because nobody answered, is sent again."""
        now = time.monotonic()
        self.failing_since = now if self.failing_since is None else self.failing_since
        gone = isinstance(error, UnavailableError)
        if self.seen:
            bound = self.down_after * (1 if gone else _LOAD_PATIENCE)
        else:
            bound = 0.0 if gone else min(_LOAD_UNSEEN, self.down_after)
        return now - self.failing_since < bound


async def ask_all(
    endpoint: Endpoint,
    patience: Patience,
    items: Sequence[Item],
    ask: Callable[[Send, Item], Awaitable[Result]],
    answered: Callable[[Item], object] | None = None,
    again: str = "the next run sends all again",
) -> list[Result | RowError | RetryableError]:
    """Sends the requests of every item to a server, in parallel, within the limit that all callers of it share.

    If the call is cancelled, it writes the progress to standard error.

    Args:
        endpoint (`Endpoint`): Endpoint of the server.
        patience (`Patience`): Limits for the requests.
        items (`Sequence`): Items to send requests for.
        ask (`Callable`): Sends the requests of one item and reads the answer. If it raises a `RetryableError`, it is
            called again; any error that is neither that nor a `RowError` stops all items.
        answered (`Callable`, *optional*): Callback, called with every finished item, answered or not.
        again (`str`, *optional*): Fate of the answers in the next run, for the message on cancellation.

    Returns:
        `list`: The result of `ask` for every item, in order, or the last error of an item without an answer.

    Raises:
        ConfigError: If a proxy of the environment could read the key.
        TeacherDownError: If no request can succeed: a refused key, an unknown path, a redirect, a server that is not
            reachable, or the same refusal of every request.
    """
    wire = open_wire(endpoint, patience.timeout, patience.max_response_bytes)
    through = 0
    refusals = Refusals()
    pulse = _Pulse(patience.down_after)

    async def send(url: str, body: Mapping[str, object] | None = None) -> Any:
        return await _json(wire, endpoint, patience.timeout, url, body)

    async def one(item: Item, places: Gate) -> Result | RowError | RetryableError:
        nonlocal through
        found: Result | RowError | RetryableError
        try:
            found = await _retried(patience, places, pulse, lambda: ask(send, item))
            refusals.answered()
            pulse.answered()
        except TeacherDownError as error:
            if refusals.believes(error):
                raise
            found = RowError(str(error))
            found.doubtful = True
        except RowError as error:
            found = error
            pulse.answered()
            if (reason := refusals.refused(error)) is not None:
                raise TeacherDownError(f"{endpoint.address}: {reason}") from None
        except RetryableError as error:
            found = error
        through += 1
        if answered is not None:
            answered(item)
        return found

    async with aclosing(wire):
        try:
            with gate(endpoint.address, patience.max_concurrency) as places:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(item, places)) for item in items]
        except asyncio.CancelledError:
            answers = f"{through:,} of {len(items):,} requests were answered"
            say(f"{endpoint.address}: {answers}; {again}.")
            raise
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    results = [task.result() for task in tasks]
    doubtful = next((one for one in results if isinstance(one, RowError) and one.doubtful), None)
    if doubtful is not None and not refusals.seen:  # no answer has shown that the refusal was about a single item
        raise TeacherDownError(str(doubtful))
    return results


async def ask_service(
    endpoint: Endpoint,
    service: Service,
    items: Sequence[Item],
    ask: Callable[[Send, Item], Awaitable[Result]],
    answered: Callable[[Item], object] | None = None,
    again: str = "the next run sends all again",
) -> list[Result | RequestError]:
    """Like [`ask_all`], for a server that scores: errors are raised as `ScoringError`.

    Args:
        endpoint, items, ask, answered, again: As for [`ask_all`].
        service (`Service`): Configuration of the server.

    Returns:
        `list`: The result of `ask` for every item, in order, or the `RequestError` of an item without an answer.

    Raises:
        ConfigError: If a proxy of the environment could read the key.
        ScoringError: If no request can succeed.
    """
    try:
        found = await ask_all(endpoint, Patience.of(service), items, ask, answered, again)
    except TeacherDownError as error:
        raise ScoringError(f"{error}.") from None
    return [_of_scoring(endpoint, one) if isinstance(one, RowError | RetryableError) else one for one in found]


def _of_scoring(endpoint: Endpoint, error: RowError | RetryableError) -> RequestError:
    words = str(error) if endpoint.address in str(error) else f"{endpoint.address}: {error}"
    return PassingError(words, error.retry_after) if isinstance(error, RetryableError) else RequestError(words)


async def _json(wire: Wire, endpoint: Endpoint, timeout: float, url: str, body: Mapping[str, object] | None) -> Any:
    content = None if body is None else encoded(body)
    reply = await exchange(wire, endpoint, "GET" if body is None else "POST", url, content, timeout)
    try:
        answer = json.loads(reply.content)
    except (ValueError, RecursionError):
        raise body_error(endpoint, reply.text, "JSON") from None
    if isinstance(answer, dict) and answer.get("error"):
        raise body_error(endpoint, reply.text)
    return answer


async def _retried(patience: Patience, places: Gate, pulse: _Pulse, ask: Callable[[], Awaitable[Result]]) -> Result:
    failed: Counter[bool] = Counter()  # tries, by whether they failed for load or since nobody was there

    def spent(state: RetryCallState) -> bool:
        """Returns whether requests stop."""
        error = state.outcome.exception() if state.outcome is not None else None
        assert isinstance(error, RetryableError)
        passing = error.overloaded or isinstance(error, UnavailableError)
        failed[passing] += 1
        if passing and pulse.may_come_back(error):
            return failed[True] >= _LOAD_ATTEMPTS
        return (failed.total() if passing else failed[False]) >= patience.attempts

    def pause(state: RetryCallState) -> float:
        """Exponential backoff with jitter; longer if the server asks for it."""
        grown = float(wait_exponential_jitter(_FIRST_PAUSE, patience.longest_pause, jitter=_FIRST_PAUSE)(state))
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, RetryableError) else None
        return max(grown, min(asked or 0.0, 10 * patience.longest_pause))

    retrying = AsyncRetrying(retry=retry_if_exception_type(RetryableError), wait=pause, stop=spent, reraise=True)
    try:
        async for attempt in retrying:
            with attempt:
                async with places:  # not during the pauses between two tries
                    return await ask()
    except UnavailableError as error:
        if error.status is None:  # nobody listens, so that other requests fare no better
            raise TeacherDownError(f"{error} ({failed.total()} attempts)") from None
        raise
    raise AssertionError("tenacity raises or returns")
