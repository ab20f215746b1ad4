"""The missing rows of one teacher: those without an answer that no other run has claimed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from persyn_hf.endpoints.event_loop import say
from persyn_hf.generation.attempts import Job
from persyn_hf.generation.jobs import AHEAD
from persyn_hf.generation.progress import Tally
from persyn_hf.ledger.claims import Claims

#: Seconds between two checks for another run's answers, and rows per check.
_LOOK, _AT_ONCE = 0.2, 2_000


class Missing:
    """Claims the rows of one teacher before their requests are sent, and waits for those that another run has claimed.

    Args:
        claims (`Claims`): Claims of the run in the ledger.
        tally (`Tally`): Counter of the answers found in the ledger.
    """

    def __init__(self, claims: Claims, tally: Tally) -> None:
        self._claims, self._tally = claims, tally
        self._open: set[str] = set()
        self._elsewhere: dict[str, Job] = {}

    def draw(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """Yields the jobs that this run must send, claimed as they are drawn."""
        while chunk := {job.key: job for job in itertools.islice(jobs, AHEAD)}:
            found, own = self._claims.take(chunk)
            self._tally.found += len(found)
            self._open.update(own)
            self._elsewhere |= {key: job for key, job in chunk.items() if key not in found and key not in self._open}
            yield from (chunk[key] for key in own)

    def settled(self, key: str) -> None:
        """Marks a row as answered; storing its answer releases the claim."""
        self._open.discard(key)

    def failed(self, key: str) -> None:
        """Marks a row as failed and releases it, so that another run may try it."""
        self._open.discard(key)
        self._claims.release([key])

    def leave(self) -> None:
        """Releases the rows that will not be sent."""
        self._claims.release(self._open)
        self._open.clear()

    async def wait(self, stopped: Callable[[], bool]) -> list[Job]:
        """Waits for the rows that another run has claimed.

        Args:
            stopped (`Callable[[], bool]`): Function that returns whether to end the wait.

        Returns:
            `list[Job]`: Rows that the other run released and this run has claimed; empty once there is nothing to wait
            for.
        """
        if self._elsewhere and not stopped():
            count = f"{len(self._elsewhere):,} rows"
            say(f"{self._tally.name}: waiting for the answers of another run on this ledger to {count}.")
        while self._elsewhere and not stopped():
            found, own = self._claims.take(itertools.islice(self._elsewhere, _AT_ONCE))
            self._tally.found += len(found)
            self._open.update(own)
            jobs = [self._elsewhere.pop(key) for key in own]
            for key in found:
                del self._elsewhere[key]
            if jobs:
                return jobs
            if not found:
                await asyncio.sleep(_LOOK)
        return []
