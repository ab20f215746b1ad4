"""Claims of a run on rows and money, in a ledger that several runs share.

A run claims a row before it sends the request, and releases it once the row is answered or has failed, so no two runs
pay for the same row, neither two processes nor two threads of one. The worst-case cost of the requests in flight is
reserved in the ledger, so all runs together stay within `max_cost`. The claims of a run end with its process, or with
a lease if the process exists but sends no heartbeat (it is stopped, or runs in a container that cannot be seen from
here). The money that such a run had reserved counts as lost: its requests may have been answered and charged for.

All processes that use a ledger at the same time must run on one machine: SQLite's WAL needs shared memory, which a
network file system does not provide. A ledger on such a file system may be used from one machine at a time.
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
#: Tolerance for rounding in sums of many small amounts, in USD.
_ROUNDING = 1e-9


class Claims:
    """Claims of one run in a ledger; close it when the run ends.

    Args:
        ledger (`Ledger`): Ledger that the run shares with others, in this process or elsewhere.

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
        """Claims the rows that have no answer and no claim.

        Args:
            keys (`Iterable[str]`): Keys of the rows' answers.

        Returns:
            `tuple[dict[str, Completion], list[str]]`: The existing answers, and the keys that this call claimed. The
            other rows were claimed before, by another run or this one.
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
        """Stores answers and releases their rows.

        Args:
            answers (`Sequence[tuple]`): Key, answer and origin of each. The cost of an answer whose row has one
                already counts as lost.
            reserved (`float`, *optional*): New reserved amount, in USD, for the requests that are still in flight.
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
        """Releases rows without an answer, which failed or are no longer needed."""
        if keys:
            with self.ledger.writing() as connection:
                self._drop(connection, keys)

    def reserve(self, amount: float, limit: float) -> bool:
        """Reserves money, if it fits with the amounts that all runs have spent and reserved; returns whether it did.

        Args:
            amount (`float`): Amount in USD.
            limit (`float`): Limit of the total, in USD.
        """
        with self.ledger.writing() as connection:
            if _committed(connection) + amount > limit + _ROUNDING:
                self._bury(connection)  # counts the reservations of dead runs as lost; frees no money
                return False
            self._revive(connection)
            connection.execute("UPDATE owners SET reserved = reserved + ? WHERE id = ?", [amount, self._id])
        return True

    def settle(self, lost: float, reserved: float) -> None:
        """Adds a lost amount and sets the reserved amount, in USD."""
        with self.ledger.writing() as connection:
            self._settle(connection, lost, reserved)

    def others_reserve(self) -> bool:
        """Returns whether other runs have reserved money, some of which may be released later."""
        query = "SELECT count(*) FROM owners WHERE reserved > ? AND id != ?"
        with self.ledger.reading() as connection:
            return bool(connection.execute(query, [_ROUNDING, self._id]).fetchone()[0])

    def committed(self) -> float:
        """Returns the amount that all runs have spent and reserved, in USD."""
        with self.ledger.reading() as connection:
            return _committed(connection)

    def close(self) -> None:
        """Releases all rows and money of the run."""
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
        """Returns whether one of some rows may be unclaimed; does not block other processes from writing."""
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
        """Releases the rows of runs that are gone, and counts their reserved money as lost."""
        for number, reserved in _gone(connection, getattr(self, "_id", None)):
            connection.execute("UPDATE sums SET usd = usd + ? WHERE name = 'lost'", [reserved])
            connection.execute("DELETE FROM claims WHERE owner = ?", [number])
            connection.execute("DELETE FROM owners WHERE id = ?", [number])

    def _revive(self, connection: sqlite3.Connection) -> None:
        """Registers this run again, if other runs removed it as gone."""
        connection.execute(
            "INSERT OR IGNORE INTO owners (id, place, pid, started, beat) VALUES (?, ?, ?, ?, ?)",
            [self._id, *self._signature, now()],
        )

    def _beat(self) -> None:
        """Sends a heartbeat every few seconds."""
        while not self._ended.wait(BEAT):
            try:
                with self.ledger.writing() as connection:
                    self._revive(connection)
                    connection.execute("UPDATE owners SET beat = ? WHERE id = ?", [now(), self._id])
            except LedgerError as error:  # the run meets it too, at its next answer
                _log.warning("%s", error)


def _gone(connection: sqlite3.Connection, own: int | None) -> list[tuple[int, float]]:
    """Returns the runs that are gone, with the amounts that they had reserved."""
    rows = connection.execute("SELECT id, place, pid, started, beat, reserved FROM owners").fetchall()
    return [
        (number, reserved)
        for number, place, pid, started, beat, reserved in rows
        if number != own and is_gone(Owner(place, pid, started), beat)
    ]


def _present(connection: sqlite3.Connection, table: str, keys: Sequence[str]) -> set[str]:
    """Returns the keys that a table contains."""
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
