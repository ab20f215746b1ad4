"""A stage as a function over shards: from Parquet files to Parquet files, one by one, with the same bytes every time.

Whoever runs a stage (this process, or another machine) calls [`make_shard`] for each of its shards; a finished file
with its record is the checkpoint. Records lie beside the shards under names that readers of a folder of Parquet files
pass over.
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

#: Rows of a row group: what a reader holds at once.
_ROW_GROUP = 10_000


@dataclass(frozen=True)
class Stage:
    """A stage: a function, the tables that it reads, and the arguments that it is called with.

    `function(table, **inputs, **keyed, **unkeyed)` is called with one shard of `source` and gives that shard of the
    stage's own table; with `whole`, with all of it at once. The fingerprint is made of these very arguments, so one
    is left out of it only under `unkeyed`.

    Args:
        name (`str`): The stage, and its folder.
        function (`Callable`): A top-level function that keeps the rows of a prompt together.
        source (`str`): The table that it reads, by the name of its stage.
        inputs (`Mapping[str, str]`): Further tables, whole, and checkpoints: argument → name of the stage.
        keyed (`Mapping[str, Any]`): Arguments that decide what comes of it; see [`fingerprints.key_of`].
        unkeyed (`Mapping[str, Any]`): Arguments that do not.
        errors (`str`, *optional*): The column in which a row says that it failed. Such a shard is made again.
        whole (`bool`, defaults to `False`): A row may depend on all others.
        checkpoint (`bool`, defaults to `False`): The function writes a model into `output_dir` and gives no table.
        listed (`bool`, defaults to `True`): Shown among a run's stages.
    """

    name: str
    function: Callable[..., Any]
    source: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    keyed: Mapping[str, Any] = field(default_factory=dict)
    unkeyed: Mapping[str, Any] = field(default_factory=dict)
    errors: str | None = None
    whole: bool = False
    checkpoint: bool = False
    listed: bool = True

    def call(self, table: Dataset, inputs: Mapping[str, Any], **more: Any) -> Any:
        """Calls the function."""
        keyed = {name: plain_value(value) for name, value in self.keyed.items()}
        return self.function(table, **inputs, **keyed, **self.unkeyed, **more)

    def parts(self, source: Sequence[str], inputs: Mapping[str, str]) -> dict[str, str]:
        """What the fingerprint is made of: a digest for every argument, so that a change can be named.

        Args:
            source (`Sequence[str]`): Digests of the shards that are read.
            inputs (`Mapping[str, str]`): Digests of the further tables and checkpoints.
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
    """What is known of a finished shard.

    Args:
        parts (`Mapping[str, str]`): From [`Stage.parts`].
        digest (`str`): SHA-256 of the file.
        rows (`int`), errors (`int`): Its rows, and those that failed.
        seconds (`float`): Wall-clock time it took.
    """

    parts: Mapping[str, str]
    digest: str
    rows: int
    errors: int
    seconds: float


@dataclass(frozen=True)
class ShardedTable:
    """A table in shards: `part-00000.parquet` and so on in a folder of its own.

    Args:
        path (`Path`): The folder, `NAME.parquet`.
    """

    path: Path

    def shard(self, index: int) -> Path:
        """The file of a shard."""
        return self.path / f"part-{index:05d}.parquet"

    def shards(self) -> list[Path]:
        """The files that are there, in order."""
        return sorted(self.path.glob("part-*.parquet")) if self.path.is_dir() else []

    def record(self, index: int) -> ShardRecord | None:
        """What is known of a shard.

        Raises:
            ConfigError: If its record is damaged; says which file to delete.
        """
        file = self._record(index)
        try:
            return ShardRecord(**json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):  # the latter: a table of the layout before shards
            return None
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"`output_dir`: {file} is damaged ({error}); delete it to make the shard again."
            ) from error

    def keep(self, index: int, record: ShardRecord) -> None:
        """Writes the record of a shard."""
        write_json(self._record(index), asdict(record))

    def cut(self, count: int) -> None:
        """Removes the shards from `count` on."""
        for file in self.shards()[count:]:
            remove(file)
            remove(self._record(int(file.stem.removeprefix("part-"))))

    def intact(self, index: int, record: ShardRecord) -> bool:
        """Whether a shard is the file that its record speaks of."""
        try:
            return file_digest(self.shard(index)) == record.digest
        except OSError:
            return False

    def read(self, cache: Path, index: int | None = None) -> Dataset:
        """Reads one shard into memory, or maps all of them.

        Args:
            cache (`Path`): Where the mapped copy goes.
            index (`int`, *optional*): Of one shard.

        Raises:
            DataError: If a file is damaged; names it and what to do.
        """
        files = self.shards() if index is None else [self.shard(index)]
        if not files:
            raise DataError(f"{self.path} holds no table; run the stages up to it first.")
        return read_files(files, cache if index is None else None)

    def _record(self, index: int) -> Path:
        return self.path / f".part-{index:05d}.json"


def make_shard(
    stage: Stage, table: Dataset, inputs: Mapping[str, Any], parts: Mapping[str, str], out: ShardedTable, index: int
) -> ShardRecord:
    """Makes one shard of a stage: calls its function, writes the file, then its record.

    Args:
        stage (`Stage`): What is made.
        table (`Dataset`): The shard of its source, or all of it.
        inputs (`Mapping[str, Any]`): Further tables and paths of checkpoints, by argument.
        parts (`Mapping[str, str]`): What the record says that it was made from.
        out (`ShardedTable`): Where it goes.
        index (`int`): Which one.
    """
    began = time.monotonic()
    made = stage.call(table, inputs)
    return write_shard(made, out, index, parts, began, stage.errors)


def write_shard(
    made: Dataset, out: ShardedTable, index: int, parts: Mapping[str, str], began: float, errors: str | None = None
) -> ShardRecord:
    """Writes a shard and its record; the same rows give the same bytes, however they lie in memory."""
    import pyarrow.parquet as pq

    rows = made.with_format("arrow")[:] if len(made) else made.features.arrow_schema.empty_table()
    rows = rows.cast(made.features.arrow_schema).combine_chunks()
    if out.path.is_file():  # a table of the layout before shards
        remove(out.path)
    out.path.mkdir(parents=True, exist_ok=True)
    with replaced(out.shard(index)) as staged:
        pq.write_table(rows, staged, row_group_size=_ROW_GROUP)
        digest = file_digest(staged)
        remove(out._record(index))  # between the two, the shard counts as not made
    failed = len(rows) - rows[errors].null_count if errors is not None and errors in rows.column_names else 0
    record = ShardRecord(dict(parts), digest, len(rows), failed, time.monotonic() - began)
    out.keep(index, record)
    return record


def read_files(files: Sequence[Path], cache: Path | None) -> Dataset:
    """Reads Parquet files as one table, mapped from a copy in `cache` or held in memory.

    Raises:
        DataError: If one is damaged; names it and what to do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        filled = [file for file in files if pq.read_metadata(file).num_rows]  # datasets maps no file without rows
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
                    f"{file} is damaged ({' '.join(str(reason).split())[:200]}); delete it and run again: what it "
                    "held is made again, and answers come from the ledger."
                ) from error
        raise DataError(f"{files[0].parent} cannot be read: {error}; delete it and run again.") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def cuts(data: Dataset, rows: int) -> Iterator[Dataset]:
    """A table in consecutive parts of so many rows; one empty part where there are none.

    Rows of one prompt that stand beside each other stay in one part, since rewards are normalised within the prompt.
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
