"""Requests to a server that scores: many at once, retried with growing pauses, and never with a token unasked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx2
from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from persyn_hf.config import Service
from persyn_hf.endpoints.event_loop import say
from persyn_hf.endpoints.gate import Gate, gate
from persyn_hf.errors import ConfigError, PassingError, RequestError, ScoringError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Longest pause between two tries, seconds.
_LONGEST_PAUSE = 30.0
#: Longest excerpt of a server's own words in an error.
_EXCERPT = 300
#: Statuses under which the same request may succeed later.
_PASSING = {408, 409, 424, 425, 429}


def service_key(service: Service) -> str:
    """The key that is sent: `-` where none is named, for without one hub clients send the user's own token anywhere.

    Raises:
        ConfigError: If a key or the Hub token is wanted and there is none.
    """
    if service.use_hub_token:
        token = get_token()
        if not token:
            raise ConfigError(f"{service.url}: `use_hub_token` is set but there is no token; run `hf auth login`.")
        return token
    if service.api_key_env is None:
        return "-"
    key = os.environ.get(service.api_key_env)
    if not key:
        raise ConfigError(f"{service.url}: the environment variable {service.api_key_env} is not set.")
    return key


async def ask_all(
    service: Service,
    items: Sequence[Item],
    ask: Callable[[Item], Awaitable[Result]],
    answered: Callable[[Item], Any] | None = None,
) -> list[Result | RequestError]:
    """Asks for every item, at most `max_concurrency` at once, of all that ask that address.

    Where it is cancelled, a line says how far it was.

    Args:
        service (`Service`): Whom, and how patiently.
        items (`Sequence`): What is asked.
        ask (`Callable`): Sends one request. Errors of the HTTP clients are told apart here; a `RequestError` that it
            raises itself stands.
        answered (`Callable`, *optional*): Called with every item that is through, answered or not.

    Returns:
        `list`: In order, the answer, or the `RequestError` of an item that has none.

    Raises:
        ScoringError: If nothing can succeed: a refused key, no such path, nobody listening.
    """
    through = 0

    async def one(item: Item, places: Gate) -> Result | RequestError:
        nonlocal through
        try:
            found: Result | RequestError = await _retried(service, item, ask, places)
        except RequestError as error:
            found = error
        through += 1
        if answered is not None:
            answered(item)
        return found

    try:
        with gate(service.url, service.max_concurrency) as places:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item, places)) for item in items]
    except asyncio.CancelledError:
        say(f"{service.url}: {through:,} of {len(items):,} requests were answered; the next run sends all again.")
        raise
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _retried(service: Service, item: Item, ask: Callable[[Item], Awaitable[Result]], places: Gate) -> Result:
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(PassingError),
            wait=_pause,
            stop=stop_after_attempt(service.attempts),
            reraise=True,
        ):
            with attempt:
                async with places:  # not during the pauses between two tries
                    try:
                        return await ask(item)
                    except (httpx2.HTTPError, OfflineModeIsEnabled) as error:
                        raise _told_apart(service, error) from None
    except PassingError as error:
        if error.nobody:
            raise ScoringError(f"{error} ({service.attempts} attempts).") from None
        raise
    raise AssertionError("tenacity raises or returns")


def _pause(state: RetryCallState) -> float:
    """Growing, with chance in it; longer where the server says so."""
    grown = float(wait_exponential_jitter(initial=0.3, max=_LONGEST_PAUSE)(state))
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, PassingError) else None
    return max(grown, min(asked or 0.0, 10 * _LONGEST_PAUSE))


def _told_apart(service: Service, error: Exception) -> ScoringError:
    if isinstance(error, OfflineModeIsEnabled):
        return ScoringError("HF_HUB_OFFLINE blocks every endpoint; unset it to score over HTTP.")
    if isinstance(error, InferenceTimeoutError | httpx2.TimeoutException):
        return PassingError(f"no answer from {service.url} in {service.timeout:g} s")
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError | httpx2.HTTPStatusError) else None
    if response is None and isinstance(error.__cause__, HfHubHTTPError):  # the client's own errors of `/generate`
        response = error.__cause__.response
    if response is not None:
        return _by_status(service, response)
    if isinstance(error, httpx2.ConnectError):
        return PassingError(f"cannot connect to {service.url}", nobody=True)
    return PassingError(f"the connection to {service.url} broke: {type(error).__name__}")


def _by_status(service: Service, response: httpx2.Response) -> ScoringError:
    status = response.status_code
    if status in (401, 403):
        named = service.api_key_env or ("the Hugging Face token" if service.use_hub_token else None)
        mend = f"check {named}" if named else "name its variable in `api_key_env`"
        return ScoringError(f"{service.url} refused the key (HTTP {status}): {mend}.")
    words = excerpt(response.text, service_key(service))
    said = f"{service.url} answered HTTP {status}" + (f": {words}" if words else "")
    if status == 404:
        return ScoringError(said)
    if status in _PASSING or status >= 500:
        return PassingError(said, _seconds(response.headers.get("retry-after")))
    return RequestError(said)


def excerpt(text: str, key: str = "-") -> str:
    """A short piece of foreign text on one line that surely holds no key."""
    shown = " ".join(text.split())
    if len(key) > 1:
        shown = shown.replace(key, "***")
    return shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…"


def _seconds(value: str | None) -> float | None:
    try:
        return max(float(value), 0.0) if value is not None else None
    except ValueError:
        return None  # a date: the growing pause decides
