"""Actual cost and time of a run, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher, priced
from persyn_hf.errors import ConfigError
from persyn_hf.planning.plan import Line


@dataclass(frozen=True)
class Actual:
    """Totals of a finished run.

    Args:
        lines (`Sequence[Line]`): Lines as in the plan; `seconds` is the stage's, since teachers answer in parallel.
        errors (`int`): Number of failed answers.
    """

    lines: Sequence[Line]
    errors: int


def read_actual(config: RunConfig) -> Actual:
    """Reads the finished stages of a run folder. Every attempt counts.

    A probe answer that the generate stage reused counts once, under `probe`.

    Raises:
        ConfigError: If the folder holds no finished `probe` or `generate` stage.
    """
    import pyarrow.parquet as pq

    stages = Path(config.output_dir) / "stages"
    paid: set[columns.RowKey] = set()
    lines: list[Line] = []
    errors = 0
    wanted = (*columns.ROW_KEY, *columns.TOKENS, columns.ERROR)
    for stage in ("probe", "generate"):
        file = stages / f"{stage}.parquet"
        if not file.exists():
            continue
        seconds = float(json.loads((stages / f"{stage}.json").read_text(encoding="utf-8"))["seconds"])
        sums = {teacher.name: [0.0, 0.0, 0.0, 0.0, 0.0] for teacher in config.teachers}
        present = pq.ParquetDataset(file).schema.names
        table = pq.read_table(file, columns=[name for name in wanted if name in present])
        rows = table.to_pylist()
        for key, row in zip(columns.row_keys(table.to_pydict()), rows, strict=True):
            if key in paid or row[columns.TEACHER] not in sums:
                continue
            if row[columns.ERROR] is not None:
                errors += 1
                continue
            paid.add(key)
            own = sums[row[columns.TEACHER]]
            own[0] += 1
            for place, name in enumerate(columns.TOKENS, 1):
                own[place] += row.get(name) or 0
        lines += [_line(stage, teacher, sums[teacher.name], seconds) for teacher in config.teachers]
    if not lines:
        raise ConfigError(
            f"`output_dir`: {stages} holds no finished `probe` or `generate` stage to compare with the plan; run "
            "`persyn-hf run` first."
        )
    return Actual(tuple(lines), errors)


def _line(stage: str, teacher: Teacher, sums: Sequence[float], seconds: float) -> Line:
    count, *tokens = sums
    prompt, completion, _, _ = tokens
    return Line(stage, teacher.name, count, prompt, completion, priced(teacher.prices, tokens), seconds)
