"""How bytes go to an endpoint and come back: httpx2 sessions, made safe for strangers' servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import httpx2
from huggingface_hub import constants, get_async_session
from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_hf import __version__
from persyn_hf.errors import RowError, TeacherDownError
from persyn_hf.generation.endpoint import Endpoint
from persyn_hf.generation.faults import perhaps_charged, status_error
from persyn_hf.generation.transport import AiohttpTransport

#: Requests per session. A session has 100 connections, above which waiting counts as timeout; and it looks through
#: all of its connections at every request, so that several small ones cost less than one large one.
POOL = 32
#: What is read of the body of an error.
_ERROR_BYTES = 64 * 2**10

Held = TypeVar("Held")


def open_session(endpoint: Endpoint, timeout: float, max_bytes: int, raising: bool = False) -> httpx2.AsyncClient:
    """A session for one endpoint that keeps to that endpoint.

    It comes from the user's own factory where `set_async_client_factory` was given one (proxies, certificates), else
    it is httpx2's over a leaner transport.

    Args:
        endpoint (`Endpoint`): Its key, where it has one, becomes a header of the session.
        timeout (`float`): Seconds without a byte.
        max_bytes (`int`): Of one answer.
        raising (`bool`, defaults to `False`): Whether a status other than 2xx raises what it means.
    """
    session = get_async_session() if _user_has_a_factory() else _lean_session()
    session.timeout = httpx2.Timeout(timeout)
    session.headers["user-agent"] = f"persyn-hf/{__version__}"
    if endpoint.key is not None:
        session.headers["authorization"] = f"Bearer {endpoint.key}"
    harden(session, endpoint, max_bytes, raising)
    return session


def _lean_session() -> httpx2.AsyncClient:
    async def refuse_offline(request: httpx2.Request) -> None:
        if constants.is_offline_mode():
            raise OfflineModeIsEnabled(f"cannot reach {request.url}: `HF_HUB_OFFLINE` is set")

    return httpx2.AsyncClient(transport=AiohttpTransport(), event_hooks={"request": [refuse_offline]})


def _user_has_a_factory() -> bool:
    # huggingface_hub has no public way to ask; should the names go, its sessions are used as they come.
    from huggingface_hub.utils import _http

    default = getattr(_http, "default_async_client_factory", None)
    return default is None or getattr(_http, "_GLOBAL_ASYNC_CLIENT_FACTORY", None) is not default


def harden(session: httpx2.AsyncClient, endpoint: Endpoint, max_bytes: int, raising: bool) -> None:
    """Lets a session follow no redirect and read no body beyond a number of bytes.

    Statuses are read here, before a library draws conclusions of its own: `AsyncInferenceClient.text_generation`
    answers some 400s by asking again with fewer parameters, without a word.

    Args:
        session (`httpx2.AsyncClient`): Fresh.
        endpoint, max_bytes, raising: As in [`open_session`].
    """
    session.follow_redirects = False
    # What is compressed has no bound: 16 MB of gzip can be 16 GB.
    session.headers["accept-encoding"] = "identity"
    refusal = f"the answer is longer than {max_bytes} bytes (`max_response_bytes`)"

    async def check(response: httpx2.Response) -> None:
        if not response.is_success:
            response.stream = _Bounded(response.stream, _ERROR_BYTES, None)
            if raising:
                await response.aread()
                raise status_error(endpoint, response.status_code, response.text, response.headers)
            return
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TeacherDownError(
                f"{endpoint.address} compresses its answers, though `identity` was asked for; reach it without a proxy"
            )
        if int(response.headers.get("content-length") or 0) > max_bytes:
            raise perhaps_charged(RowError(refusal))
        response.stream = _Bounded(response.stream, max_bytes, refusal)

    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [check, *hooks["response"]]}


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends, or is refused, after a number of bytes; what is unread then closes its connection."""

    def __init__(self, stream: object, max_bytes: int, refusal: str | None) -> None:
        assert isinstance(stream, httpx2.AsyncByteStream)
        self._stream, self._max, self._refusal = stream, max_bytes, refusal

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max
        async for chunk in self._stream:
            left -= len(chunk)
            if left < 0 and self._refusal is not None:
                raise perhaps_charged(RowError(self._refusal))
            yield chunk
            if left < 0:
                return

    async def aclose(self) -> None:
        await self._stream.aclose()


class Sessions(Generic[Held]):
    """As many sessions as the requests in flight need, each used by up to [`POOL`] of them.

    Args:
        make (`Callable[[], Held]`): Opens one.
    """

    def __init__(self, make: Callable[[], Held]) -> None:
        self._make = make
        self._in_flight: list[int] = []
        self.opened: list[Held] = []

    @contextmanager
    def one(self) -> Iterator[Held]:
        """Lends the session with the fewest requests in flight, or a new one where all are full."""
        place = min(range(len(self.opened)), key=self._in_flight.__getitem__, default=-1)
        if place < 0 or self._in_flight[place] >= POOL:
            place = len(self.opened)
            self.opened.append(self._make())
            self._in_flight.append(0)
        self._in_flight[place] += 1
        try:
            yield self.opened[place]
        finally:
            self._in_flight[place] -= 1
