"""How many requests an endpoint bears at once, found out while asking it."""

from __future__ import annotations

#: Answers between two tries to go one above what was refused: few until the cap is confirmed, then so many that the
#: tries stay under 1% of the requests.
_FIRST_PROBE, _LAST_PROBE = 8, 200
#: Share of recent requests that must fail with 503 before the limit is halved: single ones say nothing about load.
_UNAVAILABLE_SHARE = 0.3
_MEMORY = 0.05


class AdaptiveLimit:
    """Additive increase, decrease on refusal, of the requests in flight to one endpoint.

    A 429 says that the server bears what is in flight without the refused request, so the limit falls to exactly
    that: a burst of 128 against a cap of 64 ends at 64 in one round trip. From there one more is tried after 8
    answers, 16, 32 and so on up to every 200, as long as it is refused; when it is not, the cap is higher and every
    answer raises the limit.
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
        self._calm = 0
        self._probe = _FIRST_PROBE
        self._unavailable = 0.0
        self._settle = 0

    @property
    def free(self) -> int:
        """Requests that may start now."""
        return self.current - self.in_flight

    def answered(self) -> None:
        """A request that is still counted in flight succeeded."""
        self._unavailable *= 1 - _MEMORY
        self._settle = max(0, self._settle - 1)
        self._calm += 1
        if self.current >= self.maximum or self.in_flight < self.current:
            return
        if not self._cautious or self._calm % self._probe == 0:
            # A limit above the refused one that lasted until the next try: the cap is higher, caution ends.
            self._cautious = self._cautious and self.current <= self.refused
            self.current += 1

    def overloaded(self) -> None:
        """A request that is still counted in flight was refused for load (429)."""
        lowered = max(1, min(self.current, self.in_flight - 1))
        if self._calm >= self._probe // 2:  # else it belongs to the same burst of refusals
            confirmed = abs(lowered - self.refused) <= 1
            self._probe = min(_LAST_PROBE, 2 * self._probe) if confirmed else _FIRST_PROBE
        self.current = self.refused = lowered
        self._cautious, self._calm = True, 0

    def unavailable(self) -> None:
        """A request that is still counted in flight met a 503 or a broken connection."""
        self._unavailable += _MEMORY * (1 - self._unavailable)
        if self._unavailable > _UNAVAILABLE_SHARE and not self._settle:
            self._settle = self.current
            self.current = max(1, self.current // 2)
            self._cautious = False
