"""A last look for keys and tokens in what is about to be sent."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.tables import pieces

if TYPE_CHECKING:
    from datasets import Dataset

#: What is looked for. The patterns are in the common part of Python's and RE2's languages.
PATTERNS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Google API key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_[A-Za-z0-9_]{40,}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
}
_ANY = "|".join(PATTERNS.values())
_BATCH = 10_000


@dataclass(frozen=True)
class Leak:
    """Text that looks like a secret. It is named, never repeated.

    Args:
        kind (`str`): What it looks like.
        where (`str`): Split, row and column, or file.
    """

    kind: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: looks like {self.kind}"


def find_in_text(text: str, where: str) -> list[Leak]:
    """The secrets of one text, each kind once.

    Example:
        >>> [str(leak) for leak in find_in_text("my key is sk-" + "a" * 24, "README.md")]
        ['README.md: looks like an API key']
    """
    return [Leak(kind, where) for kind, pattern in PATTERNS.items() if re.search(pattern, text)]


def find_in_tables(splits: Mapping[str, Dataset], limit: int = 10) -> list[Leak]:
    """The first secrets of a dataset's text. Arrow searches whole columns; a row is opened only where it found one.

    Args:
        splits (`Mapping[str, Dataset]`): Tables with strings at any depth.
        limit (`int`, defaults to 10): Stop after so many.
    """
    found: list[Leak] = []
    for split, data in splits.items():
        for first, table, names in _suspects(_batches(data)):
            for name in names:
                for row, value in enumerate(table[name].to_pylist()):
                    place = _place(split, first + row, name, table, row)
                    found += find_in_text(_joined(value), place)
                    if len(found) >= limit:
                        return found[:limit]
    return found


def _batches(data: Dataset) -> Iterator[tuple[int, Any]]:
    """Batches, each with the number of its first row."""
    first = 0
    for table in pieces(data):
        for start in range(0, len(table), _BATCH):
            yield first + start, table.slice(start, _BATCH)
        first += len(table)


def _suspects(tables: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any, list[str]]]:
    """Batches with the columns in which Arrow found something, in order; as many at a time as there are processors."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        # Arrow searches without holding the interpreter's lock.
        while batch := list(itertools.islice(tables, workers)):
            for (first, table), names in zip(batch, pool.map(_columns, (t for _, t in batch)), strict=True):
                if names:
                    yield first, table, names


def _columns(table: Any) -> list[str]:
    return [
        name for name in table.column_names if any(_suspicious(leaf) for leaf in _leaves(table[name].combine_chunks()))
    ]


def _place(split: str, number: int, column: str, table: Any, row: int) -> str:
    identity = ""
    if columns.PROMPT_ID in table.column_names:
        identity = f" (prompt {table[columns.PROMPT_ID][row].as_py()})"
    return f"split {split}, row {number}{identity}, column {column}"


def _leaves(array: Any) -> Iterator[Any]:
    """The string arrays inside a column, however deep."""
    import pyarrow as pa

    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield array
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(array.flatten())
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            yield from _leaves(field)


def _suspicious(texts: Any) -> bool:
    import pyarrow.compute as pc

    return bool(pc.any(pc.match_substring_regex(texts, _ANY)).as_py())


def _joined(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(_joined(part) for part in value.values())
    if isinstance(value, list):
        return "\n".join(_joined(part) for part in value)
    return ""
