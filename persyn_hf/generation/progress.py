"""What is seen of a run: one line per teacher while it goes, and what it came to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from persyn_hf import text
from persyn_hf.generation.client import Completion

#: Seconds between two looks at the counters.
_TICK = 0.5
#: Share of the last tick in the shown tokens per second.
_MEMORY = 0.2


@dataclass
class Tally:
    """What one teacher has done so far.

    Args:
        name (`str`): The teacher.
        total (`int`): Rows that it is to answer.
        in_flight (`Callable[[], int]`): How many requests it is answering now.
        found (`int`): Rows that the ledger had.
        answered, failed, truncated (`int`): Rows of this run; truncated ones are answered.
        prompt_tokens, completion_tokens (`int`): Of this run's answers.
        cost (`float`): USD of this run's answers.
    """

    name: str
    total: int
    in_flight: Callable[[], int] = field(default=lambda: 0, repr=False)
    found: int = 0
    answered: int = 0
    failed: int = 0
    truncated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def count(self, completion: Completion, cost: float) -> None:
        """One more answer."""
        self.answered += 1
        self.truncated += completion.finish_reason == "length"
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0
        self.cost += cost

    @property
    def done(self) -> int:
        """Rows that are through, for better or worse."""
        return self.found + self.answered + self.failed

    def __str__(self) -> str:
        parts = [f"{self.found + self.answered:,} of {self.total:,} rows"]
        if self.found:
            parts.append(f"{self.found:,} of them in the ledger before")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated")
        parts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        if self.cost:
            parts.append(f"{self.cost:.4f} USD")
        return f"{self.name}: {', '.join(parts)}"


def say(*lines: object) -> None:
    """Writes lines to standard error."""
    console = Console(stderr=True)
    for line in lines:
        console.print(text.tame_lines(line), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def shown(tallies: Sequence[Tally], wanted: bool) -> Iterator[None]:
    """Shows one line per teacher while the block runs; nothing where there is no terminal.

    Belongs to the running event loop, whose turns it uses twice a second.
    """
    console = Console(stderr=True)
    if not wanted or not (console.is_terminal or console.is_jupyter):
        yield
        return
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
    )
    with bars:
        ids = [bars.add_task(text.markup(tally.name), total=tally.total, state="") for tally in tallies]
        ticking = asyncio.get_running_loop().create_task(_tick(bars, ids, tallies))
        try:
            yield
        finally:
            ticking.cancel()
            _show(bars, ids, tallies, [0.0] * len(tallies))


async def _tick(bars: Progress, ids: Sequence[TaskID], tallies: Sequence[Tally]) -> None:
    speeds, before, then = [0.0] * len(tallies), [0] * len(tallies), time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            for place, tally in enumerate(tallies):
                speed = (tally.completion_tokens - before[place]) / (now - then)
                speeds[place] = speed if not speeds[place] else (1 - _MEMORY) * speeds[place] + _MEMORY * speed
                before[place] = tally.completion_tokens
            then = now
            _show(bars, ids, tallies, speeds)


def _show(bars: Progress, ids: Sequence[TaskID], tallies: Sequence[Tally], speeds: Sequence[float]) -> None:
    for task, tally, speed in zip(ids, tallies, speeds, strict=True):
        parts = [f"{tally.in_flight()} in flight", f"{speed:,.0f} tokens/s", f"{tally.failed} errors"]
        if tally.cost:
            parts.append(f"{tally.cost:.4f} USD")
        bars.update(task, completed=tally.done, total=tally.total, state=" · ".join(parts))
    bars.refresh()
