"""How bytes go to an endpoint and come back: one request, one response, made safe for strangers' servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import httpx2
from huggingface_hub import get_async_session
from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import perhaps_charged, status_error, transport_error
from persyn_hf.errors import RowError, TeacherDownError
from persyn_hf.version import __version__

#: Requests per session of httpx2. A session has 100 connections, above which waiting counts as timeout; and it looks
#: through all of its connections at every request, so that several small ones cost less than one large one.
POOL = 32
#: What is read of the body of an error.
_ERROR_BYTES = 64 * 2**10

Held = TypeVar("Held")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_success(status: int) -> bool:
    return 200 <= status < 300


@dataclass(frozen=True)
class Reply:
    """A whole response.

    Args:
        status (`int`): Its status.
        headers (`Mapping[str, str]`): Its headers, whatever the case of their names.
        content (`bytes`): Its body; of an error's, the beginning.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return _is_success(self.status)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")


class Wire(Protocol):
    """A way to send requests to one endpoint; belongs to one event loop."""

    async def ask(self, method: str, url: str, content: bytes | None = None) -> Reply:
        """Sends one request, and reads its response as far as the rules allow.

        Raises:
            httpx2.TransportError: If there is no whole response.
            httpx2.InvalidURL: If nobody can be asked there.
            OfflineModeIsEnabled: If `HF_HUB_OFFLINE` is set.
            RowError: If the response is longer than allowed.
            TeacherDownError: If it is compressed.
        """
        ...

    async def aclose(self) -> None:
        """Closes all connections."""
        ...


async def exchange(
    wire: Wire, endpoint: Endpoint, method: str, url: str, content: bytes | None = None, within: float | None = None
) -> Reply:
    """Sends one request; whatever goes wrong has the meaning that the table of `faults` gives it.

    Args:
        wire (`Wire`): To the endpoint.
        endpoint (`Endpoint`): Whom.
        method, url (`str`), content (`bytes`, *optional*): The request.
        within (`float`, *optional*): Seconds for all of it. Without it, only a pause of the wire's timeout ends it.

    Returns:
        `Reply`: With a status of 2xx.

    Raises:
        TeacherError: If there is none.
    """
    try:
        async with asyncio.timeout(within):
            reply = await wire.ask(method, endpoint.asked(url), content)
    except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled, TimeoutError) as error:
        raise transport_error(endpoint, error) from None
    if not reply.is_success:
        raise status_error(endpoint, reply.status, reply.text, reply.headers, url, content)
    return reply


def encoded(body: Mapping[str, Any]) -> bytes:
    """A request's body as JSON.

    Raises:
        RowError: If a text in it is no Unicode.
    """
    try:
        return _encode(body).encode()
    except UnicodeEncodeError:
        raise RowError("the prompt is no valid Unicode (it holds half of a surrogate pair)") from None


@dataclass(frozen=True)
class Rules:
    """What is sent to an endpoint beside the requests, and what is accepted of it.

    Args:
        endpoint (`Endpoint`): Its key, where it has one, and its own headers are sent.
        timeout (`float`): Seconds without a byte.
        max_bytes (`int`): Of one answer.
        room (`int`, defaults to 1): How many times as much is read, of a stream whose answer is in many events.
    """

    endpoint: Endpoint
    timeout: float
    max_bytes: int
    room: int = 1

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        # What is compressed has no bound: 16 MB of gzip can be 16 GB.
        sent = {"user-agent": f"persyn-hf/{__version__}", "accept": "*/*", "accept-encoding": "identity"}
        return {**sent, "content-type": "application/json", **self.endpoint.sent_headers}

    def bound(self, status: int, headers: Mapping[str, str]) -> int:
        """Bytes that may be read of a response.

        Raises:
            RowError, TeacherDownError: As for [`Wire.ask`].
        """
        compressed = headers.get("content-encoding", "identity") != "identity"
        if not _is_success(status):
            return 0 if compressed else _ERROR_BYTES
        if compressed:
            raise TeacherDownError(
                f"{self.endpoint.address} compresses its answers, though `identity` was asked for; reach it without "
                "a proxy"
            )
        if int(headers.get("content-length") or 0) > self.max_bytes * self.room:
            self.too_long(status)
        return self.max_bytes * self.room

    def too_long(self, status: int) -> None:
        """A response goes on beyond its bound: an error's is cut there, an answer is refused.

        Raises:
            RowError: If it is an answer.
        """
        if _is_success(status):
            words = f"the answer is longer than {self.max_bytes} bytes (`max_response_bytes`)"
            if self.room > 1:
                words = (
                    f"the answer's stream is longer than {self.room} × {self.max_bytes} bytes (`max_response_bytes`)"
                )
            raise perhaps_charged(RowError(words))


class SessionWire:
    """One endpoint asked through the sessions of huggingface_hub's factory.

    Args:
        rules (`Rules`): Headers to send, and what is not waited for or read.
    """

    def __init__(self, rules: Rules) -> None:
        def session() -> httpx2.AsyncClient:
            opened = get_async_session()
            opened.timeout = httpx2.Timeout(rules.timeout)
            opened.headers.update(rules.headers)
            harden(opened, rules)
            return opened

        self._sessions = Sessions(session)

    async def ask(self, method: str, url: str, content: bytes | None = None) -> Reply:
        """See [`Wire.ask`]."""
        with self._sessions.one() as session:
            response = await session.request(method, url, content=content)
        return Reply(response.status_code, response.headers, response.content)

    async def aclose(self) -> None:
        """Closes all connections."""
        for session in self._sessions.opened:
            await session.aclose()


def harden(session: httpx2.AsyncClient, rules: Rules) -> None:
    """Lets a session follow no redirect and read no body beyond a number of bytes.

    Args:
        session (`httpx2.AsyncClient`): Fresh.
        rules (`Rules`): What is accepted.
    """
    session.follow_redirects = False
    session.headers["accept-encoding"] = rules.headers["accept-encoding"]

    async def check(response: httpx2.Response) -> None:
        bound = rules.bound(response.status_code, response.headers)
        response.stream = _Bounded(response.stream, bound, lambda: rules.too_long(response.status_code))

    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [check, *hooks["response"]]}


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends, or is refused, after a number of bytes; what is unread then closes its connection."""

    def __init__(self, stream: object, max_bytes: int, too_long: Callable[[], None]) -> None:
        assert isinstance(stream, httpx2.AsyncByteStream)
        self._stream, self._max, self._too_long = stream, max_bytes, too_long

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._max
        async for chunk in self._stream:
            if len(chunk) > left:
                self._too_long()
                yield chunk[:left]
                return
            left -= len(chunk)
            yield chunk

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
