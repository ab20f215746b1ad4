"""The ledger: every paid answer in one SQLite file, stored as soon as it arrives."""

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

from persyn_hf.columns import TOKENS
from persyn_hf.errors import LedgerError
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.lost import lost_ledger
from persyn_hf.ledger.schema import BUSY_SECONDS, COLUMN_TYPES, set_up

_log = logging.getLogger(__name__)
#: The columns of an answer, in the order of the fields of `Completion`.
_ANSWER = (
    "text, finish_reason, prompt_tokens, completion_tokens, reasoning, usage_source, cached_tokens, reasoning_tokens"
)
#: Host parameters per statement; SQLite's old limit is 999.
CHUNK = 500
#: Answers between two checkpoints of the WAL.
_CHECKPOINT = 1000

#: One answer as a row of the table, in the order of its columns.
Row = tuple[object, ...]

#: Kinds of answers: a teacher's, a judge's, a judge's without a score (kept for inspection, and requested again), and
#: the score of a student behind a server.
KINDS = ("teacher", "judge", "judge (no score)", "student")


@dataclass(frozen=True)
class Origin:
    """Origin of an answer, for people who read the ledger; it is not used to look answers up.

    Args:
        prompt_id (`str`, *optional*): Id of the prompt.
        model, revision (`str`, *optional*): Model and revision of the teacher.
        seed (`int`, *optional*): Seed of the row.
        sampling (`str`, *optional*): Sampling parameters as JSON.
        cost (`float`, *optional*): Cost in USD.
        kind (`str`, defaults to `"teacher"`): Kind of the answer, one of [`KINDS`].
    """

    prompt_id: str | None = None
    model: str | None = None
    revision: str | None = None
    seed: int | None = None
    sampling: str | None = None
    cost: float | None = None
    kind: str = "teacher"


class Ledger:
    """Stores answers by key, for several processes at once.

    An answer is committed before `put` returns (WAL, `synchronous=NORMAL`): a killed process loses no stored answer,
    and a power failure loses at most the last moments. Failures are not stored; a rerun sends their requests again.

    Args:
        path (`str` or `PathLike`): Path of the file, created with its folder if missing. `":memory:"` and `""` (a
            private temporary file, for data beyond the memory) are not kept.

    Raises:
        LedgerError: If the file is damaged, is not a ledger, or was written by another version; the message says how
            to fix it.

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
            if self.on_disk:
                os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: the ledger cannot be opened: {error}.") from error
        try:
            set_up(self._connection, self.path)
            self._file = _identity(self.path) if self.on_disk else None
        except sqlite3.Error as error:
            self._connection.close()
            raise self._explain(error, "opened") from error
        except LedgerError:
            self._connection.close()
            raise

    @property
    def on_disk(self) -> bool:
        """`True` if the ledger is a file that other processes can use too."""
        return self.path not in ("", ":memory:")

    def get_many(self, keys: Iterable[str]) -> dict[str, Completion]:
        """Returns the stored answers of some keys; keys without an answer are omitted.

        Args:
            keys (`Iterable[str]`): Keys from `jobs.completion_key`.

        Raises:
            LedgerError: If the file cannot be read.
        """
        wanted = list(keys)
        found: dict[str, Completion] = {}
        with self.reading():
            for start in range(0, len(wanted), CHUNK):
                part = wanted[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, {_ANSWER} FROM completions WHERE key IN ({marks})"
                for key, *values in self._connection.execute(query, [key_blob(key) for key in part]):
                    found[key_text(key)] = Completion(*values)
        return found

    def put(self, key: str, completion: Completion, origin: Origin | None = None) -> None:
        """Stores one answer; a key that has an answer keeps it.

        Raises:
            LedgerError: If the answer cannot be written (full disk, damaged file). Earlier answers are not lost.
        """
        self.put_many([(key, completion, origin)])

    def put_many(self, answers: Sequence[tuple[str, Completion, Origin | None]]) -> None:
        """Stores several answers in one transaction."""
        now = time.time()
        rows = [answer_row(key, completion, origin or Origin(), now) for key, completion, origin in answers]
        self.insert(rows)

    def insert(self, rows: Sequence[Row]) -> None:
        """Writes complete rows, in the order of the table's columns, in one transaction."""
        with self.writing() as connection:
            add_rows(connection, rows)
        self.written(len(rows))

    def written(self, count: int) -> None:
        """Counts the rows that were added, and checkpoints the WAL every 1,000 rows."""
        self._written += count
        if self._written >= _CHECKPOINT and self.on_disk:
            self._move_on()

    def _move_on(self) -> None:
        """Checkpoints the WAL in a thread, because the disk may take half a second."""
        if self._checkpoint is not None and self._checkpoint.is_alive():
            return
        self._written = 0
        self._checkpoint = threading.Thread(target=_checkpoint, args=(self.path,), name="persyn-checkpoint")
        self._checkpoint.start()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields every answer with its origin, by key: `key` in hex, `created` in seconds since 1970."""
        names = tuple(COLUMN_TYPES)
        after: bytes = b""
        while True:
            query = f"SELECT {', '.join(names)} FROM completions WHERE key > ? ORDER BY key LIMIT {CHUNK}"
            with self.reading():
                part = self._connection.execute(query, [after]).fetchall()
            if not part:
                return
            after = part[-1][0]
            for values in part:
                yield dict(zip(names, (key_text(values[0]), *values[1:]), strict=True))

    def origins(self, model: str) -> Iterator[dict[str, Any]]:
        """A teacher's answers without their texts: where each comes from, its tokens, and `key` in hex."""
        names = ("key", "prompt_id", "revision", "seed", "sampling", *TOKENS)
        query = (
            f"SELECT {', '.join(names)} FROM completions WHERE model = ? AND prompt_id IS NOT NULL "
            "AND coalesce(kind, 'teacher') = 'teacher' ORDER BY created"
        )
        with self.reading():
            found = self._connection.execute(query, [model]).fetchall()
        for values in found:
            yield dict(zip(names, (key_text(values[0]), *values[1:]), strict=True))

    def totals(self) -> list[dict[str, Any]]:
        """Sums answers, truncated answers, tokens and USD by kind, model and revision, with first and last time."""
        names = (
            "kind",
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
            SELECT coalesce(kind, 'teacher'), coalesce(model, ''), coalesce(revision, ''),
                count(*), sum(finish_reason <> 'stop'),
                coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),
                coalesce(sum(cached_tokens), 0), coalesce(sum(reasoning_tokens), 0), coalesce(sum(cost), 0.0),
                min(created), max(created)
            FROM completions GROUP BY 1, 2, 3 ORDER BY 1 = 'teacher' DESC, 1, 2, 3
        """
        with self.reading():
            return [dict(zip(names, values, strict=True)) for values in self._connection.execute(query)]

    def spent(self) -> float:
        """Returns the cost of all answers, in USD."""
        return self._sum("spent")

    def lost(self) -> float:
        """Returns the worst-case cost, in USD, of requests whose answers were lost: they timed out, or were in flight
        when a process was killed."""
        return self._sum("lost")

    def _sum(self, name: str) -> float:
        with self.reading() as connection:
            return float(connection.execute("SELECT usd FROM sums WHERE name = ?", [name]).fetchone()[0])

    def prune(self, where: str, values: Sequence[object], dry_run: bool = False) -> int:
        """Removes the answers that match an SQL condition, and frees their disk space.

        Args:
            where (`str`): SQL condition, with `?` for values.
            values (`Sequence`): Values of the condition.
            dry_run (`bool`, defaults to `False`): Whether to only count the answers.

        Returns:
            `int`: Number of matching answers.
        """
        with self.reading():
            query = f"SELECT count(*) FROM completions WHERE {where}"
            count = int(self._connection.execute(query, values).fetchone()[0])
        if count and not dry_run:
            with self.writing():
                self._connection.execute(f"DELETE FROM completions WHERE {where}", values)
            with self.reading():
                self._connection.execute("VACUUM")
        return count

    def __len__(self) -> int:
        with self.reading():
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
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lends the connection for the duration of the block; other threads wait."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise self._explain(error, "read") from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Lends the connection for one transaction, which is committed as a whole; other processes wait to write."""
        with self._lock:
            if self._file is not None and _identity(self.path) != self._file:
                raise lost_ledger(self._connection, self.path)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise self._explain(error, "written") from error

    def _explain(self, error: sqlite3.Error, verb: str) -> LedgerError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            way = (
                "The file is damaged or is not a ledger. Move it away to start a new one, or recover its readable "
                f"answers with: persyn-hf ledger rescue '{self.path}' NEW"
            )
        elif code == sqlite3.SQLITE_FULL:
            way = "The disk is full: free some space and run again; answers in the ledger are not requested twice."
        elif code == sqlite3.SQLITE_BUSY:
            way = f"Another process has held it for {BUSY_SECONDS:.0f} seconds; stop that process and run again."
        else:
            way = "Check the path, its permissions and the disk, and run again."
        return LedgerError(f"{self.path}: the ledger cannot be {verb}: {error}. {way}")


#: A ledger, or the path of one; with `None` nothing is kept.
LedgerLike = Ledger | str | os.PathLike[str] | None


@contextmanager
def open_ledger(ledger: LedgerLike) -> Iterator[Ledger]:
    """Opens a ledger for the duration of the block; a `Ledger` that was passed in stays open."""
    if isinstance(ledger, Ledger):
        yield ledger
        return
    with Ledger("" if ledger is None else ledger) as opened:
        yield opened


def add_rows(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Adds rows of answers; a key that has an answer keeps it."""
    names, marks = ", ".join(COLUMN_TYPES), ",".join("?" * len(COLUMN_TYPES))
    connection.executemany(f"INSERT OR IGNORE INTO completions ({names}) VALUES ({marks})", rows)


def _identity(path: str) -> tuple[int, int] | None:
    """Returns device and inode of the file at a path; `None` if there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _checkpoint(path: str) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:  # nothing is lost: the answers stay in the WAL
        _log.warning("%s: recent answers stay in `%s-wal` for now: %s", path, path, error)


def answer_row(key: str, completion: Completion, origin: Origin, now: float) -> Row:
    """Converts an answer to a row, in the order of the table's columns."""
    thoughts = completion.reasoning and _storable(completion.reasoning)
    return (
        key_blob(key),
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
        origin.kind,
        completion.cached_tokens,
        completion.reasoning_tokens,
    )


def _storable(text: str) -> str:
    """Replaces lone surrogates, which a broken server may send, by `?`: SQLite and Arrow accept only UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def key_blob(key: str) -> bytes:
    """Converts a key to its stored form."""
    try:
        return bytes.fromhex(key)
    except ValueError:
        return key.encode()


def key_text(key: bytes) -> str:
    """Converts a stored key to text."""
    return key.hex() if len(key) == 32 else key.decode()
