"""How many requests an endpoint bears at once, found out while asking it."""

from __future__ import annotations

#: Answers (or seconds) between two tries to go one above what was refused; one refusal in 200 is under 1%.
_PROBE_ANSWERS = 200
_PROBE_SECONDS = 10.0
#: Share of recent requests that must fail with 503 before the limit is halved: single ones say nothing about load.
_UNAVAILABLE_SHARE = 0.3
_MEMORY = 0.05


class AdaptiveLimit:
    """Additive increase, decrease on refusal, of the requests in flight to one endpoint.

    A 429 says that the server bears what is in flight without the refused request, so the limit falls to exactly
    that: a burst of 128 against a cap of 64 ends at 64 in one round trip. From there one more is tried every 200
    answers (or 10 seconds); when that is not refused, the cap has moved and every answer raises the limit.
    503 pages say nothing about the number in flight until they are many; then the limit is halved.

    Args:
        maximum (`int`): Never more than this; the start.
    """

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.current = maximum
        self.in_flight = 0
        self.refused = 0
        self._cautious = False
        self._answers = 0
        self._since = 0.0
        self._unavailable = 0.0
        self._settle = 0

    @property
    def free(self) -> int:
        """Requests that may start now."""
        return self.current - self.in_flight

    def answered(self, now: float) -> None:
        """A request that is still counted in flight succeeded."""
        self._unavailable *= 1 - _MEMORY
        if self._settle:
            self._settle -= 1
        if self.current >= self.maximum or self.in_flight < self.current:
            return
        if not self._cautious:
            self.current += 1
            return
        self._answers += 1
        if self._answers >= _PROBE_ANSWERS or now - self._since >= _PROBE_SECONDS:
            # A limit above the refused one that lasted until here: the cap has moved, caution ends.
            self._cautious = self.current <= self.refused
            self._answers, self._since = 0, now
            self.current += 1

    def overloaded(self, now: float) -> None:
        """A request that is still counted in flight was refused for load (429)."""
        self.current = max(1, min(self.current, self.in_flight - 1))
        self.refused = self.current
        self._cautious, self._answers, self._since = True, 0, now

    def unavailable(self, now: float) -> None:
        """A request that is still counted in flight met a 503 or a broken connection."""
        self._unavailable += _MEMORY * (1 - self._unavailable)
        if self._unavailable > _UNAVAILABLE_SHARE and not self._settle:
            self._settle = self.current
            self.current = max(1, self.current // 2)
            self._cautious = False
