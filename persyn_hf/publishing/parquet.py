"""Parquet shards of a dataset, written in a stream and named by a digest of their rows."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from persyn_hf.tables import arrow_bytes, pieces

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset


SHARD_BYTES = 500_000_000
DEFAULT_CONFIG = "default"
_WRITERS = 3  # threads; Arrow releases the interpreter's lock while encoding


@dataclass(frozen=True)
class Shards:
    """One split's shards, whose paths are known before they are written.

    The names contain a digest of rows and features. So shards that a repository already has are recognised by name, a
    reader of an old card never gets new shards, and `load_dataset`, which keys its cache of a local folder by the
    folder's last name and the card's patterns (datasets 5.2), never returns another run's data.

    Args:
        data (`Dataset`): Rows.
        paths (`tuple[str, ...]`): Paths relative to the repository.
        pattern (`str`): Glob pattern of the paths.
        bytes_in_memory (`int`): Size as estimated by `datasets`.
    """

    data: Dataset
    paths: tuple[str, ...]
    pattern: str
    bytes_in_memory: int

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes the shards into a folder, three at a time."""
        written = {path: folder / path for path in self.paths}
        for target in written.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        parts = [self.data.shard(len(self.paths), index, contiguous=True) for index in range(len(self.paths))]
        with ThreadPoolExecutor(_WRITERS) as pool:
            list(pool.map(_write_parquet, parts, written.values()))
        return written


def plan_shards(
    splits: Mapping[str, Dataset], config_name: str = DEFAULT_CONFIG, shard_bytes: int = SHARD_BYTES
) -> dict[str, Shards]:
    """Plans the shards of every split.

    Args:
        splits (`Mapping[str, Dataset]`): Tables by split.
        config_name (`str`, defaults to `"default"`): Name of the configuration; each has its own folder.
        shard_bytes (`int`, defaults to 500 MB): Bytes of Arrow data per shard.
    """
    return {split: _plan(data, split, config_name, shard_bytes) for split, data in splits.items()}


def shard_folder(config_name: str) -> str:
    """Returns the folder of a configuration's shards, named as by `Dataset.push_to_hub`."""
    return "data" if config_name == DEFAULT_CONFIG else config_name


def _write_parquet(data: Dataset, path: Path) -> None:
    """Writes a row group per piece, with the options of `Dataset.to_parquet` (content-defined chunks, page index)."""
    import pyarrow.parquet as pq
    from datasets import config

    chunking = config.DEFAULT_CDC_OPTIONS
    schema = data.features.arrow_schema
    with pq.ParquetWriter(path, schema, use_content_defined_chunking=chunking, write_page_index=True) as writer:
        for table in pieces(data):
            writer.write_table(table)
            del table
        writer.add_key_value_metadata({"content_defined_chunking": json.dumps(chunking)})


def _plan(data: Dataset, split: str, config_name: str, shard_bytes: int) -> Shards:
    size = arrow_bytes(data)
    count = max(1, min(len(data), -(-size // shard_bytes)))
    mark = digest(data)
    folder = shard_folder(config_name)
    paths = tuple(f"{folder}/{split}-{index:05d}-of-{count:05d}-{mark}.parquet" for index in range(count))
    return Shards(data, paths, f"{folder}/{split}-*-{mark}.parquet", size)


def is_shard(path: str, config_name: str) -> bool:
    """Returns true for the path of a shard of this configuration that persyn-hf wrote."""
    name = rf"{re.escape(shard_folder(config_name))}/[\w.]+-\d{{5}}-of-\d{{5}}-[0-9a-f]{{16}}\.parquet"
    return re.fullmatch(name, path) is not None


_PIECE_BYTES = 400_000_000  # large, because pieces are only hashed, before anything else is in memory
#: Hash states by path in the table: `(column, field or [], …, "valid", "lengths" or "values")`.
_Streams = defaultdict[tuple[str, ...], Any]


def digest(data: Dataset) -> str:
    """Returns a digest of rows and features, 16 hex digits, independent of chunking, indices and caching.

    Validity, lengths and values of every column are hashed as separate streams, so they need no copy, and chunk
    boundaries do not affect the digest.
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
    """Adds a column's chunk, or a nested part of it, to the streams of its path."""
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
        _feed_values(streams, array.drop_null(), path)  # values under a null are undefined


def _feed_values(streams: _Streams, values: Any, path: tuple[str, ...]) -> None:
    """Adds scalars without nulls: fixed-width values and strings by their bytes, others by their `repr`."""
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
    """Adds strings or bytes without nulls: their lengths, and their concatenated bytes."""
    _, ends, text = values.buffers()
    bounds = np.frombuffer(ends, dtype=offset)[values.offset : values.offset + len(values) + 1]
    streams[*path, "lengths"].update(np.diff(bounds).astype(np.int64))
    if bounds[0] < bounds[-1]:
        streams[*path, "values"].update(memoryview(text)[int(bounds[0]) : int(bounds[-1])])
