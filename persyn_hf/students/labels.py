"""Training rows: token ids, and labels on the completion's tokens only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persyn_hf.errors import StudentError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

INPUT_IDS = "input_ids"
LABELS = "labels"
#: Label of a token that is not in the loss, as in torch and transformers.
IGNORED = -100


@dataclass(frozen=True)
class RowCounts:
    """Counts of training rows, of their tokens, and of answers without a row.

    Args:
        rows (`int`): Training rows.
        learnt_tokens (`int`): Tokens in the loss, over all rows.
        tokens (`int`): All tokens, prompts included.
        without_end (`int`): Rows without an end of turn, cut by the teacher's `max_tokens` or by `max_length`.
        left_out (`int`): Answers left out because the prompt alone fills `max_length`.
    """

    rows: int
    learnt_tokens: int
    tokens: int
    without_end: int
    left_out: int


def label_row(prompt_ids: Sequence[int], completion_ids: Sequence[int], max_length: int) -> dict[str, list[int]]:
    """Makes one row, cut to `max_length` tokens; it has no labels if nothing of the completion is left.

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
    """Tells whether any token of a row has a label."""
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
    """Yields the values of a column of lists, read in batches."""
    for batch in rows.select_columns([column]).iter(1000):
        yield from batch[column]


def digest_rows(rows: Dataset) -> str:
    """The digest of the rows and their order, so that a training run is never resumed with other data."""
    digest = hashlib.sha256()
    for column in (INPUT_IDS, LABELS):
        for values in each(rows, column):
            digest.update(f"{len(values)}:{values}".encode())
    return digest.hexdigest()


def learnt_spans(batch: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    """Finds the spans of tokens in the loss of a collated batch.

    Args:
        batch (`Mapping`): Batch from the trainer's collator: `input_ids` and `labels` of shape `(rows, tokens)` and,
            if rows are packed, `position_ids` that restart with every row.

    Raises:
        StudentError: If a label differs from the input token at its position.
    """
    spans: list[tuple[int, ...]] = []
    ids, labels = batch[INPUT_IDS].tolist(), batch[LABELS].tolist()
    positions = batch["position_ids"].tolist() if "position_ids" in batch else [range(len(row)) for row in ids]
    for row_ids, row_labels, row_positions in zip(ids, labels, positions, strict=True):
        span: list[int] = []
        for token, label, position in zip(row_ids, row_labels, row_positions, strict=True):
            if label not in (IGNORED, token):
                raise StudentError(
                    f"In the trainer's batch, the label of token {token} must be {token} or {IGNORED}, got {label}."
                )
            if span and (label == IGNORED or position == 0):
                spans.append(tuple(span))
                span = []
            if label != IGNORED:
                span.append(label)
        if span:
            spans.append(tuple(span))
    return spans


def check_batch(batch: Mapping[str, Tensor], rows: Dataset) -> None:
    """Checks a batch from the trainer's collator before the first step.

    Args:
        batch (`Mapping`): The batch.
        rows (`Dataset`): All training rows.

    Raises:
        StudentError: If no token is in the loss, or the loss covers anything but whole completions of the rows.
    """
    strange = set(learnt_spans(batch))
    if not strange:
        raise StudentError(
            "The loss mask of the first batch is empty, so no token would be learnt. Check that the student's chat "
            "template shows the assistant's content (or set another one with `chat_template`), and that `max_length` "
            "leaves room for completions."
        )
    for labels in each(rows, LABELS):
        strange.discard(tuple(label for label in labels if label != IGNORED))
        if not strange:
            return
    raise StudentError(
        f"The loss would cover {len(strange)} spans of tokens that are not completions, for example "
        f"{next(iter(strange))[:10]}. Rows must be neither split nor joined: check `packing` and `extra`."
    )
