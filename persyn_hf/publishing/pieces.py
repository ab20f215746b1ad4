"""A table piece by piece, so that a process never holds more than one of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

#: Arrow data of one piece; that of a row group, as `Dataset.to_parquet` writes them.
PIECE_BYTES = 100_000_000


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
    rows = max(1, len(data) * (piece_bytes or PIECE_BYTES) // size) if size else len(data)
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
