"""The rows of one teacher that are still to be asked: those without an answer that nobody else is at work on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator

from persyn_hf.endpoints.event_loop import say
from persyn_hf.generation.attempts import Job
from persyn_hf.generation.jobs import AHEAD
from persyn_hf.generation.progress import Tally
from persyn_hf.ledger.claims import Claims

#: Seconds between two looks for answers that another run is to bring, and rows that are looked for at once.
_LOOK, _AT_ONCE = 0.2, 2_000


class Missing:
    """Claims the rows of one teacher before they are asked, and waits for those that another run has claimed.

    Args:
        claims (`Claims`): The run's part in the ledger.
        tally (`Tally`): Counts the answers that are found.
    """

    def __init__(self, claims: Claims, tally: Tally) -> None:
        self._claims, self._tally = claims, tally
        self._open: set[str] = set()
        self._elsewhere: dict[str, Job] = {}

    def draw(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The jobs that this run is to ask, claimed as they are drawn."""
        while chunk := {job.key: job for job in itertools.islice(jobs, AHEAD)}:
            found, own = self._claims.take(chunk)
            self._tally.found += len(found)
            self._open.update(own)
            self._elsewhere |= {key: job for key, job in chunk.items() if key not in found and key not in self._open}
            yield from (chunk[key] for key in own)

    def settled(self, key: str) -> None:
        """A row has been answered: keeping its answer frees it."""
        self._open.discard(key)

    def failed(self, key: str) -> None:
        """A row has failed for good; another run may try it."""
        self._open.discard(key)
        self._claims.release([key])

    def leave(self) -> None:
        """Frees the rows that are not asked any more."""
        self._claims.release(self._open)
        self._open.clear()

    async def wait(self, stopped: Callable[[], bool]) -> list[Job]:
        """Waits for the rows that another run has claimed.

        Args:
            stopped (`Callable[[], bool]`): Whether the wait is over.

        Returns:
            `list[Job]`: Rows that it gave up, and that are this run's now; none once there is nothing to wait for.
        """
        if self._elsewhere and not stopped():
            count = f"{len(self._elsewhere):,} rows"
            say(f"{self._tally.name}: another run on this ledger is asking {count}; its answers are taken over.")
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
