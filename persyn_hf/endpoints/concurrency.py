"""How many requests an endpoint bears at once, found out while asking it."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Answers between two tries to go one above what was refused: few until the cap is confirmed, then so many that the
#: tries stay under 1% of the requests.
_FIRST_PROBE, _LAST_PROBE = 8, 200
#: Share of recent requests that must fail with 503 or a timeout before the limit is halved: single ones say nothing
#: about load.
_UNAVAILABLE_SHARE = 0.3
_MEMORY = 0.05


@dataclass(frozen=True)
class Mark:
    """A moment in a server's life.

    Args:
        at (`float`): Seconds.
        area (`float`): Requests in flight, summed over the seconds until then.
        in_flight (`int`): Requests in flight.
    """

    at: float
    area: float
    in_flight: int


class AdaptiveLimit:
    """The requests in flight to one endpoint: additive increase, decrease on refusal and on waiting.

    A 429 says that the server bears what is in flight without the refused request, so the limit falls to exactly
    that: a burst of 128 against a cap of 64 ends at 64 in one round trip. From there one more is tried after 8
    answers, 16, 32 and so on up to every 200, as long as it is refused; when it is not, the cap is higher and every
    answer raises the limit, so that it doubles in a round trip.
    A server that refuses nothing and queues (vLLM) is found out by [`Pace`]: more in flight, not more answers.
    503 pages and timeouts say nothing about the number in flight until they are many; then the limit is halved.

    Args:
        maximum (`int`): Never more than this.
        start (`int`, *optional*): Where to begin; by default at the maximum, which is right where it is known.
        watch_latency (`bool`, defaults to `True`): Whether long waits lower the limit.
    """

    def __init__(self, maximum: int, start: int | None = None, watch_latency: bool = True) -> None:
        self.maximum = maximum
        self.current = min(maximum, start or maximum)
        self.in_flight = 0
        self.refused = 0
        self._pace = Pace()
        self._watch_latency = watch_latency
        self._cautious = False
        self._calm = 0
        self._probe = _FIRST_PROBE
        self._unavailable = 0.0
        self._settle = 0

    @property
    def free(self) -> int:
        """Requests that may start now."""
        return self.current - self.in_flight

    @property
    def learnt(self) -> bool:
        """Whether the server has shown that it bears no more than [`current`]."""
        return self.refused > 0 or self._pace.held

    def bound(self, maximum: int, known: bool) -> None:
        """Sets another maximum, where other callers share the limit.

        Args:
            maximum (`int`): Never more than this from now on.
            known (`bool`): Whether the server bears so many; then all of them at once, unless it has shown otherwise.
        """
        self.maximum = maximum
        self.current = maximum if known and not self.learnt else min(self.current, maximum)

    def answered(
        self, seconds: float | None = None, beside: float = 1, tokens: int | None = None, *, exact: bool = False
    ) -> None:
        """A request that is still counted in flight succeeded.

        Args:
            seconds (`float`, *optional*): How long it took; without, waiting is not looked at.
            beside (`float`, defaults to 1): Requests in flight when it started, itself included.
            tokens (`int`, *optional*): Length of the answer.
            exact (`bool`, defaults to `False`): Whether `beside` is their mean over its time.
        """
        self._unavailable *= 1 - _MEMORY
        self._settle = max(0, self._settle - 1)
        self._calm += 1
        if seconds is not None and self._watch_latency:
            # The first requests are sent one by one, and yet run beside those that follow them.
            number = beside if exact or self._pace.began else max(beside, self.in_flight)
            fewer = self._pace.note(number, seconds, tokens or 1)
            if fewer is not None:
                self.current = max(1, min(self.current, fewer))
                return
        if self.current >= self.maximum or self._pace.held:
            return
        if not self._cautious or self.current < self.refused:
            # Answers come in bursts, so that the places are not all taken now: what counts is that they were.
            self.current += 2 * max(beside, self.in_flight) > self.current
        elif self.in_flight >= self.current and self._calm % self._probe == 0:
            # A limit above the refused one that was used and lasted until the next try: the cap is higher.
            self._cautious = self.current <= self.refused
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
        """A request that is still counted in flight met a 503, a broken connection or its deadline."""
        self._unavailable += _MEMORY * (1 - self._unavailable)
        if self._unavailable > _UNAVAILABLE_SHARE and not self._settle:
            self._settle = self.current
            self.current = max(1, self.current // 2)
            self._cautious = False


#: Answers of one window, at least; a window also holds one round trip of all that is in flight.
_WINDOW = 16
#: Two windows are of the same number in flight when they differ by less than this factor.
_APART = 1.25
#: With twice as many in flight the rate must be at least `2 ** 0.25` = 1.19 times as high to go on.
_GAIN = 0.25
#: The rate that has collapsed, as a share of what the same number in flight gave before; and what follows.
_COLLAPSE, _DECREASE = 0.6, 0.7
#: Share of a new window in the remembered rate.
_RATE_MEMORY = 0.2
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

    @property
    def began(self) -> bool:
        """Whether a window has been measured that others are compared with."""
        return self._best is not None

    def _clear(self) -> None:
        self._count = self._tokens = self._size = 0
        self._numbers = self._seconds = 0.0

    def note(self, in_flight: float, seconds: float, tokens: int) -> int | None:
        """Takes one answer into account; gives the number to go down to, where it is too high."""
        self._size = self._size or max(_WINDOW, round(in_flight))
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
            self._best = before, (1 - _RATE_MEMORY) * rate_before + _RATE_MEMORY * rate
        self._rested += 1
        if self._rested >= self._rest:
            self.held = False
        return None
