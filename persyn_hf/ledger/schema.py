"""The tables of a ledger: created in a new file, upgraded in an older ledger, refused in any other file."""

from __future__ import annotations

import sqlite3
import time

from persyn_hf.errors import LedgerError

#: Version of the tables below.
SCHEMA_VERSION = 3
#: Earlier versions that are upgraded when they are opened.
_UPGRADED = frozenset({2})
APPLICATION_ID = 0x50455253  # "PERS"
#: The columns of an answer in order, with their Arrow types.
COLUMN_TYPES = {
    "key": "string",
    "text": "string",
    "finish_reason": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "reasoning": "string",
    "usage_source": "string",
    "prompt_id": "string",
    "model": "string",
    "revision": "string",
    "seed": "int64",
    "sampling": "string",
    "cost": "float64",
    "created": "float64",
    "kind": "string",
    "cached_tokens": "int64",
    "reasoning_tokens": "int64",
}
_SQL_TYPES = {"string": "TEXT", "int64": "INTEGER", "float64": "REAL"}
_CONSTRAINTS = {
    "key": "BLOB PRIMARY KEY",
    "text": "TEXT NOT NULL",
    "finish_reason": "TEXT NOT NULL",
    "created": "REAL NOT NULL",
}
#: `owners` are the active runs; `claims` the rows that each has claimed; `sums` the money spent, in USD: on answers in
#: the ledger (`spent`, updated by triggers), and on answers that were lost (`lost`).
_BESIDE = (
    """CREATE TABLE IF NOT EXISTS owners (id INTEGER PRIMARY KEY AUTOINCREMENT, place TEXT NOT NULL,
        pid INTEGER NOT NULL, started TEXT NOT NULL, beat REAL NOT NULL, reserved REAL NOT NULL DEFAULT 0)""",
    "CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS claims_of_an_owner ON claims (owner)",
    "CREATE TABLE IF NOT EXISTS sums (name TEXT PRIMARY KEY, usd REAL NOT NULL) WITHOUT ROWID",
    """CREATE TRIGGER IF NOT EXISTS answer_paid AFTER INSERT ON completions WHEN NEW.cost IS NOT NULL BEGIN
        UPDATE sums SET usd = usd + NEW.cost WHERE name = 'spent'; END""",
    """CREATE TRIGGER IF NOT EXISTS answer_pruned AFTER DELETE ON completions WHEN OLD.cost IS NOT NULL BEGIN
        UPDATE sums SET usd = usd - OLD.cost WHERE name = 'spent'; END""",
)
#: Seconds to wait for another process that holds the file.
BUSY_SECONDS = 60.0


def set_up(connection: sqlite3.Connection, path: str) -> None:
    """Configures a connection, and creates or upgrades the tables.

    Args:
        connection (`sqlite3.Connection`): Open connection in autocommit mode.
        path (`str`): Path of the file, for errors; `""` and `":memory:"` are private.

    Raises:
        LedgerError: If the file belongs to another program or another version.
        sqlite3.Error: If the file cannot be read or written.
    """
    execute = connection.execute
    _use_wal(connection)
    execute("PRAGMA synchronous=NORMAL")
    if path not in ("", ":memory:"):
        execute("PRAGMA wal_autocheckpoint=0")
    execute("BEGIN IMMEDIATE")
    try:
        version = execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            if execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise LedgerError(f"{path}: is an SQLite file but not a ledger; name another path for `ledger`.")
            execute(f"CREATE TABLE completions ({', '.join(map(_declared, COLUMN_TYPES))})")
            execute(f"PRAGMA application_id={APPLICATION_ID}")
        elif execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise LedgerError(f"{path}: belongs to another program; name another path for `ledger`.")
        elif version != SCHEMA_VERSION and version not in _UPGRADED:
            raise LedgerError(
                f"{path}: has ledger format {version}, but this version of persyn-hf reads {SCHEMA_VERSION}. "
                f"Copy its answers with `persyn-hf ledger rescue {path} NEW`, use the version of persyn-hf that wrote "
                "it, or move the file away to start a new one (all requests are then sent again)."
            )
        if version != SCHEMA_VERSION:
            _upgrade(connection)
    except BaseException:
        execute("ROLLBACK")
        raise
    execute("COMMIT")


def _upgrade(connection: sqlite3.Connection) -> None:
    """Adds the missing columns and tables; existing data is not changed."""
    execute = connection.execute
    present = {row[1] for row in execute("PRAGMA table_info(completions)")}
    for name in COLUMN_TYPES:
        if name not in present:
            execute(f"ALTER TABLE completions ADD COLUMN {_declared(name)}")
    for statement in _BESIDE:
        execute(statement)
    execute("INSERT OR REPLACE INTO sums SELECT 'spent', coalesce(sum(cost), 0) FROM completions")
    execute("INSERT OR IGNORE INTO sums VALUES ('lost', 0)")
    execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _declared(name: str) -> str:
    return f"{name} {_CONSTRAINTS.get(name) or _SQL_TYPES[COLUMN_TYPES[name]]}"


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switches to WAL, and waits for other processes, which SQLite does not do in this one statement."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
