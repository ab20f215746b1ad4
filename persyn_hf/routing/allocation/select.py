"""From several answers of a prompt to the best: the bridge from routing to generate-then-select."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from persyn_hf import columns

if TYPE_CHECKING:
    from datasets import Dataset


def keep_best(scored: Dataset, by: str = columns.REWARD) -> Dataset:
    """Keeps the best answer of every prompt.

    Args:
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id` and the column `by`.
        by (`str`, defaults to `"reward"`): The column that decides; larger is better. An answer without a value loses
            to every answer with one; among equals the earlier row stays.

    Returns:
        `Dataset`: One row per prompt, in the order of their first rows. A prompt without any value keeps its first
        row, with its `error`, so that it is counted.

    Raises:
        MissingColumnError: If a column is absent.

    Example:
        >>> from datasets import Dataset
        >>> rows = {"prompt_id": ["p", "p", "q"], "teacher": ["a", "b", "a"], "reward": [0.1, 0.7, None]}
        >>> keep_best(Dataset.from_dict(rows))["teacher"][:]
        ['b', 'a']
    """
    columns.require_columns(scored.column_names, [columns.PROMPT_ID, by], "keep_best")
    best: dict[str, tuple[int, float]] = {}
    for row, (identity, value) in enumerate(zip(scored[columns.PROMPT_ID][:], scored[by][:], strict=True)):
        worth = -math.inf if value is None or math.isnan(value) else float(value)
        if identity not in best or worth > best[identity][1]:
            best[identity] = (row, worth)
    return scored.select([row for row, _ in best.values()])
