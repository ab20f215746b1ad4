"""The aiohttp wire to an endpoint.

A request takes 1.0 ms of processor time through an httpx2 client and 0.2 ms through aiohttp, whose parser is compiled.
Requests therefore go through aiohttp, unless the user has set a client factory (see `wire`). Errors are converted to
httpx2's exceptions.
"""

from __future__ import annotations

import asyncio
import math
import os
import ssl
from collections import deque
from functools import lru_cache

import aiohttp
import httpx2
import yarl
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.proxies import is_of_the_hub, keep_key_from_proxies, proxy_of
from persyn_hf.endpoints.wire import Reply, Rules, SessionWire, Wire


def open_wire(endpoint: Endpoint, timeout: float, max_bytes: int, room: int = 1) -> Wire:
    """A wire to one endpoint.

    The wire uses the user's own sessions if a factory was set with `set_async_client_factory` (for proxies or
    certificates), otherwise aiohttp's.

    Args:
        endpoint, timeout, max_bytes, room: As in [`Rules`].

    Raises:
        ConfigError: If a proxy of the environment could read the key.
    """
    own_sessions = _user_has_a_factory()
    keep_key_from_proxies(endpoint, own_sessions)
    rules = Rules(endpoint, timeout, max_bytes, room)
    return SessionWire(rules) if own_sessions else AiohttpWire(rules)


def _user_has_a_factory() -> bool:
    # huggingface_hub has no public way to read the factory; if these names disappear, its sessions are used.
    from huggingface_hub.utils import _http

    default = getattr(_http, "default_async_client_factory", None)
    return default is None or getattr(_http, "_GLOBAL_ASYNC_CLIENT_FACTORY", None) is not default


class AiohttpWire:
    """Sends requests to one endpoint through aiohttp. Belongs to one event loop.

    Certificates are verified by httpx2's rules, and proxies are taken from the environment. `~/.netrc` is not read,
    because it could send a key that the configuration does not name. No redirect is followed and no cookie is kept.

    Args:
        rules (`Rules`): Headers to send, and limits of time and size.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=rules.timeout, sock_read=rules.timeout)
        self._proxy = proxy_of(rules.endpoint.address)
        self._session: aiohttp.ClientSession | None = None
        self._turns = _Turns()

    async def ask(self, method: str, url: str, content: bytes | None = None) -> Reply:
        """Sends one request and reads its complete response.

        Raises:
            httpx2.TransportError: If there is no complete response.
            httpx2.InvalidURL: If the URL is not valid.
            OfflineModeIsEnabled: If `HF_HUB_OFFLINE` is set and the address belongs to the Hub.
            RowError, TeacherDownError: As in [`Rules`].
        """
        if constants.is_offline_mode() and is_of_the_hub(url):
            raise OfflineModeIsEnabled("`HF_HUB_OFFLINE` is set")
        target = _url(url)
        if self._session is None:
            self._session = self._open(target.scheme)
        try:
            response = await self._session.request(
                method, target, data=content, timeout=self._timeout, allow_redirects=False, proxy=self._proxy
            )
            try:
                await self._turns.mine()
                return await self._read(response)
            except BaseException:
                response.close()  # unread data makes the connection unusable
                raise
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self, scheme: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            # The scheduler limits the requests in flight.
            connector=aiohttp.TCPConnector(limit=0, ssl=_trusted() if scheme == "https" else False),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._rules.headers,
            auto_decompress=False,
        )

    async def _read(self, response: aiohttp.ClientResponse) -> Reply:
        bound = self._rules.bound(response.status, response.headers)
        if response.content_length is not None and response.content_length <= bound:
            return Reply(response.status, response.headers, await response.read())
        parts: list[bytes] = []
        left = bound
        async for chunk in response.content.iter_any():
            parts.append(chunk)
            left -= len(chunk)
            if left < 0:
                self._rules.too_long(response.status)
                response.close()
                break
        return Reply(response.status, response.headers, b"".join(parts)[:bound])


class _Turns:
    """Reads answers that arrive together a few at a time: a quarter of the waiting ones per round of the loop.

    aiohttp writes a request in a separate task (until Python 3.12). If 64 answers were read in one round, the request
    that follows the first of them would be written only after all 64 were read.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def mine(self) -> None:
        """Waits for the turn to read an answer that has arrived."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
        else:
            self._taken = True
            loop.call_soon(self._pass_on, loop)

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wakes the next answers; called once per round of the loop, after the writes of the previous round."""
        self._taken = bool(self._waiting)
        for _ in range(math.ceil(len(self._waiting) / 4)):
            turn = self._waiting.popleft()
            if not turn.done():  # a cancelled one
                turn.set_result(None)
        if self._taken:
            loop.call_soon(self._pass_on, loop)


def _trusted() -> ssl.SSLContext:
    return _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _context(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Loads the certificates that httpx2 would choose, which depend on these two variables; this takes 0.1 s."""
    return httpx2.create_ssl_context()


@lru_cache(maxsize=256)
def _url(url: str) -> yarl.URL:
    try:
        return yarl.URL(str(httpx2.URL(url)), encoded=True)
    except ValueError as error:
        raise httpx2.InvalidURL(str(error)) from None


def _translated(error: Exception) -> httpx2.TransportError:
    """Converts an exception of aiohttp to the equivalent of httpx2."""
    words = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return httpx2.ConnectTimeout(words)
    if isinstance(error, TimeoutError):
        return httpx2.ReadTimeout(words)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError):
        return httpx2.ConnectError(words)
    if isinstance(error, aiohttp.InvalidURL):
        return httpx2.UnsupportedProtocol(words)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
        return httpx2.RemoteProtocolError(words)
    return httpx2.ReadError(words)
