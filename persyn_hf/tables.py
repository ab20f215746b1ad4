"""Tables: checks of arguments, atomic writes, and reading in pieces of limited size."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

#: Arrow data of one piece, in bytes; the size of a row group that `Dataset.to_parquet` writes.
PIECE_BYTES = 100_000_000


def require_table(given: object, stage: str, argument: str = "data", *, rows: bool = False) -> None:
    """Refuses an argument that is not a table, and says what to pass instead.

    A mapping of splits or of columns, a data frame and a string are iterable, so they would be mistaken for rows.

    Args:
        given (`object`): Value of the argument.
        stage (`str`): Name of the function in errors.
        argument (`str`, defaults to `"data"`): Name of the argument in errors.
        rows (`bool`, defaults to `False`): Also accept an iterable of rows, such as a streamed dataset.

    Raises:
        DataError: If the value is not a table.
    """
    said = _instead(given, argument)
    if said is None:
        if isinstance(getattr(given, "column_names", None), list) and hasattr(given, "select_columns"):
            streamed = not hasattr(given, "__len__")
            if rows or not streamed:
                return
            said = f"is streamed; pass `Dataset.from_list(list({argument}))`"
        elif rows and isinstance(given, Iterable):
            return
        elif isinstance(given, Iterable):
            said = f"is {_article(given)}; pass a `Dataset`, for rows `Dataset.from_list(list({argument}))`"
        else:
            said = f"is {_article(given)}; pass a `Dataset`"
    raise DataError(f"{stage}: `{argument}` {said}.")


def require_batch(given: object, stage: str) -> None:
    """Refuses an argument that is neither a row nor a batch, for functions that `Dataset.map` calls.

    Args:
        given (`object`): Value of the argument.
        stage (`str`): Name of the function in errors.

    Raises:
        DataError: If the value is a table, a mapping of splits or not a mapping.
    """
    splits = any(kind.__name__ in ("DatasetDict", "IterableDatasetDict") for kind in type(given).__mro__)
    if splits or not isinstance(given, Mapping):
        raise DataError(
            f"{stage}: expected a row or a batch of rows, got {_article(given)}. It is a function for `map`: call "
            f"`dataset.map({stage}, batched=True, fn_kwargs={{...}})` on a `Dataset`."
        )


def _instead(given: object, argument: str) -> str | None:
    """Explains why a value is not a table and what to pass instead; `None` if it may be one."""
    kinds = {kind.__name__ for kind in type(given).__mro__}
    library = type(given).__module__.partition(".")[0]
    if given is None:
        return "is None; pass a `Dataset`, from `load_dataset(...)` or another stage"
    if kinds & {"DatasetDict", "IterableDatasetDict"}:
        names = [str(name) for name in given] if isinstance(given, Mapping) else []
        split = names[0] if names else "train"
        return f'holds the splits {", ".join(names) or "(none)"}; pass one of them, `{argument}["{split}"]`'
    if library in ("pandas", "polars"):
        return f"is a {library} {type(given).__name__}; pass `Dataset.from_{library}({argument})`"
    if library == "pyarrow":
        return f"is a pyarrow {type(given).__name__}; pass `Dataset({argument})`, from `datasets`"
    if isinstance(given, Mapping):
        return (
            f"is a mapping with the keys {', '.join(map(str, list(given)[:8])) or '(none)'}; pass "
            f"`Dataset.from_dict({argument})` if these are columns, or `[{argument}]` if it is one row"
        )
    if isinstance(given, str | bytes | os.PathLike):
        return (
            f"is {_article(given)}; pass a `Dataset`: for a file or a Hub dataset, "
            '`load_dataset(..., split="train")`; for a run\'s prompts, `persyn_hf.prompts.load_prompts(...)`'
        )
    return None


def _article(given: object) -> str:
    name = "path" if isinstance(given, os.PathLike) else type(given).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def pieces(data: Dataset, piece_bytes: int | None = None) -> Iterator[pa.Table]:
    """Yields consecutive Arrow tables of about 100 MB.

    Pages read from a memory-mapped file count as memory of the process while the file is mapped. So each piece has its
    own mapping, which is closed with the piece; a loop that drops a piece before it takes the next never holds two.

    Args:
        data (`Dataset`): A dataset in memory or memory-mapped, with or without indices.
        piece_bytes (`int`, *optional*): Arrow data per piece, in bytes. Small pieces are slow: each maps the file.
    """
    size = arrow_bytes(data)
    rows = max(1, len(data) * (piece_bytes or PIECE_BYTES) // size if size else len(data))
    for start in range(0, len(data), rows):
        yield _read(data, start, start + rows)


def arrow_bytes(data: Dataset) -> int:
    """Size of the Arrow data in bytes, as `Dataset.push_to_hub` estimates it by a private method."""
    return int(data._estimate_nbytes())


def _read(data: Dataset, start: int, end: int) -> pa.Table:
    from datasets import Dataset

    mapped = Dataset(
        _mapped_again(data.data), data.info, data.split, indices_table=data._indices, fingerprint=data._fingerprint
    )
    return mapped.with_format("arrow")[start:end]


def _mapped_again(table: Any) -> Any:
    """Maps the files of a table again; parts in memory are shared."""
    from datasets.table import ConcatenationTable, MemoryMappedTable

    if isinstance(table, MemoryMappedTable):
        return MemoryMappedTable.from_file(table.path, table.replays)
    if isinstance(table, ConcatenationTable):
        return ConcatenationTable.from_blocks([[_mapped_again(block) for block in row] for row in table.blocks])
    return table


def set_column(dataset: Dataset, name: str, values: Sequence[object], dtype: str) -> Dataset:
    """Adds or replaces one column of the given type, which holds even if every value is null."""
    from datasets import Features, Value

    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, list(values), feature=Features({name: Value(dtype)})[name])


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yields a path next to the target to write a file or a folder to, and moves it to the target at the end.

    A reader sees the old or the new content; after an exception the old one stays.
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
    """Removes a file or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a file atomically: a reader sees the old or the new text."""
    with replaced(path) as staged:
        staged.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically, with null for NaN and infinity.

    JSON has neither: `jq` and JavaScript refuse a file that holds one.
    """
    write_atomically(path, json_text(value) + "\n")


def json_text(value: object) -> str:
    """A value as indented JSON, with null for NaN and infinity."""
    return json.dumps(_finite(value), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def no_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets`, while short reads and writes of a run's own tables take place."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
