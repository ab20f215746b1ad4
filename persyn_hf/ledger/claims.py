"""Rows that a run has taken for itself, and money that it has set aside, in a ledger that other runs use too.

A row is claimed before it is asked and free again once it is answered or has failed, so that no two runs pay for it:
neither two processes nor two threads of one. What is in flight is set aside in the ledger with its worst case, so that
all runs together keep within `max_cost`. The claims of a run end with its process; and with a lease, where a process
is there but gives no sign of life (stopped, or in a container whose processes cannot be seen from here). What such a
run had set aside counts as spent in vain: its requests may have been answered and charged for.

All processes that use a ledger run on one machine: SQLite's WAL needs memory that they share, which a network file
system does not give. A ledger on one may be used from one machine at a time.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from types import TracebackType

from persyn_hf.errors import LedgerError
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import CHUNK, Ledger, Origin, add_rows, answer_row, key_blob, key_text
from persyn_hf.ledger.owners import BEAT, Owner, is_gone, now, this_process

_log = logging.getLogger(__name__)
#: Rounding that sums of many small amounts may have, in USD.
_ROUNDING = 1e-9


class Claims:
    """What one run holds in a ledger; to be closed when it ends.

    Args:
        ledger (`Ledger`): Shared with other runs, in this process or others.

    Example:
        >>> with Ledger(":memory:") as ledger, Claims(ledger) as mine, Claims(ledger) as others:
        ...     mine.take(["k"]), others.take(["k"])
        (({}, ['k']), ({}, []))
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._process = this_process()
        self._ended = threading.Event()
        with ledger.writing() as connection:
            self._bury(connection)
            cursor = connection.execute(
                "INSERT INTO owners (place, pid, started, beat) VALUES (?, ?, ?, ?)", [*self._signature, now()]
            )
            self._id = int(cursor.lastrowid or 0)
        self._pulse: threading.Thread | None = None
        if ledger.on_disk:
            self._pulse = threading.Thread(target=self._beat, name="persyn-claims", daemon=True)
            self._pulse.start()

    @property
    def _signature(self) -> tuple[str, int, str]:
        return self._process.place, self._process.pid, self._process.started

    def take(self, keys: Iterable[str]) -> tuple[dict[str, Completion], list[str]]:
        """Takes what is free of some rows.

        Args:
            keys (`Iterable[str]`): The rows, by the keys of their answers.

        Returns:
            `tuple[dict[str, Completion], list[str]]`: The answers that are there, and the keys that are this run's
            from now on; another run is at work on the rest, or this one took them before.
        """
        wanted = list(dict.fromkeys(keys))
        found = self.ledger.get_many(wanted)
        missing = [key for key in wanted if key not in found]
        if not missing or not self._free(missing):
            return found, []
        with self.ledger.writing() as connection:
            self._revive(connection)
            self._bury(connection)
            answered = _present(connection, "completions", missing)
            taken = _present(connection, "claims", missing)
            free = [key for key in missing if key not in answered and key not in taken]
            connection.executemany("INSERT INTO claims VALUES (?, ?)", [(key_blob(key), self._id) for key in free])
        return found | self.ledger.get_many(answered), free

    def keep(self, answers: Sequence[tuple[str, Completion, Origin | None]], reserved: float | None = None) -> None:
        """Keeps answers and frees their rows.

        Args:
            answers (`Sequence[tuple]`): Key, answer and origin of each. An answer whose row has one already was paid
                for in vain.
            reserved (`float`, *optional*): USD that are set aside from now on, for what is still in flight.
        """
        moment = time.time()
        rows = [answer_row(key, answer, origin or Origin(), moment) for key, answer, origin in answers]
        with self.ledger.writing() as connection:
            twice = _present(connection, "completions", [key for key, _, _ in answers])
            lost = sum(origin.cost or 0.0 for key, _, origin in answers if origin is not None and key in twice)
            add_rows(connection, rows)
            self._drop(connection, [key for key, _, _ in answers])
            self._settle(connection, lost, reserved)
        self.ledger.written(len(rows))

    def release(self, keys: Collection[str]) -> None:
        """Frees rows that have no answer: they failed, or are not asked any more."""
        if keys:
            with self.ledger.writing() as connection:
                self._drop(connection, keys)

    def reserve(self, amount: float, limit: float) -> bool:
        """Sets money aside, if it fits beside what all runs have spent and set aside.

        Args:
            amount (`float`): USD.
            limit (`float`): USD that all may come to.
        """
        with self.ledger.writing() as connection:
            if _committed(connection) + amount > limit + _ROUNDING:
                self._bury(connection)  # moves what the dead have set aside, and frees none of it
                return False
            self._revive(connection)
            connection.execute("UPDATE owners SET reserved = reserved + ? WHERE id = ?", [amount, self._id])
        return True

    def settle(self, lost: float, reserved: float) -> None:
        """Says what was spent in vain since, and what is set aside from now on, in USD."""
        with self.ledger.writing() as connection:
            self._settle(connection, lost, reserved)

    def others_reserve(self) -> bool:
        """Whether other runs have money set aside, some of which may be free again later."""
        query = "SELECT count(*) FROM owners WHERE reserved > ? AND id != ?"
        with self.ledger.reading() as connection:
            return bool(connection.execute(query, [_ROUNDING, self._id]).fetchone()[0])

    def committed(self) -> float:
        """USD that all runs have spent and set aside."""
        with self.ledger.reading() as connection:
            return _committed(connection)

    def close(self) -> None:
        """Frees everything."""
        self._ended.set()
        if self._pulse is not None:
            self._pulse.join()
        with self.ledger.writing() as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", [self._id])
            connection.execute("DELETE FROM owners WHERE id = ?", [self._id])

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _free(self, keys: Sequence[str]) -> bool:
        """Whether one of some rows may be free; asked without keeping other processes from writing."""
        with self.ledger.reading() as connection:
            if len(_present(connection, "claims", keys)) < len(keys):
                return True
            return bool(_gone(connection, self._id))

    def _drop(self, connection: sqlite3.Connection, keys: Iterable[str]) -> None:
        marks = [(key_blob(key), self._id) for key in keys]
        connection.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", marks)

    def _settle(self, connection: sqlite3.Connection, lost: float, reserved: float | None) -> None:
        if lost > 0:
            connection.execute("UPDATE sums SET usd = usd + ? WHERE name = 'lost'", [lost])
        if reserved is not None:
            connection.execute("UPDATE owners SET reserved = ? WHERE id = ?", [reserved, self._id])

    def _bury(self, connection: sqlite3.Connection) -> None:
        """Frees the rows of runs that are gone; what they had set aside may have been charged for."""
        for number, reserved in _gone(connection, getattr(self, "_id", None)):
            connection.execute("UPDATE sums SET usd = usd + ? WHERE name = 'lost'", [reserved])
            connection.execute("DELETE FROM claims WHERE owner = ?", [number])
            connection.execute("DELETE FROM owners WHERE id = ?", [number])

    def _revive(self, connection: sqlite3.Connection) -> None:
        """Registers this run again, where others took it for gone."""
        connection.execute(
            "INSERT OR IGNORE INTO owners (id, place, pid, started, beat) VALUES (?, ?, ?, ?, ?)",
            [self._id, *self._signature, now()],
        )

    def _beat(self) -> None:
        """Gives a sign of life every few seconds."""
        while not self._ended.wait(BEAT):
            try:
                with self.ledger.writing() as connection:
                    self._revive(connection)
                    connection.execute("UPDATE owners SET beat = ? WHERE id = ?", [now(), self._id])
            except LedgerError as error:  # the run finds it too, at its next answer
                _log.warning("%s", error)


def _gone(connection: sqlite3.Connection, own: int | None) -> list[tuple[int, float]]:
    """The runs that are gone, with what they had set aside."""
    rows = connection.execute("SELECT id, place, pid, started, beat, reserved FROM owners").fetchall()
    return [
        (number, reserved)
        for number, place, pid, started, beat, reserved in rows
        if number != own and is_gone(Owner(place, pid, started), beat)
    ]


def _present(connection: sqlite3.Connection, table: str, keys: Sequence[str]) -> set[str]:
    """Those of some keys that a table has."""
    return {key for part in _parts(keys) for key in _keys_in(connection, table, part)}


def _keys_in(connection: sqlite3.Connection, table: str, keys: Sequence[str]) -> Iterator[str]:
    marks = ",".join("?" * len(keys))
    for (key,) in connection.execute(f"SELECT key FROM {table} WHERE key IN ({marks})", [*map(key_blob, keys)]):
        yield key_text(key)


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), CHUNK):
        yield keys[start : start + CHUNK]


def _committed(connection: sqlite3.Connection) -> float:
    query = "SELECT (SELECT sum(usd) FROM sums) + (SELECT coalesce(sum(reserved), 0) FROM owners)"
    return float(connection.execute(query).fetchone()[0])
