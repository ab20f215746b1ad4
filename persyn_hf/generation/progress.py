"""Progress of a run: a bar per teacher on a terminal, plain lines elsewhere, and a summary."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from persyn_hf import columns, text
from persyn_hf.endpoints.event_loop import say
from persyn_hf.ledger.completion import Completion

#: Seconds between two updates of the bars.
_TICK = 0.5
#: Seconds between two lines without a terminal, so that the log of a batch job shows its progress.
_LINE = 30.0
#: Weight of the last update in the shown tokens per second.
_MEMORY = 0.2


@dataclass
class Tally:
    """Counters of one teacher.

    Args:
        name (`str`): Name of the teacher.
        total (`int`): Number of rows that it must answer.
        in_flight (`Callable[[], int]`): Function that returns its number of requests in flight.
        found (`int`): Number of rows found in the ledger.
        answered, failed, truncated, leaked (`int`): Number of rows in this run. `answered` includes truncated answers
            and those with special tokens or an invented turn.
        prompt_tokens, completion_tokens (`int`): Tokens of this run's answers.
        cost (`float`): Cost of this run's answers, in USD.
    """

    name: str
    total: int
    in_flight: Callable[[], int] = field(default=lambda: 0, repr=False)
    found: int = 0
    answered: int = 0
    failed: int = 0
    truncated: int = 0
    leaked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0

    def count(self, completion: Completion, cost: float, leak: str | None = None) -> None:
        """Counts an answer."""
        self.answered += 1
        self.truncated += columns.is_cut(completion.finish_reason)
        self.leaked += leak is not None
        self.prompt_tokens += completion.prompt_tokens or 0
        self.completion_tokens += completion.completion_tokens or 0
        self.cost += cost

    @property
    def done(self) -> int:
        """Number of finished rows, answered or failed."""
        return self.found + self.answered + self.failed

    def __str__(self) -> str:
        parts = [f"{self.found + self.answered:,} of {self.total:,} rows"]
        if self.found:
            parts.append(f"{self.found:,} of them from the ledger")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.truncated:
            parts.append(f"{self.truncated:,} truncated")
        if self.leaked:
            parts.append(f"{self.leaked:,} with leaked tokens or turns")
        parts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} tokens")
        if self.cost:
            parts.append(f"{self.cost:.4f} USD")
        return f"{text.tame(self.name)}: {', '.join(parts)}"


@contextmanager
def progress_shown(tallies: Sequence[Tally], wanted: bool) -> Iterator[bool]:
    """Shows a bar per teacher while the block runs; without a terminal, a line every 30 seconds.

    Yields whether it ends with one summary line per teacher. It runs in the current event loop.

    Args:
        tallies (`Sequence[Tally]`): Counters of the teachers.
        wanted (`bool`): Whether to show progress.
    """
    console = Console(stderr=True)
    if not wanted:
        yield False
    elif console.is_terminal or console.is_jupyter:
        with _bars(tallies, console):
            yield False
    else:
        with _lines(tallies):
            yield True


@contextmanager
def _lines(tallies: Sequence[Tally]) -> Iterator[None]:
    """Writes a plain line at the start and every 30 seconds, and one per teacher at the end."""
    began = time.monotonic()
    teachers = "1 teacher" if len(tallies) == 1 else f"{len(tallies)} teachers"
    say(f"{teachers}, {sum(tally.total for tally in tallies):,} rows: sending requests")
    ticking = asyncio.get_running_loop().create_task(_say_often(tallies, began))
    try:
        yield
    finally:
        ticking.cancel()
        say(*tallies, f"{teachers}: {_clock(time.monotonic() - began)} in total")


async def _say_often(tallies: Sequence[Tally], began: float) -> None:
    before, then = 0, began
    while True:
        await asyncio.sleep(_LINE)
        now, tokens = time.monotonic(), sum(tally.completion_tokens for tally in tallies)
        say(_line(tallies, now - began, (tokens - before) / (now - then)))
        before, then = tokens, now


def _line(tallies: Sequence[Tally], seconds: float, speed: float) -> str:
    done, total = sum(tally.done for tally in tallies), sum(tally.total for tally in tallies)
    asked, cost = sum(tally.answered + tally.failed for tally in tallies), sum(tally.cost for tally in tallies)
    parts = [
        f"{done:,} of {total:,} rows ({done / max(1, total):.0%})",
        f"{sum(tally.in_flight() for tally in tallies):,} in flight",
        f"{speed:,.0f} tokens/s",
        f"{sum(tally.failed for tally in tallies):,} errors",
    ]
    parts += [f"{cost:.4f} USD"] if cost else []
    parts += [f"about {_clock(seconds / asked * (total - done))} left"] if asked else []
    return f"{_clock(seconds)}: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


@contextmanager
def _bars(tallies: Sequence[Tally], console: Console) -> Iterator[None]:
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
    )
    with bars:
        names = [text.tame(tally.name) for tally in tallies]
        ids = [bars.add_task(name, total=tally.total, state="") for name, tally in zip(names, tallies, strict=True)]
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
