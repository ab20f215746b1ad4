"""Size of a forward pass on a device, in tokens: doubled while that is faster and fits in memory."""

from __future__ import annotations

from collections.abc import Callable

#: Tokens of the first forward passes.
START = 16384
#: A doubling that gains less than this is one too many.
_GAIN = 1.05
#: Passes of one size that are timed; one before them warms up.
_TIMED = 3


class Growth:
    """The size of forward passes, in tokens.

    Args:
        size (`int`): To begin with.
        settled (`bool`, defaults to `False`): It only shrinks, where memory is short.
    """

    def __init__(self, size: int = START, settled: bool = False) -> None:
        self.size, self.settled = size, settled
        self._slower: float | None = None  # tokens per second at half the size
        self._passes: list[tuple[int, float]] = []

    def record(self, size: int, tokens: int, seconds: float, has_room: Callable[[], bool]) -> None:
        """Takes note of a pass, and doubles or settles when enough of one size are known.

        Args:
            size (`int`): Size when the pass was planned.
            tokens (`int`): Tokens of the pass. A pass that is not half full is ignored.
            seconds (`float`): Duration of the pass.
            has_room (`Callable[[], bool]`): Whether memory allows twice the size.
        """
        if self.settled or size != self.size or 2 * tokens < size:
            return
        self._passes.append((tokens, seconds))
        timed = self._passes[1:]
        if len(timed) < _TIMED:
            return
        rate = sum(tokens for tokens, _ in timed) / max(sum(seconds for _, seconds in timed), 1e-9)
        if self._slower is not None and rate < _GAIN * self._slower:
            self.size, self.settled = self.size // 2, True
        elif not has_room():
            self.settled = True
        else:
            self.size, self._slower, self._passes = 2 * self.size, rate, []

    def halve(self, tokens: int) -> None:
        """A pass of so many tokens did not fit: from now on they hold half of it, and grow no more."""
        self.size, self.settled = max(min(self.size, tokens) // 2, 1), True
