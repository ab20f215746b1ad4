"""The folder of a run: a sharded table for every stage, with records of the inputs of each shard.

A shard is finished if the fingerprints in its record equal those of the current arguments and inputs, and its file has
the digest in the record. The fingerprints include the digests of the input shards, so a stage that is recomputed with
the same result keeps later stages valid.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf.errors import ConfigError, DataError
from persyn_hf.run.shards import ShardedTable, ShardRecord, Stage, cuts, file_digest, make_shard, write_shard
from persyn_hf.tables import remove, replaced, write_json

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageRecord:
    """Record of a finished stage.

    Args:
        name (`str`): Name of the stage.
        fingerprint (`str`): Fingerprint of its settings and inputs.
        digest (`str`): Digest of its output.
        rows (`int`): Number of rows in its table; 0 for a model.
        errors (`int`): Number of failed rows. Their shards are retried; successful rows come from the ledger.
        seconds (`float`): Wall-clock time, in seconds.
        reused (`bool`, defaults to `False`): Whether the stage was finished before this run.
    """

    name: str
    fingerprint: str
    digest: str
    rows: int
    errors: int
    seconds: float
    reused: bool = False


class RunFolder:
    """Finds finished stages and stores new ones. Every file is written atomically.

    Args:
        path (`str` or `PathLike`): Path of the run folder, which is created if missing.
        ledger (`str` or `PathLike`, *optional*): Path of the ledger. Default: in the folder. Runs with the same
            teachers may share a ledger.
        rows_per_shard (`int`, defaults to 20,000): Number of prompts in one shard.
    """

    def __init__(
        self, path: str | os.PathLike[str], ledger: str | os.PathLike[str] | None = None, rows_per_shard: int = 20_000
    ) -> None:
        self.path = Path(path)
        self.ledger = self.path / "ledger.sqlite" if ledger is None else Path(ledger)
        self.stages = self.path / "stages"
        self.rows_per_shard = rows_per_shard
        self.records: list[StageRecord] = []
        self._digests: dict[str, list[str]] = {}
        self.stages.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against a second run.

        Raises:
            ConfigError: If another process holds the lock.
        """
        if fcntl is None:
            _log.warning("%s cannot be locked on this system; run one process at a time in it", self.path)
            yield
            return
        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"`output_dir`: another run is using {self.path}; wait for it to finish.") from None
            yield

    def keep(self, name: str, data: Dataset) -> None:
        """Writes an input table of the stages in shards. It enters fingerprints by its content."""
        out = self._table(name)
        records = [
            write_shard(part, out, index, {}, time.monotonic())
            for index, part in enumerate(cuts(data, self.rows_per_shard))
        ]
        out.cut(len(records))
        self._digests[name] = [record.digest for record in records]

    def table(self, stage: Stage) -> Dataset:
        """Computes the missing shards of a stage's table in this process and returns the table."""
        inputs = {name: self.digest(source) for name, source in stage.inputs.items()}
        source = self._shards(stage.source)
        if stage.whole:
            made = self._whole(stage, stage.parts(source, inputs))
        else:
            made = [
                self._shard(stage, index, len(source), stage.parts([one], inputs)) for index, one in enumerate(source)
            ]
        self._table(stage.name).cut(len(made))
        self._finished(stage, [record for record, _ in made], all(reused for _, reused in made))
        return self.read(stage.name)

    def model(self, stage: Stage) -> Path:
        """Returns the folder of a stage's checkpoint, which is computed unless it is finished."""
        path = self.stages / stage.name
        inputs = {name: self.digest(source) for name, source in stage.inputs.items()}
        parts = stage.parts(self._shards(stage.source), inputs)
        known = self._known_model(stage.name)
        reason = "" if known is None else _reason(known, parts, path.is_dir() and _folder_digest(path) == known.digest)
        if known is not None and reason is None:
            self._finished(stage, [known], reused=True)
            return path
        _say(stage.name, reason)
        began = time.monotonic()
        with replaced(path) as staged:
            staged.mkdir()
            stage.call(self.read(stage.source), self._loaded(stage), output_dir=staged)
            digest = _folder_digest(staged)
            remove(self.stages / f"{stage.name}.json")
        self._finished(stage, [ShardRecord(parts, digest, 0, 0, time.monotonic() - began)], reused=False)
        return path

    def read(self, name: str) -> Dataset:
        """Reads the whole table of a stage.

        Raises:
            DataError: If a file is missing or damaged. The error names the file and the fix.
        """
        return self._table(name).read(self.path / ".cache")

    def is_finished(self, stage: Stage) -> bool:
        """Returns True if a stage and its inputs are finished and no row would be retried."""
        try:
            source = self._shards(stage.source)
            inputs = {name: self.digest(one) for name, one in stage.inputs.items()}
            out = self._table(stage.name)
            known = [out.record(index) for index in range(len(out.shards()))]
        except (DataError, ConfigError):
            return False
        whole = [stage.parts(source, inputs)] * len(known)
        parts = whole if stage.whole else [stage.parts([one], inputs) for one in source]
        return (
            bool(known)
            and len(known) == len(parts)
            and all(
                record is not None and _reason(record, part, out.intact(index, record)) is None
                for index, (record, part) in enumerate(zip(known, parts, strict=True))
            )
        )

    def digest(self, name: str) -> str:
        """Returns the digest of a finished stage's output, for the fingerprints of later stages."""
        return _joined(self._shards(name))

    def _shards(self, name: str) -> list[str]:
        """Returns the digests of a table's shards, written by this run or an earlier one.

        Raises:
            DataError: If the table is missing, or a file has changed since it was written.
        """
        if name not in self._digests:
            out = self._table(name)
            records = [out.record(index) for index in range(len(out.shards()))]
            for index, record in enumerate(records):
                if record is None or not out.intact(index, record):
                    raise DataError(
                        f"{out.shard(index)} has changed since the run wrote it; run the stages up to it again."
                    )
            if not records:
                raise DataError(f"{out.path} holds no table; run the stages up to it first.")
            self._digests[name] = [record.digest for record in records if record is not None]
        return self._digests[name]

    def _table(self, name: str) -> ShardedTable:
        return ShardedTable(self.stages / f"{name}.parquet")

    def _loaded(self, stage: Stage) -> dict[str, object]:
        """Returns the additional inputs of a stage: tables, and paths of checkpoints."""
        return {
            name: str(path) if (path := self.stages / source).is_dir() else self.read(source)
            for name, source in stage.inputs.items()
        }

    def _shard(self, stage: Stage, index: int, count: int, parts: Mapping[str, str]) -> tuple[ShardRecord, bool]:
        out = self._table(stage.name)
        known = self._reusable(stage, index, count, parts)
        if known is not None:
            return known, True
        table = self._table(stage.source).read(self.path / ".cache", index)
        return make_shard(stage, table, self._loaded(stage), parts, out, index), False

    def _whole(self, stage: Stage, parts: Mapping[str, str]) -> list[tuple[ShardRecord, bool]]:
        out = self._table(stage.name)
        count = len(out.shards())
        known = [self._reusable(stage, index, count, parts) for index in range(count)]
        found = [record for record in known if record is not None]
        if found and len(found) == count:
            return [(record, True) for record in found]
        began = time.monotonic()
        made = stage.call(self.read(stage.source), self._loaded(stage))
        records = []
        for index, part in enumerate(cuts(made, self.rows_per_shard)):
            records.append((write_shard(part, out, index, parts, began, stage.errors), False))
            began = time.monotonic()
        return records

    def _reusable(self, stage: Stage, index: int, count: int, parts: Mapping[str, str]) -> ShardRecord | None:
        """Returns the record of a shard that is still valid. Otherwise it logs why the shard is recomputed."""
        out = self._table(stage.name)
        known = out.record(index)
        if known is None:
            if out.path.is_file():
                _say(stage.name, "an earlier version wrote it; answers come from the ledger")
            return None
        reason = _reason(known, parts, out.intact(index, known))
        if reason is None:
            return known
        _say(stage.name if count == 1 else f"{stage.name}, shard {index}", reason)
        return None

    def _known_model(self, name: str) -> ShardRecord | None:
        file = self.stages / f"{name}.json"
        try:
            return ShardRecord(**json.loads(file.read_text(encoding="utf-8"))["checkpoint"])
        except FileNotFoundError:
            return None
        except KeyError:
            _say(name, "an earlier version wrote it")
            return None
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"`output_dir`: {file} is damaged ({error}); delete it to recompute the stage."
            ) from error

    def _finished(self, stage: Stage, records: list[ShardRecord], reused: bool) -> None:
        self._digests[stage.name] = [record.digest for record in records]
        record = StageRecord(
            stage.name,
            _joined([json.dumps(dict(record.parts), sort_keys=True) for record in records]),
            self.digest(stage.name),
            sum(record.rows for record in records),
            sum(record.errors for record in records),
            sum(record.seconds for record in records),
            reused,
        )
        if not reused:
            summary = asdict(record) | ({"checkpoint": asdict(records[0])} if stage.checkpoint else {})
            write_json(self.stages / f"{stage.name}.json", summary)
        if stage.listed:
            self.records.append(record)


def _reason(known: ShardRecord, parts: Mapping[str, str], intact: bool) -> str | None:
    """Returns why a stage or shard is recomputed: `None` if it is valid, empty for retried rows, which log nothing."""
    changed = sorted(name for name in {*known.parts, *parts} if known.parts.get(name) != parts.get(name))
    if changed:
        return f"{', '.join(f'`{name}`' for name in changed)} changed"
    if not intact:
        return "its file has changed since the run wrote it (damaged, edited or deleted)"
    return "" if known.errors else None


def _say(name: str, reason: str | None) -> None:
    if reason:
        _log.warning("%s is recomputed: %s", name, reason)


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _folder_digest(path: Path) -> str:
    """Returns the SHA-256 over the names and contents of a folder's files."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return _joined([f"{file.relative_to(path).as_posix()} {file_digest(file)}" for file in files])
