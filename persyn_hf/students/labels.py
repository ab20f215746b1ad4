"""Training rows: token ids, and labels that are the completion's tokens and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import StudentError

if TYPE_CHECKING:
    from datasets import Dataset

INPUT_IDS = "input_ids"
LABELS = "labels"
#: The label of a token that no loss is taken on, torch's and transformers' own.
IGNORED = -100


@dataclass(frozen=True)
class RowCounts:
    """What became of the answers.

    Args:
        rows (`int`): Training rows.
        learnt_tokens (`int`): Tokens that the loss is taken on, in all rows.
        tokens (`int`): Tokens in all, prompts included.
        without_end (`int`): Rows that learn no end of turn: the teacher's `max_tokens` or our `max_length` cut them.
        left_out (`int`): Answers whose prompt alone fills `max_length`.
    """

    rows: int
    learnt_tokens: int
    tokens: int
    without_end: int
    left_out: int


def label_row(prompt_ids: Sequence[int], completion_ids: Sequence[int], max_length: int) -> dict[str, list[int]]:
    """One row, cut to `max_length` tokens; without labels where nothing of the completion is left.

    Example:
        >>> label_row([1, 2], [3, 4], max_length=8)
        {'input_ids': [1, 2, 3, 4], 'labels': [-100, -100, 3, 4]}
        >>> label_row([1, 2], [3, 4], max_length=3)
        {'input_ids': [1, 2, 3], 'labels': [-100, -100, 3]}
    """
    ids = [*prompt_ids, *completion_ids][:max_length]
    labels = [IGNORED] * len(prompt_ids) + list(completion_ids)
    return {INPUT_IDS: ids, LABELS: labels[:max_length]}


def learns_something(row: Mapping[str, Sequence[int]]) -> bool:
    """Whether any token of a row has a label."""
    return any(label != IGNORED for label in row[LABELS])


def count_rows(rows: Dataset, asked: int, ends: frozenset[int]) -> RowCounts:
    """Counts rows and tokens; `asked` is the number of answers, `ends` the tokens that end a turn."""
    learnt = total = without_end = 0
    for labels in each(rows, LABELS):
        total += len(labels)
        learnt += sum(label != IGNORED for label in labels)
        without_end += labels[-1] not in ends
    return RowCounts(len(rows), learnt, total, without_end, asked - len(rows))


def each(rows: Dataset, column: str) -> Iterator[list[int]]:
    """The values of a column of lists, read in batches."""
    for batch in rows.select_columns([column]).iter(1000):
        yield from batch[column]


def digest_rows(rows: Dataset) -> str:
    """The digest of what is learnt and in which order, so that a training is never resumed with other data."""
    digest = hashlib.sha256()
    for column in (INPUT_IDS, LABELS):
        for values in each(rows, column):
            digest.update(f"{len(values)}:{values}".encode())
    return digest.hexdigest()


def learnt_spans(batch: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """The stretches of tokens that a collated batch takes the loss on.

    Args:
        batch (`Mapping`): As the trainer's collator makes it: `input_ids` and `labels` of shape `(rows, tokens)` and,
            where rows are packed, `position_ids` that begin again with every row.

    Raises:
        StudentError: If a label is another token than the input's at its place.
    """
    spans: list[tuple[int, ...]] = []
    ids, labels = batch[INPUT_IDS].tolist(), batch[LABELS].tolist()
    positions = batch["position_ids"].tolist() if "position_ids" in batch else [range(len(row)) for row in ids]
    for row_ids, row_labels, row_positions in zip(ids, labels, positions, strict=True):
        span: list[int] = []
        for token, label, position in zip(row_ids, row_labels, row_positions, strict=True):
            if label not in (IGNORED, token):
                raise StudentError(f"The trainer's batch labels the token {token} as {label}; it must be itself.")
            if span and (label == IGNORED or position == 0):
                spans.append(tuple(span))
                span = []
            if label != IGNORED:
                span.append(label)
        if span:
            spans.append(tuple(span))
    return spans


def check_batch(batch: Mapping[str, Any], rows: Dataset) -> None:
    """Looks at a batch as the trainer collates it, before anything is learnt from it.

    Args:
        batch (`Mapping`): The batch.
        rows (`Dataset`): All training rows.

    Raises:
        StudentError: If no token would be learnt, or something else than whole completions of the rows.
    """
    strange = set(learnt_spans(batch))
    if not strange:
        raise StudentError(
            "No token of the first batch would be learnt: the loss mask is empty. Look at the student's chat template "
            "(it must show the assistant's content) or give another one with `chat_template`, and see that "
            "`max_length` leaves room for completions."
        )
    for labels in each(rows, LABELS):
        strange.discard(tuple(label for label in labels if label != IGNORED))
        if not strange:
            return
    raise StudentError(
        f"The trainer would learn {len(strange)} stretches of tokens that are no answer's completion, one of them "
        f"{next(iter(strange))[:10]}. Rows must stay whole and apart: see `packing` and `extra`."
    )
