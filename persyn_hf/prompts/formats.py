"""Reading of text files (JSON lines, JSON, CSV, TSV, plain text), optionally compressed, without converting values.

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
#: Columns of rows that are not objects but strings or lists of messages.
TEXT, MESSAGES = "text", "messages"
#: An escaped surrogate in JSON. Only texts with one are checked for unpaired surrogates.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
#: A list of objects over many lines; a list on a line of its own is a conversation.
_LIST = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[[ \t\r]*\n\s*\{")
#: What separates cells where the first line holds no comma: spreadsheets write a semicolon in many countries.
_DELIMITERS = (";", "\t", "|")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class UnreadableError(ValueError):
    """A file cannot be read. The message gives the position and the reason."""


def format_of(path: str) -> str:
    """Returns the suffix of a file's format, without the suffix of its compression.

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
        path (`str`): Path of a file whose [`format_of`] is in `TEXT_FORMATS`.

    Raises:
        UnreadableError: If the file is damaged, empty or in another encoding. The error names the line and the cause.
        MissingExtraError: If the file is compressed with Zstandard and `zstandard` is not installed.
    """
    readers = {".csv": _csv, ".tsv": _tsv, ".txt": _lines, ".json": _json}
    with _explained(), _opened(path) as file:
        rows = readers.get(format_of(path), _json_lines)(file)
    if not rows:
        raise UnreadableError("the file is empty")
    return rows


def rows_table(rows: Iterable[Row], types: Mapping[str, Any] | None = None) -> Dataset:
    """Builds a table from rows whose keys may differ. Mappings, and lists of them, become JSON columns.

    Args:
        rows (`Iterable[Mapping]`): Rows.
        types (`Mapping`, *optional*): Functions that return the type of a column, by column name.
    """
    from datasets import Dataset, Features

    known = list(rows)
    names = list(dict.fromkeys(chain.from_iterable(known)))
    values = {name: [row.get(name) for row in known] for name in names}
    type_of = {name: (types or {}).get(name, feature_of) for name in names}
    features = Features({name: type_of[name](cells) or _inferred(cells) for name, cells in values.items()})
    encoded = {name: [_encoded(value, features[name]) for value in cells] for name, cells in values.items()}
    return Dataset.from_dict(encoded, features=features)


def _encoded(value: Any, feature: object) -> Any:
    """Encodes a value for a JSON column, where `datasets` takes a string as encoded JSON."""
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
    """Returns the type of a column of JSON values; `None` if a value is not JSON.

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


def _are_json(values: Iterable[object]) -> bool:
    return all(isinstance(value, str | bool | int | float | list | dict | None) for value in values)


def _scalar(values: list[Any]) -> str | None:
    """Returns Arrow's name of the common type of all values; `None` if there is none."""
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
    """Reads a list of rows, or JSON lines, which many `.json` files hold."""
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
            f"the file must hold a list of rows or an object on every line, got one {_kind(found)}{keys}"
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
                f"line {reader.line_num} has {len(cells)} cells, but the first line names {len(header)} columns"
            )
        yield dict(zip(header, cells, strict=True))


def _tsv(file: IO[bytes]) -> list[Row]:
    return _csv(file, delimiter="\t")


def _lines(file: IO[bytes]) -> list[Row]:
    """Reads every non-blank line as a prompt."""
    return [{TEXT: line.rstrip("\r\n")} for _, line in _decoded(file) if line.strip()]


def _decoded(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their line ends, as UTF-8, or as UTF-16 if the file has its byte-order mark."""
    buffered = io.BufferedReader(cast(io.RawIOBase, file))
    if buffered.peek(2)[:2] in _UTF16:
        yield from enumerate(io.TextIOWrapper(buffered, "utf-16", newline=""), start=1)
        return
    for number, line in enumerate(buffered, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UnreadableError(f"line {number} is not UTF-8: {error}; save the file as UTF-8") from error


def _parsed(line: str, number: int) -> object:
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
        raise UnreadableError(f"{place} holds an unpaired surrogate, which is not a character: {error}") from error


def _row(value: object, place: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, str):
        return {TEXT: value}
    if isinstance(value, list):
        return {MESSAGES: value}
    raise UnreadableError(f"{place} must hold an object, got a {_kind(value)}")


def _kind(value: object) -> str:
    return {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(
        type(value), "number"
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allows cells of any length. The csv module's limit applies to the whole process."""
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
        raise UnreadableError("the JSON is nested too deeply") from error
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
    """Opens a file with Python's own module (3.14), or with `zstandard`."""
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
        # `zstandard.open` would stop after the first of several frames.
        with (
            open(path, "rb") as packed,
            zstd.ZstdDecompressor().stream_reader(packed, read_across_frames=True) as file,
        ):
            yield file
    except failed as error:
        raise UnreadableError(f"its compressed data is damaged: {error}") from error
