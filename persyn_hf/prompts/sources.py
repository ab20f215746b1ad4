"""Reading of tables from files, patterns, folders, saved datasets and the Hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from persyn_hf.errors import ConfigError
from persyn_hf.prompts.formats import COMPRESSED, TEXT_FORMATS, UnreadableError, format_of, read_rows, rows_table

if TYPE_CHECKING:
    from datasets import Dataset

T = TypeVar("T")
_PARQUET = ".parquet"
_SAVED = ("state.json", "dataset_dict.json")
#: Maximum length of a library's message in an error, in characters.
_SHOWN = 600


@dataclass(frozen=True)
class Located:
    """A table, and the sources of its rows.

    Args:
        table (`Dataset`): All rows.
        parts (`tuple[tuple[str, int], ...]`): Name and row count of each file or dataset, in order.
    """

    table: Dataset
    parts: tuple[tuple[str, int], ...]

    def row(self, index: int) -> str:
        """Names a row by its file or dataset and its number there, counted from 0."""
        for name, count in self.parts:
            if index < count:
                return f"{name}, row {index}"
            index -= count
        return f"row {index}"


def read_table(
    source: str | Sequence[str],
    where: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Dataset:
    """Reads a table from files, a folder, a saved dataset or the Hub.

    Args:
        source (`str` or sequence of `str`): Files, patterns with `*`, folders, or a Hub dataset.
        where (`str`): Name of the setting in errors ("run.yaml: prompts.source").
        config (`str`, *optional*): Configuration of a Hub dataset or a folder.
        split (`str`, defaults to `"train"`): Split of a Hub dataset or a folder.
        revision (`str`, *optional*): Commit, tag or branch of a Hub dataset.

    Raises:
        ConfigError: If the source cannot be read. The error names the file and the cause.
    """
    return locate(source, where, config=config, split=split, revision=revision).table


def locate(
    source: str | Sequence[str],
    where: str,
    *,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Located:
    """Reads a table like [`read_table`], with the source of each row."""
    found: list[tuple[str, Dataset]] = []
    for one in [source] if isinstance(source, str) else source:
        path = os.path.expanduser(one) if one.startswith("~") else one
        if os.path.isdir(path):
            found += _read(partial(_folder, path, config, split), where, one)
        elif os.path.isfile(path) or glob.has_magic(one) or _looks_local(one):
            found += [(file, _read(partial(_file, file), where, file)) for file in _files(path, where)]
        else:
            found += [(one, _read(partial(_from_hub, one, config, split, revision), where, one))]
    parts = tuple((name, len(table)) for name, table in found)
    return Located(_read(partial(_together, [table for _, table in found]), where, ", ".join(dict(parts))), parts)


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or format_of(source) in (*TEXT_FORMATS, _PARQUET)


def _files(path: str, where: str) -> list[str]:
    """Returns the files that match a path or a pattern, sorted by name."""
    if os.path.isfile(path):
        files = [path]
    elif glob.has_magic(path):
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not files:
            raise ConfigError(f"{where}: no file matches {path}.")
    else:
        raise ConfigError(f"{where}: there is no file {path}.")
    for file in files:
        if format_of(file) not in (*TEXT_FORMATS, _PARQUET):
            raise ConfigError(
                f"{where}: {file} must end in {', '.join((*TEXT_FORMATS, _PARQUET))}; text files may also be "
                f"compressed: {', '.join(COMPRESSED)}."
            )
    return files


def _read(reader: Callable[[], T], where: str, name: str) -> T:
    """Calls a reader, and raises an error with the name and the cause if it fails."""
    from datasets.exceptions import DatasetGenerationError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return reader()
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        DatasetGenerationError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    ) as error:
        said: BaseException = error
        while isinstance(said, DatasetGenerationError) and said.__cause__ is not None:
            said = said.__cause__
        reason = " ".join(str(said).split()) or type(said).__name__
        shown = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]} …"
        raise ConfigError(f"{where}: {name} cannot be read: {shown.rstrip('.')}.") from error


def _file(path: str) -> Dataset:
    if format_of(path) == _PARQUET:
        return _parquet([path])
    return rows_table(read_rows(path))


def _parquet(files: list[str]) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import Dataset, load_dataset

    filled = [file for file in files if pq.read_metadata(file).num_rows]  # datasets cannot map a file without rows
    if not filled:
        return Dataset(pq.read_table(files))
    return load_dataset("parquet", data_files=filled, split="train")


def _folder(path: str, config: str | None, split: str) -> list[tuple[str, Dataset]]:
    """Reads a folder of `save_to_disk`, or a folder of files with or without a dataset card."""
    from datasets import Dataset, load_dataset, load_dataset_builder, load_from_disk

    if any(os.path.isfile(os.path.join(path, name)) for name in _SAVED):
        saved = load_from_disk(path)
        if isinstance(saved, Dataset):
            return [(path, saved)]
        _require_split(split, [str(name) for name in saved])
        return [(path, saved[split])]
    files = load_dataset_builder(path, config).config.data_files or {}
    if not any(mark in split for mark in "[+"):
        _require_split(split, [str(name) for name in files])
        named = [str(file) for file in files[split]]
        if all(format_of(file) in TEXT_FORMATS for file in named):
            return [(file, _one_of_many(file)) for file in named]
    return [(path, load_dataset(path, config, split=split))]


def _one_of_many(file: str) -> Dataset:
    try:
        return _file(file)
    except (UnreadableError, OSError) as error:
        raise UnreadableError(f"{os.path.basename(file)}: {error}") from error


def _require_split(split: str, known: list[str]) -> None:
    if split not in known:
        raise UnreadableError(f"there is no split `{split}`; it has {', '.join(known)}. Set `split` to one of them")


def _from_hub(name: str, config: str | None, split: str, revision: str | None) -> Dataset:
    from datasets import load_dataset

    return load_dataset(name, config, split=split, revision=revision)


def _together(tables: list[Dataset]) -> Dataset:
    """Concatenates tables. If their columns differ, the result has all of them."""
    from datasets import concatenate_datasets

    if len(tables) == 1:
        return tables[0]
    if all(table.features == tables[0].features for table in tables):
        return concatenate_datasets(tables)
    return rows_table(row for table in tables for row in table.with_format(None))
