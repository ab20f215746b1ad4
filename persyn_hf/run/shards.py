"""Stages as functions over shards: each maps a Parquet file to a Parquet file, with reproducible bytes.

Any process or machine that runs a stage calls [`make_shard`] for each shard; a finished file with its record is the
checkpoint. Records are hidden files next to the shards, which readers of Parquet folders ignore.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.run.fingerprints import fingerprint, plain_value
from persyn_hf.tables import no_bars, remove, replaced, write_json
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset

#: Rows of a row group, which a reader loads at once.
_ROW_GROUP = 10_000


@dataclass(frozen=True)
class Stage:
    """A stage: a function, its input tables and its other arguments.

    `function(table, **inputs, **keyed, **unkeyed)` maps one shard of `source` to one shard of the stage's own table,
    or the whole table with `whole`. The fingerprint covers all arguments except those in `unkeyed`.

    Args:
        name (`str`): Name of the stage and of its folder.
        function (`Callable`): Top-level function that keeps the rows of a prompt together.
        source (`str`): Name of the stage whose table is read.
        inputs (`Mapping[str, str]`): Whole tables and checkpoints to pass as well: argument → name of the stage.
        keyed (`Mapping[str, object]`): Arguments that affect the result; see [`fingerprints.key_of`].
        unkeyed (`Mapping[str, object]`): Arguments that do not affect the result.
        errors (`str`, *optional*): Column that is set in failed rows. A shard with failed rows is recomputed.
        whole (`bool`, defaults to `False`): Whether a row may depend on all other rows.
        checkpoint (`bool`, defaults to `False`): Whether the function writes a model into `output_dir` and returns no
            table.
        listed (`bool`, defaults to `True`): Whether to list the stage among a run's stages.
    """

    name: str
    function: Callable[..., Any]
    source: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    keyed: Mapping[str, object] = field(default_factory=dict)
    unkeyed: Mapping[str, object] = field(default_factory=dict)
    errors: str | None = None
    whole: bool = False
    checkpoint: bool = False
    listed: bool = True

    def call(self, table: Dataset, inputs: Mapping[str, object], **more: object) -> Any:
        """Calls the function on a table."""
        keyed = {name: plain_value(value) for name, value in self.keyed.items()}
        return self.function(table, **inputs, **keyed, **self.unkeyed, **more)

    def parts(self, source: Sequence[str], inputs: Mapping[str, str]) -> dict[str, str]:
        """Returns one fingerprint per argument, so that a message can name the argument that changed.

        Args:
            source (`Sequence[str]`): Digests of the input shards.
            inputs (`Mapping[str, str]`): Digests of the additional tables and checkpoints.
        """
        named = {
            "function": f"{self.function.__module__}.{self.function.__qualname__}",
            self.source: list(source),
            **inputs,
            **self.keyed,
        }
        return {"version": __version__} | {name: fingerprint(value)[:16] for name, value in named.items()}


@dataclass(frozen=True)
class ShardRecord:
    """Record of a finished shard.

    Args:
        parts (`Mapping[str, str]`): Fingerprints from [`Stage.parts`].
        digest (`str`): SHA-256 of the file.
        rows (`int`), errors (`int`): Number of rows, and of failed rows.
        seconds (`float`): Wall-clock time, in seconds.
    """

    parts: Mapping[str, str]
    digest: str
    rows: int
    errors: int
    seconds: float


@dataclass(frozen=True)
class ShardedTable:
    """A folder with the shards of one table: `part-00000.parquet` and so on.

    Args:
        path (`Path`): Path of the folder, `NAME.parquet`.
    """

    path: Path

    def shard(self, index: int) -> Path:
        """Returns the path of a shard."""
        return self.path / f"part-{index:05d}.parquet"

    def shards(self) -> list[Path]:
        """Returns the paths of the existing shards, in order."""
        return sorted(self.path.glob("part-*.parquet")) if self.path.is_dir() else []

    def record(self, index: int) -> ShardRecord | None:
        """Reads the record of a shard, or returns `None` if there is none.

        Raises:
            ConfigError: If the record is damaged. The error names the file to delete.
        """
        file = self._record(index)
        try:
            return ShardRecord(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):  # the latter: a table of an earlier version, without shards
            return None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"`output_dir`: {file} is damaged ({error}); delete it to recompute the shard."
            ) from error

    def keep(self, index: int, record: ShardRecord) -> None:
        """Writes the record of a shard."""
        write_json(self._record(index), asdict(record))

    def cut(self, count: int) -> None:
        """Removes all shards except the first `count`."""
        for file in self.shards()[count:]:
            remove(file)
            remove(self._record(int(file.stem.removeprefix("part-"))))

    def intact(self, index: int, record: ShardRecord) -> bool:
        """Returns True if a shard's file has the digest in its record."""
        try:
            return file_digest(self.shard(index)) == record.digest
        except OSError:
            return False

    def read(self, cache: Path, index: int | None = None) -> Dataset:
        """Reads one shard into memory, or memory-maps all of them.

        Args:
            cache (`Path`): Folder of the mapped copy.
            index (`int`, *optional*): Index of the shard. Default: all shards.

        Raises:
            DataError: If a file is damaged. The error names the file and the fix.
        """
        files = self.shards() if index is None else [self.shard(index)]
        if not files:
            raise DataError(f"{self.path} holds no table; run the stages up to it first.")
        return read_files(files, cache if index is None else None)

    def _record(self, index: int) -> Path:
        return self.path / f".part-{index:05d}.json"


def make_shard(
    stage: Stage, table: Dataset, inputs: Mapping[str, object], parts: Mapping[str, str], out: ShardedTable, index: int
) -> ShardRecord:
    """Computes one shard of a stage and writes the file, then its record.

    Args:
        stage (`Stage`): Stage to run.
        table (`Dataset`): Shard of its source, or the whole table.
        inputs (`Mapping[str, object]`): Additional tables and paths of checkpoints, by argument.
        parts (`Mapping[str, str]`): Fingerprints for the record.
        out (`ShardedTable`): Table to write to.
        index (`int`): Index of the shard.
    """
    began = time.monotonic()
    made = stage.call(table, inputs)
    return write_shard(made, out, index, parts, began, stage.errors)


def write_shard(
    made: Dataset, out: ShardedTable, index: int, parts: Mapping[str, str], began: float, errors: str | None = None
) -> ShardRecord:
    """Writes a shard and its record. The same rows give the same bytes, regardless of their chunks in memory."""
    import pyarrow.parquet as pq

    rows = made.with_format("arrow")[:] if len(made) else made.features.arrow_schema.empty_table()
    rows = rows.cast(made.features.arrow_schema).combine_chunks()
    if out.path.is_file():  # a table of an earlier version, without shards
        remove(out.path)
    out.path.mkdir(parents=True, exist_ok=True)
    with replaced(out.shard(index)) as staged:
        pq.write_table(rows, staged, row_group_size=_ROW_GROUP)
        digest = file_digest(staged)
        remove(out._record(index))  # a crash before the new record is written leaves the shard unfinished
    failed = len(rows) - rows[errors].null_count if errors is not None and errors in rows.column_names else 0
    record = ShardRecord(dict(parts), digest, len(rows), failed, time.monotonic() - began)
    out.keep(index, record)
    return record


def read_files(files: Sequence[Path], cache: Path | None) -> Dataset:
    """Reads Parquet files as one table, memory-mapped from a copy in `cache` or held in memory.

    Raises:
        DataError: If a file is damaged. The error names the file and the fix.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        filled = [file for file in files if pq.read_metadata(file).num_rows]  # datasets cannot map a file without rows
        if cache is None or not filled:
            return Dataset(pq.read_table(list(files)))
        with no_bars():
            return Dataset.from_parquet([str(file) for file in filled], cache_dir=str(cache))
    except (OSError, ValueError, DatasetGenerationError) as error:  # pa.ArrowInvalid is a ValueError
        for file in files:
            try:
                pq.read_metadata(file)
            except (OSError, pa.ArrowInvalid) as reason:
                raise DataError(
                    f"{file} is damaged ({' '.join(str(reason).split())[:200]}); delete it and run again to recompute "
                    "it. Answers come from the ledger."
                ) from error
        raise DataError(f"{files[0].parent} cannot be read: {error}; delete it and run again.") from error


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def cuts(data: Dataset, rows: int) -> Iterator[Dataset]:
    """Splits a table into consecutive parts of about `rows` rows. An empty table gives one empty part.

    Adjacent rows of one prompt stay in one part, since rewards are normalised within the prompt.
    """
    ids = data[columns.PROMPT_ID][:] if columns.PROMPT_ID in data.column_names else range(len(data))
    start = 0
    while True:
        end = min(start + rows, len(data))
        while 0 < end < len(data) and ids[end] == ids[end - 1]:
            end += 1
        yield data.select(range(start, end))
        start = end
        if start >= len(data):
            return
