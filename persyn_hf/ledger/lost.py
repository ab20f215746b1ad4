"""Recovery of a ledger whose file was deleted while in use: the open connection's data is saved to another file."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing

from persyn_hf.errors import LedgerError

#: No run uses the copy, so its claims are removed; the requests in flight may have been charged for.
_FREED = (
    "UPDATE sums SET usd = usd + (SELECT coalesce(sum(reserved), 0) FROM owners) WHERE name = 'lost'",
    "DELETE FROM claims",
    "DELETE FROM owners",
)


def lost_ledger(connection: sqlite3.Connection, path: str) -> LedgerError:
    """Saves the answers of a deleted or replaced ledger next to its path, and returns an error that says so.

    Args:
        connection (`sqlite3.Connection`): Open connection, for which the system keeps the deleted file.
        path (`str`): Path of the ledger.

    Returns:
        `LedgerError`: Error that names the cause, the file with the answers and the fix.
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
            f"{lost} Its answers cannot be saved either ({error}). Stop what deleted it, restore the file if there is "
            "a copy, and run again: requests without an answer in a ledger are sent again."
        )
    return LedgerError(
        f"{lost} Its {count:,} answers are in {copy}. Stop what deleted it, move that file to {path}, and run again: "
        "only missing answers are requested."
    )
