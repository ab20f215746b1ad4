"""Rows of text files (JSON lines, JSON, CSV, TSV, plain text), compressed or not, exactly as they were written.

Everything in a CSV file is text: `007` stays `007`, and an empty cell is an empty string. Where its first line holds
no comma, a semicolon, tab or `|` there separates the cells. White space around the names of columns does not count.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import PurePath
from typing import IO, TYPE_CHECKING, Any, cast

from persyn_hf.packages import require

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
#: The columns of rows that are no objects: strings, and lists of messages.
TEXT, MESSAGES = "text", "messages"
#: A surrogate in JSON's escapes; whether it is one half alone is looked at where there is one.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: A list of objects over many lines; a list on a line of its own is a conversation.
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[[ \t\r]*\n\s*\{")
#: What separates cells where the first line holds no comma: spreadsheets write a semicolon in many countries.
_DELIMITERS = (";", "\t", "|")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class UnreadableError(ValueError):
    """A file cannot be read; says where in it, and why."""


def format_of(path: str) -> str:
    """The suffix that says how a file is written, without that of its compression.

    Example:
        >>> format_of("data/Train-00000.JSONL.gz")
        '.jsonl'
    """
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_rows(path: str) -> list[Row]:
    """Reads all rows of a text file.

    Args:
        path (`str`): A file whose [`format_of`] is one of `TEXT_FORMATS`.

    Raises:
        UnreadableError: If it is damaged, empty or in another encoding; names the line and has the cause's words.
        MissingExtraError: If it is compressed with Zstandard and no package reads that.
    """
    readers = {".csv": _csv, ".tsv": _tsv, ".txt": _lines, ".json": _json}
    with _explained(), _opened(path) as file:
        rows = readers.get(format_of(path), _json_lines)(file)
    if not rows:
        raise UnreadableError("it is empty")
    return rows


def rows_table(rows: Iterable[Row], types: Mapping[str, Any] | None = None) -> Dataset:
    """Makes a table of rows whose keys may differ; mappings, and lists of them, stay the JSON that they are.

    Args:
        rows (`Iterable[Mapping]`): Rows.
        types (`Mapping`, *optional*): Functions that give the type of a column of these names.
    """
    from datasets import Dataset, Features

    known = list(rows)
    names = list(dict.fromkeys(chain.from_iterable(known)))
    values = {name: [row.get(name) for row in known] for name in names}
    type_of = {name: (types or {}).get(name, feature_of) for name in names}
    features = Features({name: type_of[name](cells) or _inferred(cells) for name, cells in values.items()})
    encoded = {name: [_encoded(value, features[name]) for value in cells] for name, cells in values.items()}
    return Dataset.from_dict(encoded, features=features)


def _encoded(value: Any, feature: Any) -> Any:
    """A value for a column of JSON: a string there counts as JSON that is written already, so it is written here."""
    from datasets import Json, List

    if isinstance(feature, Json):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value
    if isinstance(feature, List) and isinstance(feature.feature, Json) and value is not None:
        return [_encoded(one, feature.feature) for one in value]
    return value


def _inferred(values: list[Any]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict({TEXT: values}).features[TEXT]


def feature_of(values: Iterable[Any]) -> Any:
    """The type of a column of JSON values; `None` where some are none.

    Example:
        >>> feature_of(["007", None]), feature_of([[{"role": "user"}], None])
        (Value('string'), List(Json(decode=True)))
    """
    from datasets import Json, List, Value

    known = [value for value in values if value is not None]
    scalar = _scalar(known)
    if scalar is not None:
        return Value(scalar)
    if all(isinstance(value, list) for value in known):
        items = list(chain.from_iterable(known))
        inner = _scalar([item for item in items if item is not None])
        return List(Value(inner)) if inner is not None else List(Json()) if _are_json(items) else None
    return Json() if _are_json(known) else None


def _are_json(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str | bool | int | float | list | dict | None) for value in values)


def _scalar(values: list[Any]) -> str | None:
    """Arrow's name for the one type of all values; `None` where they have no common one."""
    kinds = {type(value) for value in values}
    if kinds <= {str}:
        return "string"
    if kinds == {bool}:
        return "bool"
    if kinds <= {int, float} and all(abs(value) < 2**63 for value in values if isinstance(value, int)):
        return "int64" if kinds == {int} else "float64"
    return None


def _json_lines(file: IO[bytes]) -> list[Row]:
    """A value on every line; or one list over many lines, which some files of this name hold."""
    buffered = io.BufferedReader(cast(io.RawIOBase, file))
    if _LIST.match(buffered.peek(64)[:64]):
        return _json(buffered)
    return [_row(_parsed(line, number), f"line {number}") for number, line in _decoded(buffered) if line.strip()]


def _json(file: IO[bytes]) -> list[Row]:
    """A list of rows; or JSON lines, which many files of this name hold."""
    text = "".join(line for _, line in _decoded(file))
    if not text.strip():
        return []
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _json_lines(io.BytesIO(text.encode("utf-8")))
        raise UnreadableError(f"line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(found, list):
        keys = f" with the keys {', '.join(map(str, list(found)[:8]))}" if isinstance(found, dict) else ""
        raise UnreadableError(
            f"it holds one {_kind(found)}{keys}; expected a list of rows, or an object on every line"
        )
    if _SURROGATE.search(text):
        for index, value in enumerate(found):
            _require_encodable(json.dumps(value, ensure_ascii=False), f"row {index}")
    return [_row(value, f"row {index}") for index, value in enumerate(found)]


def _csv(file: IO[bytes], delimiter: str = ",") -> list[Row]:
    lines = (line for _, line in _decoded(file))
    first = next(lines, "")
    if delimiter == "," and "," not in first and any(map(first.count, _DELIMITERS)):
        delimiter = max(_DELIMITERS, key=first.count)
    with _long_fields():
        reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise UnreadableError(f"line 1 names the column {', '.join(repeated)} more than once")
            return list(_cells(reader, header))
        except csv.Error as error:
            raise UnreadableError(f"line {reader.line_num}: {error}") from error


def _cells(reader: Any, header: list[str]) -> Iterator[Row]:
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise UnreadableError(
                f"line {reader.line_num} has {len(cells)} cells, the first line names {len(header)} columns"
            )
        yield dict(zip(header, cells, strict=True))


def _tsv(file: IO[bytes]) -> list[Row]:
    return _csv(file, delimiter="\t")


def _lines(file: IO[bytes]) -> list[Row]:
    """Every line that is not blank is a prompt."""
    return [{TEXT: line.rstrip("\r\n")} for _, line in _decoded(file) if line.strip()]


def _decoded(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, as UTF-8, or as UTF-16 where the file begins with its mark."""
    buffered = io.BufferedReader(cast(io.RawIOBase, file))
    if buffered.peek(2)[:2] in _UTF16:
        yield from enumerate(io.TextIOWrapper(buffered, "utf-16", newline=""), start=1)
        return
    for number, line in enumerate(buffered, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableError(f"line {number} is no UTF-8: {error}; save the file as UTF-8") from error


def _parsed(line: str, number: int) -> Any:
    try:
        value = json.loads(line.rstrip("\r\n"))
    except json.JSONDecodeError as error:
        raise UnreadableError(f"line {number}, column {error.colno}: {error.msg}") from error
    if _SURROGATE.search(line):
        _require_encodable(json.dumps(value, ensure_ascii=False), f"line {number}")
    return value


def _require_encodable(text: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UnreadableError(f"{place} holds half of a surrogate pair, which is no character: {error}") from error


def _row(value: Any, place: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {TEXT: value}
    if isinstance(value, list):
        return {MESSAGES: value}
    raise UnreadableError(f"{place} holds a {_kind(value)}; expected an object")


def _kind(value: Any) -> str:
    return {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Cells of any length; the csv module's limit is one for the process."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise UnreadableError("its JSON is nested too deeply") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UnreadableError(f"its compressed data is damaged: {error}") from error


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    suffix = PurePath(path).suffix.lower()
    if suffix == ".zst":
        with _zstandard(path) as file:
            yield file
        return
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    with openers.get(suffix, open)(path, "rb") as file:
        yield file


@contextmanager
def _zstandard(path: str) -> Iterator[IO[bytes]]:
    """Through Python's own module where there is one (3.14), else through `zstandard`."""
    zstd: Any
    if sys.version_info >= (3, 14):
        from compression import zstd

        failed: type[Exception] = zstd.ZstdError
    else:
        require(f"read {PurePath(path).name}, which is compressed with Zstandard", "zstandard")
        import zstandard as zstd

        failed = zstd.ZstdError
    try:
        if sys.version_info >= (3, 14):
            with zstd.open(path, "rb") as file:
                yield file
            return
        # `zstandard.open` would stop at the end of the first of several frames.
        with (
            open(path, "rb") as packed,
            zstd.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as file,
        ):
            yield file
    except failed as error:
        raise UnreadableError(f"its compressed data is damaged: {error}") from error
