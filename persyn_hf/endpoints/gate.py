"""A gate that keeps the requests to a server within the limit that all of its callers share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from persyn_hf.endpoints.server import SLOT_POLL, Share, server
from persyn_hf.errors import RetryableError, UnavailableError


class Gate:
    """Admits requests to a server in order of arrival: `async with gate: ...` around every request.

    The exception of a request adjusts the server's limit: a `RetryableError` that is `overloaded` lowers it, and many
    `UnavailableError`s do.

    Args:
        share (`Share`): The caller's share of the server.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> None:
        async with self._turn:
            while not self._share.enter():
                await self._wait()
        self._share.settle()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._share.answered()
        elif isinstance(error, UnavailableError):
            self._share.unavailable()
        elif isinstance(error, RetryableError) and error.overloaded:
            self._share.overloaded()
        self._share.exit()
        if not self._turn.locked():
            self._share.settle()

    async def _wait(self) -> None:
        self._changed.clear()
        self._share.wait(self._changed.set)
        # Other processes do not notify this one when they release a slot.
        timer = asyncio.get_running_loop().call_later(SLOT_POLL, self._changed.set) if self._share.free > 0 else None
        try:
            await self._changed.wait()
        finally:
            self._share.waits_no_more()
            if timer is not None:
                timer.cancel()


@contextmanager
def gate(address: str, max_concurrency: int | None = None) -> Iterator[Gate]:
    """Opens a gate for requests to an address, for the duration of the block.

    Args:
        address (`str`): Base URL of the server.
        max_concurrency (`int`, *optional*): Number of requests that the server can handle at once; measured if it is
            not given.

    Example:
        >>> async def ask_all(requests):
        ...     with gate("http://localhost:8000", 32) as places:
        ...         async def one(request):
        ...             async with places:
        ...                 return await ask(request)
        ...         return await asyncio.gather(*map(one, requests))
    """
    share = server(address).join(max_concurrency)
    try:
        yield Gate(share)
    finally:
        share.close()
