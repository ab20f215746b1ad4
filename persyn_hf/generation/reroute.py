"""Rows that one teacher hands to others: each is answered as soon as the teacher that takes it has time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence


class Exchange:
    """Rows on their way from teachers that are down to the next best ones.

    A teacher that has finished its own rows waits here, until it is handed some or nobody is left who could.

    Args:
        names (`Iterable[str]`): The teachers, all of them at work.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.gone: set[str] = set()
        self._rows: dict[str, list[int]] = {name: [] for name in names}
        self._at_work = len(self._rows)
        self._changed = asyncio.Condition()

    async def hand(self, rows: Sequence[tuple[int, str]]) -> None:
        """Hands over rows: which, and to whom."""
        async with self._changed:
            for row, name in rows:
                self._rows[name].append(row)
            self._changed.notify_all()

    async def take(self, name: str) -> list[int]:
        """The rows that a teacher was handed; none once no more can come. It counts as idle meanwhile."""
        async with self._changed:
            self._at_work -= 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._rows[name] or not self._under_way)
            rows = self._drawn(name)
            self._at_work += bool(rows)
            return rows

    async def leave(self, name: str) -> list[int]:
        """A teacher takes no more rows; gives those that it was handed and has not taken."""
        async with self._changed:
            self.gone.add(name)
            self._at_work -= 1
            self._changed.notify_all()
            return self._drawn(name)

    @property
    def _under_way(self) -> bool:
        """Whether rows may still be handed to somebody."""
        return self._at_work > 0 or any(self._rows.values())

    def _drawn(self, name: str) -> list[int]:
        rows, self._rows[name] = self._rows[name], []
        return rows
