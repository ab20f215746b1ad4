"""One address is one server: all that ask it share its limit, in this process and beside others of this user."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from persyn_hf.endpoints.concurrency import AdaptiveLimit, Mark
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.slots import Slots

_log = logging.getLogger(__name__)
#: Where a server's limit is known to nobody: the first guess, and what is never exceeded.
_FIRST_GUESS, _HIGHEST = 16, 1024
#: Seconds for which a server's limit is remembered when nobody asks it: `persyn_generate` may be called for every row.
_FRESH = 300.0
#: Seconds without any slot after which a line says who holds them, and seconds between two looks at them.
_PATIENCE, SLOT_POLL = 5.0, 0.02
#: Answers of a caller that tell how its answers' times compare with those of the others.
_SAMPLE = 8
#: Weight of the latest answer in what is typical of a server.
_MEMORY = 0.1
#: A number in flight that has fallen by this factor while a request ran is falling.
_ENDING = 1.25
_PORTS = {"http": 80, "https": 443}


class Server:
    """What one server bears, and who asks it.

    Callers [`join`] it. Of those that wait for a place, the one with the fewest requests in flight comes first, then
    the one that has waited longest; whoever has no work leaves its places to the others. All methods may be called
    from any thread.

    Args:
        limit (`AdaptiveLimit`): Requests in flight, of all callers together.
        address (`str`, *optional*): Where it is; with one, a known limit is shared with other processes.
        clock (`Callable[[], float]`, *optional*): Monotonic seconds.
    """

    def __init__(
        self, limit: AdaptiveLimit, address: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self._clock = clock
        self._area, self._at = 0.0, clock()  # requests in flight, summed over time
        self.address = address
        self.lock = threading.RLock()
        self.used = time.monotonic()
        self.typical: float | None = None  # seconds per token
        self._shares: list[Share] = []
        self._waiting: dict[Share, None] = {}
        self._entries = 0
        self._known: int | None = None
        self._slots: Slots | None = None
        self._blocked_since: float | None = None
        self._told: set[int] = set()

    @property
    def idle(self) -> bool:
        """Whether nobody asks it."""
        return not self._shares

    def join(self, known: int | None = None) -> Share:
        """One more that asks the server, until it [`Share.close`]s.

        Args:
            known (`int`, *optional*): Requests that the server bears at once, as far as this caller knows. The least
                of all callers' holds for all of them together.
        """
        with self.lock:
            share = Share(self, known)
            self._shares.append(share)
            self._rebound()
            return share

    def leave(self, share: Share) -> None:
        """The caller asks no more."""
        with self.lock:
            self._shares.remove(share)
            self._waiting.pop(share, None)
            self.used = time.monotonic()
            self._rebound()
            if self.idle and self._slots is not None:
                self._slots.close()
                self._slots = None
            self._offer()

    def enter(self, share: Share) -> bool:
        """Counts a request in flight; false where there is no place, or other processes hold all slots."""
        with self.lock:
            if self.free(share) <= 0 or not self._take_slot():
                return False
            self.mark()
            self.limit.in_flight += 1
            share.in_flight += 1
            self._entries += 1
            share.entered = self._entries
            return True

    def exit(self, share: Share) -> None:
        """The request is no more in flight."""
        with self.lock:
            self.mark()
            self.limit.in_flight -= 1
            share.in_flight -= 1
            while self._slots is not None and self._slots.held > self.limit.in_flight:
                self._slots.release()
            self._offer()

    def settle(self) -> None:
        """Leaves slots that were left, and not taken again, to other processes."""
        with self.lock:
            if self._slots is not None:
                self._slots.settle()

    def mark(self) -> Mark:
        """The sum of requests in flight over time, up to now: two of them give the mean between."""
        with self.lock:
            now = self._clock()
            self._area += self.limit.in_flight * (now - self._at)
            self._at = now
            return Mark(now, self._area, self.limit.in_flight)

    def free(self, share: Share) -> int:
        """Requests that a caller may start now."""
        limit = self.limit
        free = limit.current - limit.in_flight
        if free <= 0 or not self._waiting:
            return free
        with self.lock:
            own = share.turn
            return free - sum(other.turn < own for other in self._waiting if other is not share)

    def wait(self, share: Share, wake: Callable[[], None] | None) -> None:
        """Notes what to call when there may be a place for a caller; `None` where it waits no more."""
        with self.lock:
            if wake is None:
                self._waiting.pop(share, None)
            else:
                share.wake = wake
                self._waiting[share] = None
            self._offer(looked=share)

    def is_waiting(self, share: Share) -> bool:
        """Whether a caller waits for a place."""
        return share in self._waiting

    def pass_on(self, share: Share) -> None:
        """Wakes the caller whose turn it is, where there is a place that another one, which has just looked, left."""
        if self.limit.free > 0:
            with self.lock:
                self._offer(looked=share)

    def forget(self) -> None:
        """In a process that was forked: leaves the slots to the one that it was forked from."""
        if self._slots is not None:
            self._slots.close()

    def _offer(self, looked: Share | None = None) -> None:
        """Wakes the caller whose turn it is, where there is a place; not the one that has just looked for one."""
        if self._waiting and self.limit.free > 0:
            first = min(self._waiting, key=lambda share: share.turn)
            if first is not looked:
                first.wake()

    def _rebound(self) -> None:
        if self.address is None:
            return
        given = {share.known for share in self._shares if share.known is not None}
        known = min(given, default=None)
        if len(given) > 1 and not given <= self._told:
            self._told = given
            _log.warning(
                "%s is one server, so one `max_concurrency` holds for all that ask it: %d, the least of %s",
                self.address,
                known,
                ", ".join(map(str, sorted(given))),
            )
        if known != self._known and not self.idle:
            self._known = known
            self.limit.bound(_HIGHEST if known is None else known, known is not None)
        self._share_slots(None if self.idle else known)

    def _share_slots(self, known: int | None) -> None:
        if known is None or self.address is None or not Slots.supported():
            return
        if self._slots is not None:
            self._slots.resize(known)
            return
        try:
            self._slots = Slots(self.address, known)
        except OSError as error:
            _log.warning("%s: processes side by side do not share its limit: %s", self.address, error)

    def _take_slot(self) -> bool:
        if self._slots is None or self._known is None or self._slots.acquire():
            self._blocked_since = None
            return True
        now = time.monotonic()
        if self.limit.in_flight:
            self._blocked_since = None
        elif self._blocked_since is None:
            self._blocked_since = now
        elif now - self._blocked_since > _PATIENCE:
            self._blocked_since = float("inf")  # said once
            holders = ", ".join(f"{number} ({state})" for number, state in sorted(self._slots.holders().items()))
            _log.warning("%s: other processes hold all %d places: %s; waiting", self.address, self._known, holders)
        return False


class Share:
    """One caller's part in a [`Server`].

    Args:
        server (`Server`): Whom it asks.
        known (`int`, *optional*): Requests that the server bears at once, as far as this caller knows.
    """

    def __init__(self, server: Server, known: int | None = None) -> None:
        self.server = server
        self.known = known
        self.in_flight = 0
        self.entered = 0
        self.wake: Callable[[], None] = lambda: None
        self._wake: Callable[[], None] | None = None
        self._scale: float | None = None
        self._sample: list[float] = []
        self._first_answer: float | None = None

    @property
    def turn(self) -> tuple[int, int]:
        """Its place in the order of those that wait."""
        return self.in_flight, self.entered

    @property
    def free(self) -> int:
        """Requests that it may start now."""
        return self.server.free(self)

    @property
    def beside(self) -> int:
        """Requests in flight to the server, whoever asked."""
        return self.server.limit.in_flight

    @property
    def current(self) -> int:
        """Requests that the server bears at once, as far as is known now."""
        return self.server.limit.current

    def enter(self) -> bool:
        """Counts a request in flight; false where there is no place, or other processes hold all slots."""
        return self.server.enter(self)

    def exit(self) -> None:
        """The request is no more in flight."""
        self.server.exit(self)

    def settle(self) -> None:
        """Leaves slots that were left, and not taken again, to other processes."""
        self.server.settle()

    def wait(self, wake: Callable[[], None]) -> None:
        """Asks to be woken in the running event loop when there may be a place, until it [`waits_no_more`]."""
        if wake == self._wake and self.server.is_waiting(self):
            self.server.pass_on(self)
            return
        self._wake = wake
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def from_anywhere() -> None:
            if threading.get_ident() == thread:
                wake()
            elif not loop.is_closed():
                loop.call_soon_threadsafe(wake)

        self.server.wait(self, from_anywhere)

    def waits_no_more(self) -> None:
        """Leaves the places to others."""
        if self.server.is_waiting(self):
            self.server.wait(self, None)

    def answered(self, seconds: float | None = None, beside: int = 1, tokens: int | None = None) -> None:
        """A request that is still counted in flight succeeded; the arguments are as in [`AdaptiveLimit`]."""
        with self.server.lock:
            comparable = None if seconds is None else self._comparable(seconds, max(1, tokens or 1))
            self.server.limit.answered(comparable, beside, tokens)

    def answered_since(self, mark: Mark, seconds: float, tokens: int | None) -> None:
        """A request that is still counted in flight succeeded.

        How many others ran beside it is their mean over its time. Two kinds of requests say nothing of the server's
        pace: those that were sent before the caller's first answer, while the number in flight was still growing, and
        those at the end of its work, while that number falls. Both make few in flight look faster than they are.

        Args:
            mark (`Mark`): When it was sent; see [`Server.mark`].
            seconds (`float`): How long it took.
            tokens (`int`, *optional*): Length of the answer.
        """
        with self.server.lock:
            now = self.server.mark()
            lasted = now.at - mark.at
            beside = (now.area - mark.area) / lasted if lasted > 0 else float(self.beside)
            ends = now.in_flight * _ENDING < mark.in_flight
            steady = self._first_answer is not None and mark.at > self._first_answer and not ends
            self._first_answer = now.at if self._first_answer is None else self._first_answer
            comparable = self._comparable(seconds, max(1, tokens or 1)) if steady else None
            self.server.limit.answered(comparable, beside, tokens, exact=True)

    def overloaded(self) -> None:
        """A request that is still counted in flight was refused for load (429)."""
        with self.server.lock:
            self.server.limit.overloaded()

    def unavailable(self) -> None:
        """A request that is still counted in flight met a 503, a broken connection or its deadline."""
        with self.server.lock:
            self.server.limit.unavailable()

    def close(self) -> None:
        """Asks no more; what was counted in flight is not."""
        while self.in_flight:
            self.exit()
        self.server.leave(self)

    def _comparable(self, seconds: float, tokens: int) -> float | None:
        """Seconds as they count among those of other callers; `None` until that is known.

        Callers may ask for different models behind one address. So that a change of who asks is not taken for a change
        of the server, a caller's first answers are set equal to what was typical when they came.
        """
        if self._scale is None:
            self._sample.append(seconds / tokens)
            if self.server.typical is None:
                self._scale = 1.0
            elif len(self._sample) < _SAMPLE:
                return None
            else:
                self._scale = self.server.typical * len(self._sample) / max(sum(self._sample), 1e-9)
        scaled = seconds * self._scale
        before = scaled / tokens if self.server.typical is None else self.server.typical
        self.server.typical = (1 - _MEMORY) * before + _MEMORY * scaled / tokens
        return scaled


_servers: dict[str, Server] = {}
_servers_of = os.getpid()
_lock = threading.Lock()


def server(address: str) -> Server:
    """The server at an address: one object for all that ask it in this process.

    Args:
        address (`str`): A base URL, with or without a route such as `/v1`.
    """
    global _servers_of
    name = server_name(address)
    now = time.monotonic()
    with _lock:
        if _servers_of != os.getpid():  # forked: requests and slots are the parent's
            for known in _servers.values():
                known.forget()
            _servers.clear()
            _servers_of = os.getpid()
        for other, known in list(_servers.items()):
            if known.idle and now - known.used > _FRESH:
                del _servers[other]
        if name not in _servers:
            _servers[name] = Server(AdaptiveLimit(_HIGHEST, _FIRST_GUESS), name)
        return _servers[name]


def server_name(address: str) -> str:
    """The address of a server as it is compared: scheme, host, port and path, in one spelling.

    Example:
        >>> server_name("HTTP://Localhost:80/v1/") == server_name("http://127.0.0.1")
        True
    """
    parts = urlsplit(Endpoint(address.rstrip("/"), "").root)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").rstrip(".")
    host = "127.0.0.1" if host in ("localhost", "::1") else host
    port = parts.port or _PORTS.get(scheme, 0)
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}{parts.path.rstrip('/')}"
