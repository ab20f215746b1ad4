"""The rows that a map function was given: one or a batch, which of them can be scored, and how errors name them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from persyn_hf.columns import COMPLETION, ERROR, PROMPT_ID, ROW_NUMBERS, TEACHER

Batch = dict[str, Sequence[Any]]


def as_batch(batch_or_row: Mapping[str, Any]) -> tuple[Batch, bool]:
    """A batch, and whether it was a single row."""
    single = not isinstance(batch_or_row[COMPLETION], list)
    return {key: [batch_or_row[key]] if single else batch_or_row[key] for key in batch_or_row}, single


def answered(batch: Mapping[str, Sequence[Any]]) -> list[int]:
    """The rows that have a completion and no error."""
    errors = batch.get(ERROR) or [None] * len(batch[COMPLETION])
    return [row for row, text in enumerate(batch[COMPLETION]) if text is not None and errors[row] is None]


def row_names(batch: Mapping[str, Sequence[Any]], rows: Iterable[int]) -> list[str]:
    """How errors name rows: by prompt and teacher where these are known, and the numbers that are set."""
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
