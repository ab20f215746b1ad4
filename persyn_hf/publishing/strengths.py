"""What each teacher is good at: its mean scores on the probe, raw and normalised within the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.scoring.reward import normalize

if TYPE_CHECKING:
    from datasets import Dataset

#: Learnability metrics of which less is better.
_LESS_IS_BETTER = frozenset(("rsr", "perplexity"))


@dataclass(frozen=True)
class Strength:
    """One teacher's means over the probe answers that have both scores.

    Args:
        answers (`int`): How many those are.
        quality (`float`), learnability (`float`): Raw means; learnability in the unit of its metric.
        normalized_quality, normalized_learnability (`float`): Means after the normalisation within the prompt, for
            both more is better. The reward is linear in these two.
        reward (`float`, *optional*): Mean reward.
    """

    answers: int
    quality: float
    learnability: float
    normalized_quality: float
    normalized_learnability: float
    reward: float | None


def teacher_strengths(scored: Dataset, normalization: str = "minmax") -> dict[str, Strength]:
    """The strength of every teacher of a scored probe.

    Args:
        scored (`Dataset`): With `prompt_id`, `teacher`, `quality`, `learnability`, and `reward` where it is known.
        normalization (`str`, defaults to `"minmax"`): As the reward used it.

    Raises:
        MissingColumnError: If a column is absent.
    """
    needed = (columns.PROMPT_ID, columns.TEACHER, columns.QUALITY, columns.LEARNABILITY)
    columns.require_columns(scored.column_names, needed, "the picture of the teachers")
    metrics = set(scored[columns.LEARNABILITY_METRIC]) if columns.LEARNABILITY_METRIC in scored.column_names else set()
    sign = -1.0 if metrics & _LESS_IS_BETTER else 1.0
    rewards = scored[columns.REWARD] if columns.REWARD in scored.column_names else [None] * len(scored)
    prompts: dict[str, list[tuple[str, float, float, float | None]]] = {}
    for prompt, teacher, quality, learnability, reward in zip(
        *(scored[name] for name in needed), rewards, strict=True
    ):
        if quality is not None and learnability is not None:
            prompts.setdefault(prompt, []).append((teacher, quality, learnability, reward))
    values: dict[str, list[tuple[float, ...]]] = {}
    for answers in prompts.values():
        qualities = normalize([answer[1] for answer in answers], normalization)
        learnabilities = normalize([sign * answer[2] for answer in answers], normalization)
        for (teacher, quality, learnability, reward), n_q, n_l in zip(answers, qualities, learnabilities, strict=True):
            row = (quality, learnability, float(n_q), float(n_l), np.nan if reward is None else reward)
            values.setdefault(teacher, []).append(row)
    return {teacher: _strength(np.array(rows)) for teacher, rows in sorted(values.items())}


def _strength(rows: NDArray[np.float64]) -> Strength:
    quality, learnability, normalized_quality, normalized_learnability = (float(v) for v in rows[:, :4].mean(axis=0))
    known = rows[~np.isnan(rows[:, 4]), 4]
    return Strength(
        answers=len(rows),
        quality=quality,
        learnability=learnability,
        normalized_quality=normalized_quality,
        normalized_learnability=normalized_learnability,
        reward=float(known.mean()) if known.size else None,
    )
