"""`persyn_quality`: how good each answer is, by a verifier or a reward model, as a `datasets.map` function."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from persyn_hf.columns import ANSWER, COMPLETION, ERROR, PROMPT, PROMPT_ID, QUALITY, TEACHER, require_columns
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.scoring.verifiers import Verifier, find_verifier


def persyn_quality(
    batch_or_row: Mapping[str, Any],
    rank: int | None = None,
    *,
    verifier: str | Verifier | None = None,
    reward_model: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    token_budget: int = 8192,
    prompt_column: str = PROMPT,
    answer_column: str = ANSWER,
    version: str | None = None,
) -> dict[str, Any]:
    """Adds `quality`, on one row or on a batch. Exactly one of `verifier` and `reward_model` is given.

    Args:
        batch_or_row (`Mapping`): With the prompt column, `completion`, and where the verifier needs it the reference.
        rank (`int`, *optional*): From `with_rank=True`: the worker's number picks the GPU.
        verifier (`str` or `Callable`, *optional*): `"math"`, `"exact"`, `"package.module:function"`, or a function,
            called with `(prompt, completion, answer)` and returning a finite number.
        reward_model (`str`, *optional*): A one-label sequence classifier, Hub id or folder.
        revision (`str`, *optional*): Of the reward model.
        dtype (`str`, defaults to `"auto"`), device (`str`, *optional*), token_budget (`int`, defaults to 8192): How
            the reward model runs.
        prompt_column, answer_column (`str`): Names of the columns.
        version (`str`, *optional*): Part of the cache key only.

    Returns:
        `dict`: `quality` (float), a list for a batch, a scalar for a row; null for a row with `error` or without
        completion.

    Raises:
        ConfigError: If not exactly one of the two is given, or the verifier is not found.
        MissingColumnError: If a column is absent.
        ScoringError: If a verifier or a reward model gives no finite number; the message names the row.

    Example:
        >>> persyn_quality({"prompt": "1+1?", "completion": "A: 2", "answer": "2"}, verifier="math")
        {'quality': 1.0}
    """
    if (verifier is None) == (reward_model is None):
        raise ConfigError("Give exactly one of `verifier` and `reward_model`.")
    require_columns(batch_or_row.keys(), (prompt_column, COMPLETION), "persyn_quality")
    single = not isinstance(batch_or_row[COMPLETION], list)
    batch = {key: [batch_or_row[key]] if single else batch_or_row[key] for key in batch_or_row}
    errors = batch.get(ERROR) or [None] * len(batch[COMPLETION])
    rows = [row for row, text in enumerate(batch[COMPLETION]) if text is not None and errors[row] is None]
    if verifier is not None:
        found = _verified(verifier, batch, rows, prompt_column, answer_column)
    else:
        assert reward_model is not None
        found = _rewarded(
            reward_model, revision, dtype, _device(device, rank), token_budget, batch, rows, prompt_column
        )
    values: list[float | None] = [None] * len(errors)
    for row, value in zip(rows, found, strict=True):
        values[row] = value
    return {QUALITY: values[0] if single else values}


def _verified(
    verifier: str | Verifier,
    batch: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    prompt_column: str,
    answer_column: str,
) -> list[float]:
    function = find_verifier(verifier) if isinstance(verifier, str) else verifier
    answers = batch.get(answer_column)
    found = []
    for row in rows:
        answer = None if answers is None else answers[row]
        try:
            value = function(batch[prompt_column][row], batch[COMPLETION][row], answer)
        except ScoringError as error:
            raise ScoringError(f"{_name(batch, row)}: {error}") from error
        if not hasattr(value, "__float__") or not math.isfinite(float(value)):
            raise ScoringError(f"{_name(batch, row)}: the verifier must return a finite number, got {value!r}.")
        found.append(float(value))
    return found


def _rewarded(
    name: str,
    revision: str | None,
    dtype: str,
    device: str | None,
    token_budget: int,
    batch: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    prompt_column: str,
) -> list[float]:
    from persyn_hf.scoring.reward_model import load_reward_model, reward_scores

    model = load_reward_model(name, revision, dtype, device)
    prompts = [batch[prompt_column][row] for row in rows]
    completions = [batch[COMPLETION][row] for row in rows]
    return reward_scores(model, prompts, completions, [_name(batch, row) for row in rows], token_budget)


def _device(device: str | None, rank: int | None) -> str | None:
    if device is not None or rank is None:
        return device
    import torch

    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None


def _name(batch: Mapping[str, Sequence[Any]], row: int) -> str:
    parts = [
        f"{label} {batch[key][row]}" for key, label in ((PROMPT_ID, "prompt"), (TEACHER, "teacher")) if key in batch
    ]
    return ", ".join(parts) or f"row {row} of the batch"
