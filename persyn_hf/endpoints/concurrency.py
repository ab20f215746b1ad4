"""Adaptive concurrency: finds the number of parallel requests that an endpoint can handle, while it is in use."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Answers between two attempts to exceed the refused number by one: few until the cap is confirmed, then enough to
#: keep the attempts under 1% of the requests.
_FIRST_PROBE, _LAST_PROBE = 8, 200
#: Share of recent requests that must fail with 503 or a timeout before the limit is halved: single failures say
#: nothing about load.
_UNAVAILABLE_SHARE = 0.3
_MEMORY = 0.05


@dataclass(frozen=True)
class Mark:
    """Snapshot of a server's load; two of them give the mean number of requests in flight between them.

    Args:
        at (`float`): Time of the snapshot, in seconds.
        area (`float`): Integral of the requests in flight over time, in request-seconds.
        in_flight (`int`): Number of requests in flight.
    """

    at: float
    area: float
    in_flight: int


class AdaptiveLimit:
    """Limit on the requests in flight to one endpoint: additive increase, decrease on refusals and on queueing.

    A 429 means that the server can handle the requests in flight without the refused one, so the limit falls to
    exactly that number: a burst of 128 against a cap of 64 ends at 64 in one round trip. From there the limit tries
    one more after 8 answers, then 16, 32 and so on up to every 200, as long as the server refuses it. If the server
    accepts it, the cap is higher: every answer then raises the limit, which doubles it in a round trip.
    [`Pace`] detects a server that queues instead of refusing (vLLM): more requests in flight, but no higher rate.
    503 pages and timeouts count only when there are many of them; then the limit is halved.

    Args:
        maximum (`int`): Upper bound of the limit.
        start (`int`, *optional*): Initial limit; defaults to `maximum`, which is right if the server's cap is known.
        watch_latency (`bool`, defaults to `True`): Whether to lower the limit when requests queue.
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
        """Number of requests that may start now."""
        return self.current - self.in_flight

    @property
    def learnt(self) -> bool:
        """`True` if the server has shown that it cannot handle more than [`current`] requests."""
        return self.refused > 0 or self._pace.held

    def bound(self, maximum: int, known: bool) -> None:
        """Sets another maximum, when callers that share the limit change.

        Args:
            maximum (`int`): New upper bound of the limit.
            known (`bool`): Whether the server is known to handle `maximum` requests; the limit then rises to it at
                once, unless the server has shown a lower cap.
        """
        self.maximum = maximum
        self.current = maximum if known and not self.learnt else min(self.current, maximum)

    def answered(
        self, seconds: float | None = None, beside: float = 1, tokens: int | None = None, *, exact: bool = False
    ) -> None:
        """Records the success of a request that is still counted in flight.

        Args:
            seconds (`float`, *optional*): Latency of the request; without it, queueing is not measured.
            beside (`float`, defaults to 1): Number of requests in flight when it started, including itself.
            tokens (`int`, *optional*): Length of the answer, in tokens.
            exact (`bool`, defaults to `False`): Whether `beside` is the mean over the duration of the request.
        """
        self._unavailable *= 1 - _MEMORY
        self._settle = max(0, self._settle - 1)
        self._calm += 1
        if seconds is not None and self._watch_latency:
            # The first requests start one by one, but run in parallel with those that follow.
            number = beside if exact or self._pace.began else max(beside, self.in_flight)
            fewer = self._pace.note(number, seconds, tokens or 1)
            if fewer is not None:
                self.current = max(1, min(self.current, fewer))
                return
        if self.current >= self.maximum or self._pace.held:
            return
        if not self._cautious or self.current < self.refused:
            # Answers come in bursts, so not all slots are in use now; it is enough that they were when it started.
            self.current += 2 * max(beside, self.in_flight) > self.current
        elif self.in_flight >= self.current and self._calm % self._probe == 0:
            # The limit exceeded the refused one, was fully used, and met no refusal since: the cap is higher.
            self._cautious = self.current <= self.refused
            self.current += 1

    def overloaded(self) -> None:
        """Records the refusal for load (429) of a request that is still counted in flight."""
        lowered = max(1, min(self.current, self.in_flight - 1))
        if self._calm >= self._probe // 2:  # otherwise it belongs to the same burst of refusals
            confirmed = abs(lowered - self.refused) <= 1
            self._probe = min(_LAST_PROBE, 2 * self._probe) if confirmed else _FIRST_PROBE
        self.current = self.refused = lowered
        self._cautious, self._calm = True, 0

    def unavailable(self) -> None:
        """Records a 503, a broken connection or a timeout of a request that is still counted in flight."""
        self._unavailable += _MEMORY * (1 - self._unavailable)
        if self._unavailable > _UNAVAILABLE_SHARE and not self._settle:
            self._settle = self.current
            self.current = max(1, self.current // 2)
            self._cautious = False


#: Minimum number of answers in a window; a window also holds one round trip of all requests in flight.
_WINDOW = 16
#: Two windows count as having the same number in flight if they differ by less than this factor.
_APART = 1.25
#: Required gain: with twice as many in flight, the rate must be at least `2 ** 0.25` = 1.19 times as high.
_GAIN = 0.25
#: A rate below this share of the earlier one, at the same number in flight, has collapsed; the factor that the limit
#: is then multiplied by.
_COLLAPSE, _DECREASE = 0.6, 0.7
#: Weight of a new window in the remembered rate.
_RATE_MEMORY = 0.2
#: Windows to wait before a higher number is tried again; doubled each time that it does not help.
_FIRST_REST, _LAST_REST = 1, 64


class Pace:
    """Measures the rate of answers as a function of the number of requests in flight.

    By Little's law the rate equals the number in flight divided by the latency, so every answer is a sample of the
    rate at the number that was in flight when its request was sent. If that number grows and the rate does not,
    requests queue: the limit returns to the number that gave the same rate. If the rate collapses at the same number
    (other users load the server too), the limit is multiplied by a factor below 1. Latency is measured per token,
    because long answers take longer.
    """

    def __init__(self) -> None:
        self.held = False
        self._best: tuple[float, float] | None = None  # in flight, tokens per second
        self._collapsed = 0
        self._rest, self._rested = _FIRST_REST, 0
        self._clear()

    @property
    def began(self) -> bool:
        """`True` once a reference window has been measured."""
        return self._best is not None

    def _clear(self) -> None:
        self._count = self._tokens = self._size = 0
        self._numbers = self._seconds = 0.0

    def note(self, in_flight: float, seconds: float, tokens: int) -> int | None:
        """Records one answer; returns the lower limit if the number in flight is too high, else `None`."""
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
