"""Parquet shards of a dataset, written in a stream and named by what they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf.publishing.digest import digest
from persyn_hf.publishing.pieces import arrow_bytes, pieces

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 500_000_000
DEFAULT_CONFIG = "default"
_WRITERS = 3  # at once; Arrow encodes without holding the interpreter's lock


@dataclass(frozen=True)
class Shards:
    """One split's shards: where they go is known before they are written.

    The names carry a digest of rows and features. So shards that are already in a repository are known by name, a
    reader of an old card never meets new shards, and `load_dataset`, which keys its cache of a local folder by the
    folder's last name and the card's patterns (datasets 5.2), never serves one run's data for another's.

    Args:
        data (`Dataset`): The rows.
        paths (`tuple[str, ...]`): Relative to the repository.
        pattern (`str`): Finds them.
        bytes_in_memory (`int`): As `datasets` estimates it.
    """

    data: Dataset
    paths: tuple[str, ...]
    pattern: str
    bytes_in_memory: int

    def write(self, folder: Path) -> dict[str, Path]:
        """Writes the shards under a folder, three at a time."""
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
    """Names the shards of every split.

    Args:
        splits (`Mapping[str, Dataset]`): The tables.
        config_name (`str`, defaults to `"default"`): The configuration; every other one has a folder of its own.
        shard_bytes (`int`, defaults to 500 MB): Of Arrow data per shard.
    """
    return {split: _plan(data, split, config_name, shard_bytes) for split, data in splits.items()}


def shard_folder(config_name: str) -> str:
    """The folder of a configuration's shards, as `Dataset.push_to_hub` names it."""
    return "data" if config_name == DEFAULT_CONFIG else config_name


def _write_parquet(data: Dataset, path: Path) -> None:
    """One row group per piece, with the options of `Dataset.to_parquet` (content-defined chunks, page index)."""
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
    """Whether a file of a repository is a shard of this configuration that persyn-hf wrote."""
    name = rf"{re.escape(shard_folder(config_name))}/[\w.]+-\d{{5}}-of-\d{{5}}-[0-9a-f]{{16}}\.parquet"
    return re.fullmatch(name, path) is not None
