"""Recovery of the readable answers of a damaged ledger, or of one in an older format, into a new ledger."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from persyn_hf.errors import LedgerError
from persyn_hf.ledger.ledger import Ledger, Row
from persyn_hf.ledger.schema import APPLICATION_ID, COLUMN_TYPES, SCHEMA_VERSION

#: Columns that every answer needs.
_NEEDED = frozenset({"key", "text", "finish_reason"})
_AT_ONCE = 500
PARTS = 65_536


def rescue(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> tuple[int, int]:
    """Copies every readable answer of a ledger to a new one; the old file is not changed.

    Keys are evenly distributed digests, so the file is read in 65,536 parts by their first two bytes: a damaged page
    costs only the parts in it.

    Args:
        source (`str` or `PathLike`): Path of the damaged or older ledger.
        target (`str` or `PathLike`): Path of the new ledger.

    Returns:
        `tuple[int, int]`: Number of answers in the new ledger, and number of parts of the old one, out of 65,536, that
        could not be read completely.

    Raises:
        LedgerError: If `source` is not a ledger or has a newer format, or `target` exists.
    """
    if os.path.exists(target):
        raise LedgerError(f"{os.fspath(target)}: the file exists already; name a new file.")
    if not os.path.isfile(source):
        raise LedgerError(f"{os.fspath(source)}: there is no such file.")
    with closing(sqlite3.connect(f"{Path(source).absolute().as_uri()}?mode=ro", uri=True)) as connection:
        present = _columns(connection, os.fspath(source))
        damaged = 0
        with Ledger(target) as ledger:
            for first in range(PARTS):
                try:
                    for rows in filter(None, _part(connection, present, first)):
                        ledger.insert(rows)
                except sqlite3.DatabaseError:
                    damaged += 1
            return len(ledger), damaged


def _columns(connection: sqlite3.Connection, source: str) -> set[str]:
    try:
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise LedgerError(f"{source}: is not a ledger.")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        present = {row[1] for row in connection.execute("PRAGMA table_info(completions)")}
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{source}: the file cannot be read: {error}.") from error
    if version > SCHEMA_VERSION or not present >= _NEEDED:
        raise LedgerError(f"{source}: has ledger format {version}, which this version of persyn-hf cannot read.")
    return present


def _part(connection: sqlite3.Connection, present: set[str], first: int) -> Iterator[list[Row]]:
    """Yields the rows whose key starts with two bytes, in chunks, so that those before a damaged page are kept."""
    missing = {"created": repr(time.time())}
    names = ", ".join(name if name in present else f"{missing.get(name, 'NULL')} AS {name}" for name in COLUMN_TYPES)
    last = first == PARTS - 1
    bounds = "key >= ?" if last else "key >= ? AND key < ?"
    values = [part.to_bytes(2, "big") for part in ([first] if last else [first, first + 1])]
    cursor = connection.execute(f"SELECT {names} FROM completions WHERE {bounds} ORDER BY key", values)
    rows: list[Row] = []
    try:
        for row in cursor:
            rows.append(row)
            if len(rows) == _AT_ONCE:
                yield rows
                rows = []
    except sqlite3.DatabaseError:
        yield rows
        raise
    yield rows
