"""The ledger: every answer that was paid for, in one SQLite file, kept the moment it arrives."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from persyn_hf.errors import LedgerError
from persyn_hf.generation.client import Completion, Request

#: Version of the table below and of [`completion_key`]; raised when either changes.
SCHEMA_VERSION = 2
_APPLICATION_ID = 0x50455253  # "PERS"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS completions (
    key BLOB PRIMARY KEY,
    text TEXT NOT NULL,
    finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    reasoning TEXT,
    usage_source TEXT,
    created REAL NOT NULL
) WITHOUT ROWID
"""
_INSERT = "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
#: Host parameters per statement; SQLite's old limit is 999.
_CHUNK = 500
_BUSY_SECONDS = 60.0


def completion_key(model: str, revision: str, request: Request) -> str:
    """The identity of an answer: SHA-256 over everything that it depends on, and nothing else.

    Not in it: the teacher's name and the endpoint's address, so that a renamed teacher or a moved server keeps its
    answers.

    Args:
        model (`str`): The model's name; empty for a local folder, whose revision is a digest.
        revision (`str`): What `checkpoints.resolve_revision` gives, or what the configuration says of an endpoint.
        request (`Request`): Messages, sampling parameters and row seed.

    Returns:
        `str`: 64 hex digits.
    """
    parts = [
        SCHEMA_VERSION, model, revision, request.messages, request.sampling.model_dump(mode="json"), request.seed,
    ]  # fmt: skip
    text = json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """Answers by key, safe for several processes at once.

    Every `put` is committed before it returns (WAL, `synchronous=NORMAL`): a killed process loses nothing that it
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
        try:
            if self.path not in ("", ":memory:"):
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
        execute("BEGIN IMMEDIATE")
        try:
            version = execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                if execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise LedgerError(f"{self.path}: is an SQLite file but no ledger; name another path for `ledger`.")
                execute(_SCHEMA)
                execute(f"PRAGMA application_id={_APPLICATION_ID}")
                execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
                raise LedgerError(f"{self.path}: belongs to another program; name another path for `ledger`.")
            elif version != SCHEMA_VERSION:
                raise LedgerError(
                    f"{self.path}: has ledger format {version}, this version of persyn-hf reads {SCHEMA_VERSION}. "
                    "Use the version that wrote it, or move the file away to start a new one (all is asked again)."
                )
        finally:
            execute("COMMIT")

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
            keys (`Iterable[str]`): Keys of [`completion_key`].

        Raises:
            LedgerError: If the file cannot be read.
        """
        wanted = list(keys)
        found: dict[str, Completion] = {}
        with self._lock:
            for start in range(0, len(wanted), _CHUNK):
                part = wanted[start : start + _CHUNK]
                for key, *values in self._select(part):
                    found[_text(key)] = Completion(*values)
        return found

    def _select(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        marks = ",".join("?" * len(keys))
        names = "key, text, finish_reason, prompt_tokens, completion_tokens, reasoning, usage_source"
        query = f"SELECT {names} FROM completions WHERE key IN ({marks})"
        try:
            return self._connection.execute(query, [_blob(key) for key in keys]).fetchall()
        except sqlite3.Error as error:
            raise self._explain(error, "read") from error

    def put(self, key: str, completion: Completion) -> None:
        """Keeps one answer; the first of a key stays.

        Raises:
            LedgerError: If it cannot be written (a full disk, a damaged file). Nothing written before is lost.
        """
        self.put_many([(key, completion)])

    def put_many(self, answers: Sequence[tuple[str, Completion]]) -> None:
        """Keeps several answers in one transaction."""
        now = time.time()
        rows = [(_blob(key), *_values(completion), now) for key, completion in answers]
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    self._connection.executemany(
                        "INSERT OR IGNORE INTO completions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
                    )
                    self._connection.execute("COMMIT")
                except sqlite3.Error:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._explain(error, "written") from error

    def __len__(self) -> int:
        with self._lock:
            try:
                return int(self._connection.execute("SELECT count(*) FROM completions").fetchone()[0])
            except sqlite3.Error as error:
                raise self._explain(error, "read") from error

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    def _explain(self, error: sqlite3.Error, verb: str) -> LedgerError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            way = (
                "The file is damaged or is no ledger. Move it away to start a new one, or rescue what it holds with: "
                f"sqlite3 '{self.path}' .recover | sqlite3 rescued.sqlite"
            )
        elif code == sqlite3.SQLITE_FULL:
            way = "The disk is full: make room and run again; answers that are in the ledger are not asked for twice."
        elif code == sqlite3.SQLITE_BUSY:
            way = f"Another process has held it for {_BUSY_SECONDS:.0f} seconds; end that one and run again."
        else:
            way = "Check the path, its permissions and the disk, and run again."
        return LedgerError(f"{self.path}: the ledger cannot be {verb}: {error}. {way}")


def _values(completion: Completion) -> tuple[Any, ...]:
    c = completion
    reasoning = None if c.reasoning is None else _storable(c.reasoning)
    return _storable(c.text), c.finish_reason, c.prompt_tokens, c.completion_tokens, reasoning, c.usage_source


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
