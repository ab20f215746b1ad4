"""Tables: accepted at the boundary, written whole or not at all, held one piece at a time."""

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

#: Arrow data of one piece; that of a row group, as `Dataset.to_parquet` writes them.
PIECE_BYTES = 100_000_000


def require_table(given: object, stage: str, argument: str = "data", *, rows: bool = False) -> None:
    """Refuses what is easily passed in the place of a table, and says what to pass instead.

    A mapping of splits or of columns, a data frame and a string can all be walked over, and would be taken for rows.

    Args:
        given (`object`): What a function was called with.
        stage (`str`): Name of the function, for the message.
        argument (`str`, defaults to `"data"`): Name of its argument, for the message.
        rows (`bool`, defaults to `False`): Take an iterable of rows too, streamed ones among them.

    Raises:
        DataError: If it is no table.
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
    """Refuses what is no row and no batch of rows, for functions that `Dataset.map` calls.

    Args:
        given (`object`): What the function was called with.
        stage (`str`): Name of the function, for the message.

    Raises:
        DataError: If it is a table, a mapping of splits or no mapping at all.
    """
    splits = any(kind.__name__ in ("DatasetDict", "IterableDatasetDict") for kind in type(given).__mro__)
    if splits or not isinstance(given, Mapping):
        raise DataError(
            f"{stage}: expected a row or a batch of rows, got {_article(given)}. It is a function for `map`: call "
            f"`dataset.map({stage}, batched=True, fn_kwargs={{...}})` on a `Dataset`."
        )


def _instead(given: object, argument: str) -> str | None:
    """Why something is no table and what to pass instead; `None` where it may be one."""
    kinds = {kind.__name__ for kind in type(given).__mro__}
    library = type(given).__module__.partition(".")[0]
    if given is None:
        return "is None; pass a `Dataset`, as `load_dataset(...)` or another stage gives one"
    if kinds & {"DatasetDict", "IterableDatasetDict"}:
        names = [str(name) for name in given] if isinstance(given, Mapping) else []
        split = names[0] if names else "train"
        return f'holds the splits {", ".join(names) or "of none"}; pass one of them, `{argument}["{split}"]`'
    if library in ("pandas", "polars"):
        return f"is a {library} {type(given).__name__}; pass `Dataset.from_{library}({argument})`"
    if library == "pyarrow":
        return f"is a pyarrow {type(given).__name__}; pass `Dataset({argument})`, from `datasets`"
    if isinstance(given, Mapping):
        return (
            f"is a mapping with the keys {', '.join(map(str, list(given)[:8])) or 'of none'}; pass "
            f"`Dataset.from_dict({argument})` where these are columns, or `[{argument}]` where it is one row"
        )
    if isinstance(given, str | bytes | os.PathLike):
        return (
            f"is {_article(given)}; pass a `Dataset`: of a file or a Hub dataset "
            '`load_dataset(..., split="train")`, of a run\'s prompts `persyn_hf.prompts.load_prompts(...)`'
        )
    return None


def _article(given: object) -> str:
    name = "path" if isinstance(given, os.PathLike) else type(given).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


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
    rows = max(1, len(data) * (piece_bytes or PIECE_BYTES) // size if size else len(data))
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
