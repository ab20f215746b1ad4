"""The ledger: every answer that was paid for, in one SQLite file, kept the moment it arrives."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from persyn_hf.errors import LedgerError
from persyn_hf.generation.client import Completion

_log = logging.getLogger(__name__)
#: Version of the table below.
SCHEMA_VERSION = 3
#: The oldest that is read, and given the columns that it lacks.
_OLDEST = 2
APPLICATION_ID = 0x50455253  # "PERS"
#: The columns by Arrow's names of types, in their order.
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
    "cached_tokens": "int64",
    "reasoning_tokens": "int64",
}
#: Columns that version 2 did not have, with their SQL types.
_ADDED = {"cached_tokens": "INTEGER", "reasoning_tokens": "INTEGER"}
#: Those of an answer, in the order of `Completion`.
_ANSWER = (
    "text, finish_reason, prompt_tokens, completion_tokens, reasoning, usage_source, cached_tokens, reasoning_tokens"
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    key BLOB PRIMARY KEY,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    reasoning TEXT,
    usage_source TEXT,
    prompt_id TEXT,
    model TEXT,
    revision TEXT,
    seed INTEGER,
    sampling TEXT,
    cost REAL,
    created REAL NOT NULL,
    cached_tokens INTEGER,
    reasoning_tokens INTEGER
)
"""
#: Host parameters per statement; SQLite's old limit is 999.
_CHUNK = 500
_BUSY_SECONDS = 60.0
#: Answers between two moves from the WAL into the table.
_CHECKPOINT = 1000


@dataclass(frozen=True)
class Origin:
    """Where an answer comes from: for people who read the ledger, not for finding it again.

    Args:
        prompt_id (`str`): Of the prompt.
        model, revision (`str`): Of the teacher.
        seed (`int`): Of the row.
        sampling (`str`): JSON of the sampling parameters.
        cost (`float`): USD.
    """

    prompt_id: str | None = None
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    sampling: str | None = None
    cost: float | None = None


class Ledger:
    """Answers by key, safe for several processes at once.

    What was put is committed before `put` returns (WAL, `synchronous=NORMAL`): a killed process loses nothing that it
    had put, a machine that loses its power loses at most the last moments. Failures are not kept; a rerun asks again.

    Args:
        path (`str` or `PathLike`): The file; made with its folder where absent. `":memory:"` and `""` (in a private
            temporary file, for what exceeds the memory) keep nothing.

    Raises:
        LedgerError: If the file is damaged, is no ledger, or was written by another version; the message says the
            way out.

    Example:
        >>> with Ledger(":memory:") as ledger:
        ...     ledger.put("k", Completion("Hi.", "stop", 3, 2))
        ...     ledger.get_many(["k"])["k"].text
        'Hi.'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._lock = threading.Lock()
        self._written = 0
        self._checkpoint: threading.Thread | None = None
        try:
            if self._on_disk:
                os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: the ledger cannot be opened: {error}.") from error
        try:
            self._set_up()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._explain(error, "opened") from error
        except LedgerError:
            self._connection.close()
            raise

    def _set_up(self) -> None:
        execute = self._connection.execute
        self._use_wal()
        execute("PRAGMA synchronous=NORMAL")
        if self._on_disk:
            execute("PRAGMA wal_autocheckpoint=0")
        execute("BEGIN IMMEDIATE")
        try:
            version = execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                if execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise LedgerError(f"{self.path}: is an SQLite file but no ledger; name another path for `ledger`.")
                execute(_SCHEMA)
                execute(f"PRAGMA application_id={APPLICATION_ID}")
                execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise LedgerError(f"{self.path}: belongs to another program; name another path for `ledger`.")
            elif _OLDEST <= version < SCHEMA_VERSION:
                self._add_columns()
            elif version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{self.path}: has ledger format {version}, this version of persyn-hf reads {SCHEMA_VERSION}. "
                    f"Take its answers over with `persyn-hf ledger rescue {self.path} NEW`, use the version of "
                    "persyn-hf that wrote it, or move the file away to start a new one (all is asked again)."
                )
        finally:
            execute("COMMIT")

    def _add_columns(self) -> None:
        """Gives a ledger of an older version the columns that it lacks."""
        execute = self._connection.execute
        present = {row[1] for row in execute("PRAGMA table_info(completions)")}
        for name, kind in _ADDED.items():
            if name not in present:
                execute(f"ALTER TABLE completions ADD COLUMN {name} {kind}")
        execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @property
    def _on_disk(self) -> bool:
        return self.path not in ("", ":memory:")

    def _use_wal(self) -> None:
        """Switches to WAL. SQLite does not wait for other processes in this one statement, so it is waited here."""
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def get_many(self, keys: Iterable[str]) -> dict[str, Completion]:
        """The answers of those keys that have one.

        Args:
            keys (`Iterable[str]`): Keys of `keys.completion_key`.

        Raises:
            LedgerError: If the file cannot be read.
        """
        wanted = list(keys)
        found: dict[str, Completion] = {}
        with self._reading():
            for start in range(0, len(wanted), _CHUNK):
                part = wanted[start : start + _CHUNK]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, {_ANSWER} FROM completions WHERE key IN ({marks})"
                for key, *values in self._connection.execute(query, [_blob(key) for key in part]):
                    found[_text(key)] = Completion(*values)
        return found

    def put(self, key: str, completion: Completion, origin: Origin | None = None) -> None:
        """Keeps one answer; the first of a key stays.

        Raises:
            LedgerError: If it cannot be written (a full disk, a damaged file). Nothing written before is lost.
        """
        self.put_many([(key, completion, origin)])

    def put_many(self, answers: Sequence[tuple[str, Completion, Origin | None]]) -> None:
        """Keeps several answers in one transaction."""
        now = time.time()
        rows = [_row(key, completion, origin or Origin(), now) for key, completion, origin in answers]
        self.insert(rows)

    def insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Writes whole rows in one transaction, in the order of the table's columns."""
        names, marks = ", ".join(COLUMN_TYPES), ",".join("?" * len(COLUMN_TYPES))
        with self._writing():
            self._connection.executemany(f"INSERT OR IGNORE INTO completions ({names}) VALUES ({marks})", rows)
        self._written += len(rows)
        if self._written >= _CHECKPOINT and self._on_disk:
            self._move_on()

    def _move_on(self) -> None:
        """Moves what was written from the WAL into the table, beside the caller: the disk may take half a second."""
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return
        self._written = 0
        self._checkpoint = threading.Thread(target=_checkpoint, args=(self.path,), name="persyn-checkpoint")
        self._checkpoint.start()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every answer with its origin, `key` in hex and `created` in seconds since 1970, in the order of the keys."""
        names = tuple(COLUMN_TYPES)
        after: bytes = b""
        while True:
            query = f"SELECT {', '.join(names)} FROM completions WHERE key > ? ORDER BY key LIMIT {_CHUNK}"
            with self._reading():
                part = self._connection.execute(query, [after]).fetchall()
            if not part:
                return
            after = part[-1][0]
            for values in part:
                yield dict(zip(names, (_text(values[0]), *values[1:]), strict=True))

    def totals(self) -> list[dict[str, Any]]:
        """By model and revision: answers, cut ones, tokens, USD, first and last time."""
        names = (
            "model",
            "revision",
            "answers",
            "truncated",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "reasoning_tokens",
            "cost",
            "first",
            "last",
        )
        query = """
            SELECT coalesce(model, ''), coalesce(revision, ''), count(*), sum(finish_reason <> 'stop'),
                coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
                coalesce(sum(cached_tokens), 0), coalesce(sum(reasoning_tokens), 0), coalesce(sum(cost), 0.0),
                min(created), max(created)
            FROM completions GROUP BY 1, 2 ORDER BY 1, 2
        """
        with self._reading():
            return [dict(zip(names, values, strict=True)) for values in self._connection.execute(query)]

    def spent(self) -> float:
        """USD that all answers have cost."""
        with self._reading():
            return float(self._connection.execute("SELECT coalesce(sum(cost), 0) FROM completions").fetchone()[0])

    def prune(self, where: str, values: Sequence[Any], dry_run: bool = False) -> int:
        """Removes the answers for which an SQL condition holds, and gives the room back to the disk.

        Args:
            where (`str`): The condition, with `?` for values.
            values (`Sequence`): Those.
            dry_run (`bool`, defaults to `False`): Only count.

        Returns:
            `int`: How many answers.
        """
        with self._reading():
            query = f"SELECT count(*) FROM completions WHERE {where}"
            count = int(self._connection.execute(query, values).fetchone()[0])
        if count and not dry_run:
            with self._writing():
                self._connection.execute(f"DELETE FROM completions WHERE {where}", values)
            with self._reading():
                self._connection.execute("VACUUM")
        return count

    def __len__(self) -> int:
        with self._reading():
            return int(self._connection.execute("SELECT count(*) FROM completions").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        if self._checkpoint is not None:
            self._checkpoint.join()
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as error:
                raise self._explain(error, "read") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing."""
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                except sqlite3.Error:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._explain(error, "written") from error

    def _explain(self, error: sqlite3.Error, verb: str) -> LedgerError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            way = (
                "The file is damaged or is no ledger. Move it away to start a new one, or take over what can still be "
                f"read with: persyn-hf ledger rescue '{self.path}' NEW"
            )
        elif code == sqlite3.SQLITE_FULL:
            way = "The disk is full: make room and run again; answers that are in the ledger are not asked for twice."
        elif code == sqlite3.SQLITE_BUSY:
            way = f"Another process has held it for {_BUSY_SECONDS:.0f} seconds; end that one and run again."
        else:
            way = "Check the path, its permissions and the disk, and run again."
        return LedgerError(f"{self.path}: the ledger cannot be {verb}: {error}. {way}")


def _checkpoint(path: str) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:  # nothing is lost: what is not moved stays in the WAL
        _log.warning("%s: what was written stays in `%s-wal` for now: %s", path, path, error)


def _row(key: str, completion: Completion, origin: Origin, now: float) -> tuple[Any, ...]:
    thoughts = completion.reasoning and _storable(completion.reasoning)
    return (
        _blob(key),
        _storable(completion.text),
        completion.finish_reason,
        completion.prompt_tokens,
        completion.completion_tokens,
        thoughts,
        completion.usage_source,
        origin.prompt_id,
        origin.model,
        origin.revision,
        origin.seed,
        origin.sampling,
        origin.cost,
        now,
        completion.cached_tokens,
        completion.reasoning_tokens,
    )


def _storable(text: str) -> str:
    """SQLite and Arrow take UTF-8 only: a lone surrogate, as a broken server may send, becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _blob(key: str) -> bytes:
    try:
        return bytes.fromhex(key)
    except ValueError:
        return key.encode()


def _text(key: bytes) -> str:
    return key.hex() if len(key) == 32 else key.decode()
