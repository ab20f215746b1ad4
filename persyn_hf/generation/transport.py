"""The wire under the sessions: aiohttp, whose parser is compiled, behind httpx2's public seam for transports.

httpx2's own transport takes 0.6 ms of processor time per request, aiohttp 0.15. All that the sessions do (hooks,
bounds, redirects refused, errors by httpx2's names) stays what it is.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from functools import lru_cache
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import yarl

#: Bytes of a body that is read with its head: streams have a price too.
_AT_ONCE = 2**16
_SKIPPED = ("accept", "accept-encoding", "content-type", "user-agent")


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends what an `httpx2.AsyncClient` sends through aiohttp. Belongs to one event loop.

    Certificates are verified by httpx2's own rules and proxies taken from the environment; `~/.netrc` is not read,
    since it would be a key that nobody named.

    Example:
        >>> client = httpx2.AsyncClient(transport=AiohttpTransport())
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request; a long body is read as it is asked for, a short one with its head.

        Raises:
            httpx2.TransportError: As httpx2's own transport does.
        """
        if self._session is None:
            self._session = _open_session(request.url.scheme)
        content = await request.aread()
        try:
            answer = await self._session.request(
                request.method, _url(str(request.url)), data=content or None,
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                timeout=_timeout(**request.extensions.get("timeout", {})), allow_redirects=False,
                proxy=_proxy(request.url.scheme, request.url.host),
            )  # fmt: skip
            known = answer.content_length
            small = known is not None and known <= _AT_ONCE
            body = httpx2.ByteStream(await answer.read()) if small else _Body(answer, request)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, request) from error
        # Lengths and codings are left to httpx2, but aiohttp has taken the chunks apart.
        headers = [pair for pair in answer.raw_headers if pair[0].lower() != b"transfer-encoding"]
        return httpx2.Response(answer.status, headers=headers, stream=body, request=request)

    async def aclose(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()


class _Body(httpx2.AsyncByteStream):
    """A response's body; one that is closed before its end closes its connection."""

    def __init__(self, answer: aiohttp.ClientResponse, request: httpx2.Request) -> None:
        self._answer, self._request = answer, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _translated(error, self._request) from error

    async def aclose(self) -> None:
        self._answer.close()


def _open_session(scheme: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        # The scheduler bounds what is in flight.
        connector=aiohttp.TCPConnector(limit=0, ssl=_trusted() if scheme == "https" else False),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_SKIPPED,
    )


def _trusted() -> ssl.SSLContext:
    return _context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)
def _context(file: str | None, folder: str | None) -> ssl.SSLContext:
    """httpx2's own choice of certificates, which looks at these two variables; loading them takes 0.1 s."""
    return httpx2.create_ssl_context()


@lru_cache(maxsize=256)
def _url(url: str) -> yarl.URL:
    return yarl.URL(url, encoded=True)


@lru_cache(maxsize=256)
def _timeout(
    connect: float | None = None, read: float | None = None, write: float | None = None, pool: float | None = None
) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=read)


@lru_cache(maxsize=256)
def _proxy(scheme: str, host: str) -> str | None:
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _translated(error: Exception, request: httpx2.Request) -> httpx2.TransportError:
    """aiohttp's exceptions by the names of httpx2's."""
    words = str(error) or type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return httpx2.ConnectTimeout(words, request=request)
    if isinstance(error, TimeoutError):
        return httpx2.ReadTimeout(words, request=request)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError):
        return httpx2.ConnectError(words, request=request)
    if isinstance(error, aiohttp.InvalidURL):
        return httpx2.UnsupportedProtocol(words, request=request)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | aiohttp.ClientResponseError):
        return httpx2.RemoteProtocolError(words, request=request)
    return httpx2.ReadError(words, request=request)
