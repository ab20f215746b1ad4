"""When to ask again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """When to ask again.

    Args:
        attempts (`int`, defaults to 6): Attempts of a row that fails for other reasons than load.
        patience (`int`, defaults to 100): Attempts of a row that is refused for load.
        base_delay, max_delay (`float`, defaults to 0.25 and 30): Seconds; the n-th delay is drawn uniformly from
            `[0, min(max_delay, base_delay * 2**(n - 1))]` (full jitter).
        longest_pause (`float`, defaults to 300): Seconds; a longer `Retry-After` is cut to this.
        breaker_after (`int`, defaults to 16): Failures in a row, with no answer between, that open the circuit of an
            endpoint: then one request at a time tries whether the server is back.
        down_after (`float`, defaults to 60): Seconds without any answer after which an endpoint is down.
        down_after_unseen (`float`, defaults to 10): The same before the first answer of all.
    """

    attempts: int = 6
    patience: int = 100
    base_delay: float = 0.25
    max_delay: float = 30.0
    longest_pause: float = 300.0
    breaker_after: int = 16
    down_after: float = 60.0
    down_after_unseen: float = 10.0

    def bound(self, step: int) -> float:
        """The longest delay before the attempt after `step` failures (1 or more), in seconds."""
        return min(self.max_delay, self.base_delay * 2.0 ** min(step - 1, 20))
