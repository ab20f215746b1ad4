"""The tables that a run leaves, as anybody reads a folder of Parquet files."""

from pathlib import Path

import pyarrow.parquet as pq
from datasets import Dataset


def stage_table(folder: str | Path, name: str) -> Dataset:
    return Dataset(pq.read_table(Path(folder) / "stages" / f"{name}.parquet"))
