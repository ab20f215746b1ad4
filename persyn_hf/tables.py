"""Tables: read from anywhere, written whole or not at all, held one piece at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
#: Arrow data of one piece; that of a row group, as `Dataset.to_parquet` writes them.
PIECE_BYTES = 100_000_000


def pieces(data: Dataset, piece_bytes: int | None = None) -> Iterator[pa.Table]:
    """Yields consecutive Arrow tables of about 100 MB.

    Pages that were read from a memory-mapped file count as memory of the process for as long as the file is mapped.
    So each piece is read over a mapping of its own, which is closed with it; a loop that drops a piece before it takes
    the next one never holds two.

    Args:
        data (`Dataset`): In memory or memory-mapped, with or without indices.
        piece_bytes (`int`, *optional*): Of Arrow data in a piece instead; to map a large file takes a while.
    """
    size = arrow_bytes(data)
    rows = max(1, len(data) * (piece_bytes or PIECE_BYTES) // size) if size else len(data)
    for start in range(0, len(data), rows):
        yield _read(data, start, start + rows)


def arrow_bytes(data: Dataset) -> int:
    """Size of the Arrow data, as `Dataset.push_to_hub` estimates it; there is no public name for that."""
    return int(data._estimate_nbytes())


def _read(data: Dataset, start: int, end: int) -> pa.Table:
    from datasets import Dataset

    mapped = Dataset(
        _mapped_again(data.data), data.info, data.split, indices_table=data._indices, fingerprint=data._fingerprint
    )
    return mapped.with_format("arrow")[start:end]


def _mapped_again(table: Any) -> Any:
    """The same table over new mappings of its files; parts that are in memory stay where they are."""
    from datasets.table import ConcatenationTable, MemoryMappedTable

    if isinstance(table, MemoryMappedTable):
        return MemoryMappedTable.from_file(table.path, table.replays)
    if isinstance(table, ConcatenationTable):
        return ConcatenationTable.from_blocks([[_mapped_again(block) for block in row] for row in table.blocks])
    return table


def read_table(
    source: str, where: str, *, config: str | None = None, split: str = "train", revision: str | None = None
) -> Dataset:
    """Reads a table: a `.jsonl`, `.json`, `.csv` or `.parquet` file, a saved dataset, a folder or a Hub dataset.

    Args:
        source (`str`): Where it is.
        where (`str`): Names the setting in errors ("run.yaml: prompts.source").
        config, split, revision (`str`, *optional*): Of a Hub dataset; `split` of a saved one too.

    Raises:
        ConfigError: If it cannot be read.
    """
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    suffix = Path(source).suffix
    looks_local = suffix in _READERS or source.startswith((".", "/", "~"))
    try:
        if os.path.isfile(source):
            if suffix not in _READERS:
                raise ConfigError(f"{where}: {source} must end in {', '.join(_READERS)}.")
            return load_dataset(_READERS[suffix], data_files=source, split="train")
        if any(os.path.isfile(os.path.join(source, name)) for name in ("state.json", "dataset_dict.json")):
            saved = load_from_disk(source)
            if isinstance(saved, DatasetDict):
                saved = saved[split]
            assert isinstance(saved, Dataset)
            return saved
        if looks_local and not os.path.isdir(source):
            raise ConfigError(f"{where}: there is no file {source}.")
        return load_dataset(source, config, split=split, revision=revision)
    except (
        OSError,
        ValueError,
        KeyError,
        DatasetGenerationError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    ) as error:
        if isinstance(error, ConfigError):
            raise
        said = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ is not None else error
        reason = str(said).splitlines()[0] if str(said) else type(said).__name__
        raise ConfigError(f"{where}: {source} cannot be read: {reason}") from error


def set_column(dataset: Dataset, name: str, values: Sequence[Any], dtype: str) -> Dataset:
    """Adds or replaces one column of a stated type, also where every value is null."""
    from datasets import Features, Value

    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, list(values), feature=Features({name: Value(dtype)})[name])


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Gives a path beside the target to write a file or a folder to, and puts it in place at the end.

    A reader sees the old one or the new one; after an exception the old one stays.
    """
    staged = target.with_name(f".{target.name}.staged")
    remove(staged)
    try:
        yield staged
    except BaseException:
        remove(staged)
        raise
    if target.is_dir() or staged.is_dir():
        remove(target)
    staged.replace(target)


def remove(path: Path) -> None:
    """Removes a file or a folder, where there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file so that a reader sees the old text or the new one."""
    with replaced(path) as staged:
        staged.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old text or the new one; what is no finite number is written as null.

    JSON has no NaN and no infinity: `jq` and JavaScript refuse a file that holds one.
    """
    write_atomically(path, json_text(value) + "\n")


def json_text(value: Any) -> str:
    """A value as indented JSON, with null in the place of NaN and infinity."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def no_bars() -> Iterator[None]:
    """Reading and writing a run's own tables is no long work: it shows no progress."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
