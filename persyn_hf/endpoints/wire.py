"""The wire to an endpoint: one request, one response, with limits that make untrusted servers safe."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import httpx2
from huggingface_hub import get_async_session
from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import perhaps_charged, status_error, transport_error
from persyn_hf.errors import RowError, TeacherDownError
from persyn_hf.version import __version__

#: Requests per session of httpx2. A session has 100 connections, beyond which waiting counts towards the timeout, and
#: it scans all of its connections at every request, so several small sessions are cheaper than one large one.
POOL = 32
#: Bytes read from the body of an error.
_ERROR_BYTES = 64 * 2**10

Held = TypeVar("Held")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_success(status: int) -> bool:
    return 200 <= status < 300


@dataclass(frozen=True)
class Reply:
    """A complete response.

    Args:
        status (`int`): HTTP status.
        headers (`Mapping[str, str]`): Response headers, with case-insensitive names.
        content (`bytes`): Body; for an error, the beginning of it.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        """`True` if the status is 2xx."""
        return _is_success(self.status)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.content.decode("utf-8", "replace")


class Wire(Protocol):
    """A way to send requests to one endpoint; belongs to one event loop."""

    async def ask(self, method: str, url: str, content: bytes | None = None) -> Reply:
        """Sends one request and reads its response, within the limits of the rules.

        Raises:
            httpx2.TransportError: If there is no complete response.
            httpx2.InvalidURL: If the URL is not valid.
            OfflineModeIsEnabled: If `HF_HUB_OFFLINE` is set.
            RowError: If the response is longer than allowed.
            TeacherDownError: If the response is compressed.
        """
        ...

    async def aclose(self) -> None:
        """Closes all connections."""
        ...


async def exchange(
    wire: Wire, endpoint: Endpoint, method: str, url: str, content: bytes | None = None, within: float | None = None
) -> Reply:
    """Sends one request and converts every failure to an error, as in the table of `faults`.

    Args:
        wire (`Wire`): Wire to the endpoint.
        endpoint (`Endpoint`): Endpoint to send to.
        method, url (`str`), content (`bytes`, *optional*): Method, URL and body of the request.
        within (`float`, *optional*): Deadline for the whole exchange, in seconds. Without it, only the wire's timeout
            between two bytes applies.

    Returns:
        `Reply`: Response with a status of 2xx.

    Raises:
        TeacherError: If there is no such response.
    """
    try:
        async with asyncio.timeout(within):
            reply = await wire.ask(method, endpoint.asked(url), content)
    except (httpx2.HTTPError, httpx2.InvalidURL, OfflineModeIsEnabled, TimeoutError) as error:
        raise transport_error(endpoint, error) from None
    if not reply.is_success:
        raise status_error(endpoint, reply.status, reply.text, reply.headers, url, content)
    return reply


def encoded(body: Mapping[str, object]) -> bytes:
    """Encodes the body of a request as JSON.

    Raises:
        RowError: If a text in it is not valid Unicode.
    """
    try:
        return _encode(body).encode()
    except UnicodeEncodeError:
        raise RowError("the prompt is not valid Unicode (it contains half of a surrogate pair)") from None


@dataclass(frozen=True)
class Rules:
    """Headers sent to an endpoint, and limits of the responses accepted from it.

    Args:
        endpoint (`Endpoint`): Its key, where it has one, and its own headers are sent.
        timeout (`float`): Seconds without a byte.
        max_bytes (`int`): Maximum size of one answer.
        room (`int`, defaults to 1): Factor on `max_bytes` for a stream, whose answer comes in many events.
    """

    endpoint: Endpoint
    timeout: float
    max_bytes: int
    room: int = 1

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        # Compressed data has no size limit: 16 MB of gzip can be 16 GB.
        sent = {"user-agent": f"persyn-hf/{__version__}", "accept": "*/*", "accept-encoding": "identity"}
        return {**sent, "content-type": "application/json", **self.endpoint.sent_headers}

    def bound(self, status: int, headers: Mapping[str, str]) -> int:
        """Returns the maximum number of bytes to read from a response.

        Raises:
            RowError, TeacherDownError: As for [`Wire.ask`].
        """
        compressed = headers.get("content-encoding", "identity") != "identity"
        if not _is_success(status):
            return 0 if compressed else _ERROR_BYTES
        if compressed:
            raise TeacherDownError(
                f"{self.endpoint.address} compresses its answers, although the request asks for `identity`; connect "
                "to it without a proxy"
            )
        if int(headers.get("content-length") or 0) > self.max_bytes * self.room:
            self.too_long(status)
        return self.max_bytes * self.room

    def too_long(self, status: int) -> None:
        """Handles a response beyond its limit: an error is cut there, an answer is refused.

        Raises:
            RowError: If the response is an answer.
        """
        if _is_success(status):
            words = f"the answer is longer than {self.max_bytes} bytes (`max_response_bytes`)"
            if self.room > 1:
                words = (
                    f"the answer's stream is longer than {self.room} × {self.max_bytes} bytes (`max_response_bytes`)"
                )
            raise perhaps_charged(RowError(words))


class SessionWire:
    """Sends requests to one endpoint through the sessions of huggingface_hub's factory.

    Args:
        rules (`Rules`): Headers to send, and limits of time and size.
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
    """Makes a session follow no redirects and read no more than the allowed number of bytes.

    Args:
        session (`httpx2.AsyncClient`): New session.
        rules (`Rules`): Limits of the responses.
    """
    session.follow_redirects = False
    session.headers["accept-encoding"] = rules.headers["accept-encoding"]

    async def check(response: httpx2.Response) -> None:
        bound = rules.bound(response.status_code, response.headers)
        response.stream = _Bounded(response.stream, bound, lambda: rules.too_long(response.status_code))

    hooks = session.event_hooks
    session.event_hooks = {**hooks, "response": [check, *hooks["response"]]}


class _Bounded(httpx2.AsyncByteStream):
    """A body that ends, or is refused, after a number of bytes; the unread rest closes the connection."""

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
    """Sessions for the requests in flight, each used by up to [`POOL`] of them.

    Args:
        make (`Callable[[], Held]`): Opens a session.
    """

    def __init__(self, make: Callable[[], Held]) -> None:
        self._make = make
        self._in_flight: list[int] = []
        self.opened: list[Held] = []

    @contextmanager
    def one(self) -> Iterator[Held]:
        """Lends the session with the fewest requests in flight, or a new one if all are full."""
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
