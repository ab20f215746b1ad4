"""What a dataset's rows are, as one number: shards are named by it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from persyn_hf.publishing.pieces import pieces

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

_PIECE_BYTES = 400_000_000  # nothing is made of it, and nothing else is in memory yet
#: Of everything that Arrow keeps apart: by its path in the table, `(column, field or [], …, what of it)`.
_Streams = defaultdict[tuple[str, ...], Any]


def digest(data: Dataset) -> str:
    """A digest of rows and features, 16 hex digits: the same however the table is chunked, indexed or cached.

    Validity, lengths and values of every column are streams of their own. So they are hashed where they lie, without a
    copy, and where a chunk ends leaves no mark.
    """
    streams: _Streams = defaultdict(xxhash.xxh3_128)
    for table in pieces(data, _PIECE_BYTES):
        _feed_table(streams, table)
        del table
    whole = xxhash.xxh3_128(json.dumps([data.column_names, data.features.to_dict()], sort_keys=True).encode())
    for path in sorted(streams):
        whole.update(repr(path).encode() + streams[path].digest())
    return str(whole.hexdigest()[:16])


def _feed_table(streams: _Streams, table: pa.Table) -> None:
    for name in table.column_names:
        for chunk in table[name].chunks:
            _feed(streams, chunk, (name,))


def _feed(streams: _Streams, array: Any, path: tuple[str, ...]) -> None:
    """Feeds a column's chunk, or a part of it, to the streams of this path."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        array, kind = array.storage, array.storage.type
    valid = array.is_valid().to_numpy(zero_copy_only=False) if array.null_count else np.ones(len(array), dtype=bool)
    streams[*path, "valid"].update(valid)
    if pa.types.is_struct(kind):
        for field, part in zip(kind, array.flatten(), strict=True):
            _feed(streams, part, (*path, field.name))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
        streams[*path, "lengths"].update(lengths.to_numpy())
        _feed(streams, array.flatten(), (*path, "[]"))
    elif len(array) > array.null_count:
        _feed_values(streams, array.drop_null(), path)  # what lies under a null is anything


def _feed_values(streams: _Streams, values: Any, path: tuple[str, ...]) -> None:
    """Scalars without nulls: fixed-width ones and strings as they lie, others as Python prints them."""
    import pyarrow as pa

    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        _feed_bytes(streams, values, np.dtype(np.int32), path)
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        _feed_bytes(streams, values, np.dtype(np.int64), path)
    elif pa.types.is_primitive(kind) and not pa.types.is_boolean(kind):
        width = kind.bit_width // 8
        start, end = values.offset * width, (values.offset + len(values)) * width
        streams[*path, "values"].update(memoryview(values.buffers()[1])[start:end])
    else:
        for value in values.to_pylist():
            streams[*path, "values"].update(f"{value!r}\n".encode())


def _feed_bytes(streams: _Streams, values: Any, offset: np.dtype[Any], path: tuple[str, ...]) -> None:
    """Strings or bytes without nulls: their lengths, and their bytes in one stretch."""
    _, ends, text = values.buffers()
    bounds = np.frombuffer(ends, dtype=offset)[values.offset : values.offset + len(values) + 1]
    streams[*path, "lengths"].update(np.diff(bounds).astype(np.int64))
    if bounds[0] < bounds[-1]:
        streams[*path, "values"].update(memoryview(text)[int(bounds[0]) : int(bounds[-1])])
