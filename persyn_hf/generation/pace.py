"""Whether more requests in flight bring more answers, or only longer waits."""

from __future__ import annotations

import math

#: Answers of one window, at least; a window also holds one round trip of all that is in flight.
_WINDOW = 16
#: Two windows are of the same number in flight when they differ by less than this factor.
_APART = 1.25
#: With twice as many in flight the rate must be at least `2 ** 0.25` = 1.19 times as high to go on.
_GAIN = 0.25
#: The rate that has collapsed, as a share of what the same number in flight gave before; and what follows.
_COLLAPSE, _DECREASE = 0.6, 0.7
#: Share of a new window in the remembered rate.
_MEMORY = 0.2
#: Windows of rest before more is tried again; doubled each time that it does not help.
_FIRST_REST, _LAST_REST = 1, 64


class Pace:
    """Watches the rate of answers over the number in flight.

    By Little's law the number in flight over the latency *is* the rate, so that every answer is a sample of it, at the
    number that was in flight when it was asked for. Where that number grows and the rate does not, requests queue: the
    limit goes back to the number that gave the same rate. Where the rate collapses at the same number (others load the
    server too), the limit falls by a factor. Latency is taken per token, since long answers take long.
    """

    def __init__(self) -> None:
        self.held = False
        self._best: tuple[float, float] | None = None  # in flight, tokens per second
        self._collapsed = 0
        self._rest, self._rested = _FIRST_REST, 0
        self._clear()

    def _clear(self) -> None:
        self._count = self._numbers = self._tokens = self._size = 0
        self._seconds = 0.0

    def note(self, in_flight: int, seconds: float, tokens: int) -> int | None:
        """Takes one answer into account; gives the number to go down to, where it is too high."""
        self._size = self._size or max(_WINDOW, in_flight)
        self._count += 1
        self._numbers += in_flight
        self._tokens += tokens
        self._seconds += seconds
        if self._count < self._size:
            return None
        number = self._numbers / self._count
        rate = number * self._tokens / max(self._seconds, 1e-9)
        self._clear()
        if self._best is None or number <= self._best[0] / _APART:
            self._best = number, rate
            return None
        if number >= self._best[0] * _APART:
            return self._grown(number, rate, *self._best)
        return self._unchanged(number, rate, *self._best)

    def _grown(self, number: float, rate: float, before: float, rate_before: float) -> int | None:
        if rate >= rate_before * (number / before) ** _GAIN:
            self._best = number, rate
            self._rest = _FIRST_REST
            return None
        self.held, self._rested = True, 0
        self._rest = min(_LAST_REST, 2 * self._rest)
        return math.ceil(before)

    def _unchanged(self, number: float, rate: float, before: float, rate_before: float) -> int | None:
        self._collapsed = self._collapsed + 1 if rate < _COLLAPSE * rate_before else 0
        if self._collapsed == 2:  # one window may be a hiccup
            self._collapsed, self._rested, self.held, self._rest = 0, 0, True, _FIRST_REST
            self._best = _DECREASE * number, rate
            return int(_DECREASE * number)
        if not self._collapsed:
            self._best = before, (1 - _MEMORY) * rate_before + _MEMORY * rate
        self._rested += 1
        if self._rested >= self._rest:
            self.held = False
        return None
