"""Search for keys and tokens in everything that is about to be sent."""

from __future__ import annotations

import hashlib
import html
import itertools
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.publishing.secret_kinds import KINDS
from persyn_hf.tables import pieces

if TYPE_CHECKING:
    from datasets import Dataset

# Zero-width characters. Not among them are variation selectors, which emoji use most: the search of tables finds
# secrets in spite of them.
_INVISIBLE = "\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
#: Pattern that every text with a secret matches, in the common subset of Python's and RE2's syntax.
SUSPICIOUS = "|".join([*dict.fromkeys(kind.hint for kind in KINDS), f"[{_INVISIBLE}]"])
_UNSEEN = re.compile(f"[{_INVISIBLE}\ufe00-\ufe0f]")
_ESCAPED = re.compile(r"\\+(?:u([0-9A-Fa-f]{4})|([nrtfv])|(?=[^\w\s]|_))|%([2-7][0-9A-Fa-f])")
_QUOTES = "\"'`"
_BATCH = 30_000  # rows; Arrow compiles the pattern once per batch
_SHOWN = 4
_SHORTEST = 17  # characters of a secret with its prefix; `prompt_id` has 16


@dataclass(frozen=True)
class Leak:
    """Text that looks like a secret. Its message never contains the whole text.

    Args:
        kind (`str`): Kind of secret.
        where (`str`): Split, row and column, or file and key.
        shown (`str`): First four characters.
        fingerprint (`str`): First 12 hex digits of the SHA-256, for `allow_findings`.
    """

    kind: str
    where: str
    shown: str = ""
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: looks like {self.kind} (`{self.shown}…`, fingerprint {self.fingerprint})"


def find_in_text(text: str, where: str, allowed: Collection[str] = ()) -> list[Leak]:
    """Finds the secrets in one text, one per kind.

    It also finds keys after escapes (`\\\\n` in JSON, `%3D` in URLs, `\\\\_` in Markdown), with invisible characters
    inside, and split by a line break.

    Args:
        text (`str`): Text to search.
        where (`str`): Place of the text, for the message.
        allowed (`Collection[str]`): Fingerprints of findings that are not secrets.

    Example:
        >>> [str(leak) for leak in find_in_text("my key is sk-" + "a1" * 12, "README.md")]
        ['README.md: looks like an API key (`sk-a…`, fingerprint 474bb7c93302)']
    """
    found: dict[str, Leak] = {}
    readings = _readings(text)
    lowered = "\n".join(readings[:2]).lower()  # unchanged, and with lines joined: together they have every word
    suspected = [kind for kind in KINDS if any(word in lowered for word in kind.words)]
    for reading in readings if suspected else ():
        taken: list[tuple[int, int]] = []
        for kind in suspected:
            for match in kind.pattern.finditer(reading):
                value, (start, end) = match["value"], match.span("value")
                if any(start < last and first < end for first, last in taken) or not kind.accepts(value):
                    continue
                taken.append((start, end))
                leak = Leak(kind.name, where, match.group()[:_SHOWN], secret_fingerprint(value))
                if leak.fingerprint not in allowed:
                    found.setdefault(kind.name, leak)
    return list(found.values())


def secret_fingerprint(secret: str) -> str:
    """Returns the fingerprint of a finding: 12 hex digits of the SHA-256 of the secret without its prefix."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()[:12]


def find_in_values(value: object, where: str, allowed: Collection[str] = ()) -> list[Leak]:
    """Finds the secrets in plain nested values: in texts at any depth, and in keys of mappings.

    Args:
        value (`object`): Mappings, sequences and plain values.
        where (`str`): Place of the value, for the message; the path of keys is appended.
        allowed (`Collection[str]`): Fingerprints of findings that are not secrets.
    """
    found: list[Leak] = []
    for path, text in _texts(value):
        place = _at(where, path)
        leaks = find_in_text(text, place, allowed)
        if not leaks and path and "\n" not in text and not find_in_text(path[-1], ""):
            leaks = find_in_text(f"{path[-1]}={text}", place, allowed)  # the key names the value: `{"api_key": "…"}`
        found += leaks
    return found


def find_in_tables(splits: Mapping[str, Dataset], limit: int = 10, allowed: Collection[str] = ()) -> list[Leak]:
    """Finds the first secrets in a dataset's text. Arrow searches whole columns; Python reads suspicious cells only.

    Args:
        splits (`Mapping[str, Dataset]`): Tables with strings at any depth.
        limit (`int`, defaults to 10): Maximum number of findings.
        allowed (`Collection[str]`): Fingerprints of findings that are not secrets.
    """
    found: list[Leak] = []
    for split, data in splits.items():
        found += find_in_values(data.features.to_dict(), f"split {split}, names of columns", allowed)
        for first, table, suspects in _suspects(_batches(data)):
            for name, row, text in suspects:
                found += find_in_text(text, _place(split, first + row, name, table, row), allowed)
                if len(found) >= limit:
                    return found[:limit]
    return found[:limit]


def _readings(text: str) -> list[str]:
    """Returns variants of a text: unescaped, invisible characters removed or replaced by blanks, lines joined.

    Further variants join only every second line break (the odd or the even ones), for a key that ends with a line.
    """
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text or "%" in text:
        text = _ESCAPED.sub(_unescaped, text)
    plain = _UNSEEN.sub("", text)
    readings = [plain]
    if "\n" in plain or "\r" in plain:
        lines = re.split(r"\r\n?|\n", plain)
        joined = [
            _without_end(line.lstrip(" \t>|#*" + _QUOTES) if number else line) for number, line in enumerate(lines)
        ]
        readings.append("".join(joined))
        readings += ["\n".join(_pairs(joined, first)) for first in (0, 1)]
    readings.append(_UNSEEN.sub(" ", text))
    return list(dict.fromkeys(readings))


def _without_end(line: str) -> str:
    """Removes from a line's end what continues a string in source code: a backslash, or a quote and a plus sign."""
    bare = line.rstrip(" \t\\")
    before = bare.removesuffix("+").rstrip()
    return (before if before.endswith(tuple(_QUOTES)) else bare).rstrip(_QUOTES)


def _pairs(lines: Sequence[str], first: int) -> list[str]:
    """Joins lines in pairs, from the first or the second one on."""
    return [*lines[:first], *("".join(lines[place : place + 2]) for place in range(first, len(lines), 2))]


def _unescaped(match: re.Match[str]) -> str:
    code, blank, percent = match.groups()
    if code or percent:
        return chr(int(code or percent, 16))
    return {"t": "\t"}.get(blank, "\n") if blank else ""


def _texts(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields every text in plain values, and every key of a mapping, with the path of keys to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield path, str(key)
            yield from _texts(part, (*path, str(key)))
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        for number, part in enumerate(value):
            yield from _texts(part, (*path, str(number)))


def _at(where: str, path: Sequence[str]) -> str:
    """Returns the place of a text, without keys that are secrets themselves."""
    keys = [key if len(key) <= 40 and not find_in_text(key, "") else "…" for key in path]
    return f"{where}, {'.'.join(keys)}" if keys else where


def _batches(data: Dataset) -> Iterator[tuple[int, Any]]:
    """Yields batches, each with the number of its first row."""
    first = 0
    for table in pieces(data):
        for start in range(0, len(table), _BATCH):
            yield first + start, table.slice(start, _BATCH)
        first += len(table)


_Suspects = list[tuple[str, int, str]]


def _suspects(tables: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any, _Suspects]]:
    """Yields batches with suspicious cells, in order; Arrow searches one batch per processor at a time."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        # Arrow releases the interpreter's lock during the search.
        while batch := list(itertools.islice(tables, workers)):
            for (first, table), found in zip(batch, pool.map(_cells, (t for _, t in batch)), strict=True):
                if found:
                    yield first, table, found


def _cells(table: Any) -> _Suspects:
    """Returns the suspicious texts of a table: column, row and text."""
    found: _Suspects = []
    for name in table.column_names:
        column = table[name].combine_chunks()
        own = [pair for texts, rows in _leaves(column, np.arange(len(column))) for pair in _suspicious(texts, rows)]
        found += [(name, row, text) for row, text in sorted(own, key=lambda pair: pair[0])]
    return found


def _place(split: str, number: int, column: str, table: Any, row: int) -> str:
    identity = ""
    if columns.PROMPT_ID in table.column_names:
        identity = f" (prompt {table[columns.PROMPT_ID][row].as_py()})"
    return f"split {split}, row {number}{identity}, column {column}"


def _leaves(array: Any, rows: NDArray[np.int64]) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yields the string arrays in a column at any depth, each with the rows of its texts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(array.dictionary_decode(), rows)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        yield array, rows
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(array.flatten(), rows[pc.list_parent_indices(array).to_numpy(zero_copy_only=False)])
    elif pa.types.is_map(kind):
        pairs = pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
        yield from _leaves(array.cast(pairs), rows)
    elif pa.types.is_struct(kind):
        for field in array.flatten():
            yield from _leaves(field, rows)


def _suspicious(texts: Any, rows: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if (pc.max(pc.binary_length(texts)).as_py() or 0) < _SHORTEST:
        return  # roles, names and ids
    if pa.types.is_string_view(texts.type):
        texts = texts.cast(pa.large_string())
    hits = pc.fill_null(pc.match_substring_regex(texts, SUSPICIOUS), False).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(hits)
    if len(places):
        yield from zip(rows[places].tolist(), texts.take(pa.array(places)).to_pylist(), strict=True)
