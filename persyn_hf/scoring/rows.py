"""The rows passed to a map function: one row or a batch, the rows that can be scored, and their names in errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from persyn_hf.columns import COMPLETION, ERROR, PROMPT_ID, ROW_NUMBERS, TEACHER

Batch = dict[str, Sequence[Any]]


def as_batch(batch_or_row: Mapping[str, Any]) -> tuple[Batch, bool]:
    """Turns a row or a batch into a batch; the flag is true for a row."""
    single = not isinstance(batch_or_row[COMPLETION], list)
    return {key: [batch_or_row[key]] if single else batch_or_row[key] for key in batch_or_row}, single


def answered(batch: Mapping[str, Sequence[Any]]) -> list[int]:
    """The rows that have a completion and no error."""
    errors = batch.get(ERROR) or [None] * len(batch[COMPLETION])
    return [row for row, text in enumerate(batch[COMPLETION]) if text is not None and errors[row] is None]


def row_names(batch: Mapping[str, Sequence[Any]], rows: Iterable[int]) -> list[str]:
    """Names of rows in errors: prompt and teacher if known, and the row numbers that are set."""
    known = [(label, key) for key, label in ((PROMPT_ID, "prompt"), (TEACHER, "teacher")) if key in batch]
    numbers = [name for name in ROW_NUMBERS if name in batch]
    return [
        ", ".join(
            [
                *([f"{label} {batch[key][row]}" for label, key in known] or [f"row {row} of the batch"]),
                *(f"{name} {batch[name][row]}" for name in numbers if batch[name][row]),
            ]
        )
        for row in rows
    ]
