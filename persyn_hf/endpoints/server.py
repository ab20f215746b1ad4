"""One server per address: all of its callers share its limit, within this process and between the user's processes."""

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
#: Initial limit and upper bound for a server whose limit is not known.
_FIRST_GUESS, _HIGHEST = 16, 1024
#: Seconds for which an unused server's limit is remembered: `persyn_generate` may be called once per row.
_FRESH = 300.0
#: Seconds without a slot before a warning names the processes that hold them; seconds between two checks for one.
_PATIENCE, SLOT_POLL = 5.0, 0.02
#: Answers of a caller that are needed to compare its latency with that of the other callers.
_SAMPLE = 8
#: Weight of the latest answer in a server's typical latency.
_MEMORY = 0.1
#: The number in flight counts as falling if it fell by this factor during a request.
_ENDING = 1.25
_PORTS = {"http": 80, "https": 443}


class Server:
    """Limit and callers of one server.

    Callers [`join`] the server. Of the callers that wait for a slot, the one with the fewest requests in flight comes
    first, then the one that has waited longest; a caller without work leaves its slots to the others. All methods may
    be called from any thread.

    Args:
        limit (`AdaptiveLimit`): Limit on the requests in flight of all callers together.
        address (`str`, *optional*): Address of the server; with it, a known limit is shared with other processes.
        clock (`Callable[[], float]`, *optional*): Monotonic clock, in seconds.
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
        """`True` if the server has no callers."""
        return not self._shares

    def join(self, known: int | None = None) -> Share:
        """Adds a caller, until it calls [`Share.close`].

        Args:
            known (`int`, *optional*): Number of requests that the server can handle at once, if this caller knows it.
                The smallest number of all callers applies to all of them together.
        """
        with self.lock:
            share = Share(self, known)
            self._shares.append(share)
            self._rebound()
            return share

    def leave(self, share: Share) -> None:
        """Removes a caller."""
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
        """Counts a request in flight; returns `False` if no slot is free here or in the other processes."""
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
        """Counts a request as no longer in flight."""
        with self.lock:
            self.mark()
            self.limit.in_flight -= 1
            share.in_flight -= 1
            while self._slots is not None and self._slots.held > self.limit.in_flight:
                self._slots.release()
            self._offer()

    def settle(self) -> None:
        """Unlocks the spare slots, so that other processes can take them."""
        with self.lock:
            if self._slots is not None:
                self._slots.settle()

    def mark(self) -> Mark:
        """Returns a snapshot of the load; two of them give the mean number of requests in flight between them."""
        with self.lock:
            now = self._clock()
            self._area += self.limit.in_flight * (now - self._at)
            self._at = now
            return Mark(now, self._area, self.limit.in_flight)

    def free(self, share: Share) -> int:
        """Returns the number of requests that a caller may start now."""
        limit = self.limit
        free = limit.current - limit.in_flight
        if free <= 0 or not self._waiting:
            return free
        with self.lock:
            own = share.turn
            return free - sum(other.turn < own for other in self._waiting if other is not share)

    def wait(self, share: Share, wake: Callable[[], None] | None) -> None:
        """Sets the function to call when a slot may be free for a caller; `None` ends its wait."""
        with self.lock:
            if wake is None:
                self._waiting.pop(share, None)
            else:
                share.wake = wake
                self._waiting[share] = None
            self._offer(looked=share)

    def is_waiting(self, share: Share) -> bool:
        """Returns whether a caller waits for a slot."""
        return share in self._waiting

    def pass_on(self, share: Share) -> None:
        """Wakes the next waiting caller if `share` has just checked and left a slot free."""
        if self.limit.free > 0:
            with self.lock:
                self._offer(looked=share)

    def forget(self) -> None:
        """Leaves the slots to the parent process; for use after a fork."""
        if self._slots is not None:
            self._slots.close()

    def _offer(self, looked: Share | None = None) -> None:
        """Wakes the next waiting caller if a slot is free, except the one that has just checked (`looked`)."""
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
                "%s is one server, so one `max_concurrency` applies to all of its callers: %d, the smallest of %s",
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
            _log.warning("%s: parallel processes do not share the limit of this server: %s", self.address, error)

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
            self._blocked_since = float("inf")  # warned once
            holders = ", ".join(f"{number} ({state})" for number, state in sorted(self._slots.holders().items()))
            _log.warning("%s: other processes hold all %d slots: %s; waiting", self.address, self._known, holders)
        return False


class Share:
    """One caller's share of a [`Server`].

    Args:
        server (`Server`): Server that the caller uses.
        known (`int`, *optional*): Number of requests that the server can handle at once, if this caller knows it.
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
        """Sort key of this caller among the waiting ones."""
        return self.in_flight, self.entered

    @property
    def free(self) -> int:
        """Number of requests that the caller may start now."""
        return self.server.free(self)

    @property
    def beside(self) -> int:
        """Number of requests in flight to the server, of all callers."""
        return self.server.limit.in_flight

    @property
    def current(self) -> int:
        """Current limit of the server."""
        return self.server.limit.current

    def enter(self) -> bool:
        """Counts a request in flight; returns `False` if no slot is free here or in the other processes."""
        return self.server.enter(self)

    def exit(self) -> None:
        """Counts a request as no longer in flight."""
        self.server.exit(self)

    def settle(self) -> None:
        """Unlocks the spare slots, so that other processes can take them."""
        self.server.settle()

    def wait(self, wake: Callable[[], None]) -> None:
        """Calls `wake` in the running event loop when a slot may be free, until [`waits_no_more`] is called."""
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
        """Ends the wait, and leaves the slots to the other callers."""
        if self.server.is_waiting(self):
            self.server.wait(self, None)

    def answered(self, seconds: float | None = None, beside: int = 1, tokens: int | None = None) -> None:
        """Records the success of a request that is still counted in flight; arguments as in [`AdaptiveLimit`]."""
        with self.server.lock:
            comparable = None if seconds is None else self._comparable(seconds, max(1, tokens or 1))
            self.server.limit.answered(comparable, beside, tokens)

    def answered_since(self, mark: Mark, seconds: float, tokens: int | None) -> None:
        """Records the success of a request that is still counted in flight.

        The concurrency of the request is the mean over its duration. Two kinds of requests do not count towards the
        server's pace: those sent before the caller's first answer, while the number in flight still grows, and those
        at the end of its work, while that number falls. Both would make low concurrency look faster than it is.

        Args:
            mark (`Mark`): Snapshot taken when the request was sent; see [`Server.mark`].
            seconds (`float`): Latency of the request.
            tokens (`int`, *optional*): Length of the answer, in tokens.
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
        """Records the refusal for load (429) of a request that is still counted in flight."""
        with self.server.lock:
            self.server.limit.overloaded()

    def unavailable(self) -> None:
        """Records a 503, a broken connection or a timeout of a request that is still counted in flight."""
        with self.server.lock:
            self.server.limit.unavailable()

    def close(self) -> None:
        """Leaves the server; the caller's requests no longer count as in flight."""
        while self.in_flight:
            self.exit()
        self.server.leave(self)

    def _comparable(self, seconds: float, tokens: int) -> float | None:
        """Scales a latency to be comparable with that of other callers; `None` until the scale is known.

        Callers may use different models behind one address. A change of callers must not look like a change of the
        server, so a caller's first answers are scaled to the latency that was typical when they arrived.
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
    """Returns the server at an address: one object for all of its callers in this process.

    Args:
        address (`str`): Base URL, with or without a route such as `/v1`.
    """
    global _servers_of
    name = server_name(address)
    now = time.monotonic()
    with _lock:
        if _servers_of != os.getpid():  # forked: requests and slots belong to the parent
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
    """Normalises the address of a server: scheme, host, port and path in one spelling.

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
