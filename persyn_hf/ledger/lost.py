"""A ledger whose file was deleted while it is in use: what the open connection still holds is written elsewhere."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

from persyn_hf.errors import LedgerError

#: Nobody asks for rows by the copy; what the runs had in flight may have been charged for.
_FREED = (
    "UPDATE sums SET usd = usd + (SELECT coalesce(sum(reserved), 0) FROM owners) WHERE name = 'lost'",
    "DELETE FROM claims",
    "DELETE FROM owners",
)


def lost_ledger(connection: sqlite3.Connection, path: str) -> LedgerError:
    """Saves what a deleted or replaced ledger held beside its place, and says so.

    Args:
        connection (`sqlite3.Connection`): The open one; the system keeps the deleted file for it.
        path (`str`): Where the ledger was.

    Returns:
        `LedgerError`: What happened, where the answers are, and the way out.
    """
    lost = f"{path}: the ledger was deleted or replaced while it was in use."
    copy = f"{path}.rescued-{os.getpid()}-{time.time_ns() // 10**6}"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        connection.execute("VACUUM INTO ?", [copy])
        with closing(sqlite3.connect(copy)) as saved:
            count = saved.execute("SELECT count(*) FROM completions").fetchone()[0]
            for statement in _FREED:
                saved.execute(statement)
            saved.commit()
    except (OSError, sqlite3.Error) as error:
        return LedgerError(
            f"{lost} What it held cannot be saved either ({error}). Stop what deleted it, put the file back if there "
            "is a copy, and run again: answers that no ledger holds are asked again."
        )
    return LedgerError(
        f"{lost} The {count:,} answers that it held are in {copy}. Stop what deleted it, move that file to {path}, "
        "and run again: only what is missing is asked."
    )
