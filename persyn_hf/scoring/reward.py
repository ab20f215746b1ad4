"""The reward that a router is trained on: quality and learnability, normalised within the prompt and mixed.

`r = (1 - alpha) * n(quality) + alpha * n(learnability)` (PerSyn, arXiv 2510.10925).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray

from persyn_hf.columns import (
    LEARNABILITY,
    PERPLEXITY,
    PROMPT_ID,
    QUALITY,
    REWARD,
    RSR,
    STUDENT_COMPLETION_TOKENS,
    TEACHER,
    require_columns,
)
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.packages import require
from persyn_hf.tables import set_column

Floats = NDArray[np.float64]

_METHODS = ("minmax", "zscore", "rank")


def normalize(values: ArrayLike, method: str = "minmax") -> Floats:
    """Normalises the scores of one prompt's teachers.

    Args:
        values (`ArrayLike`): Finite scores, `(teachers,)`.
        method (`"minmax"`, `"zscore"` or `"rank"`): `minmax` scales to [0, 1] by the lowest and highest score;
            `zscore` to mean 0 and standard deviation 1 (population); `rank` to [0, 1] by rank, ties averaged. Equal
            scores, or a single one, give 0.5, 0.0 and 0.5.

    Returns:
        `np.ndarray`: float64, `(teachers,)`.

    Raises:
        ConfigError: If the method is unknown.
        ScoringError: If a value is NaN or infinite.

    Example:
        >>> normalize([1.0, 3.0, 2.0]).tolist()
        [0.0, 1.0, 0.5]
    """
    _require_method(method)
    scores: Floats = np.asarray(values, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ScoringError(f"Scores must be finite to be normalised, got {scores.tolist()}.")
    return _normalize_groups(scores, np.array([0]), method) if scores.size else scores


def reward(quality: ArrayLike, learnability: ArrayLike, alpha: float = 0.4, normalization: str = "minmax") -> Floats:
    """The reward of one prompt's teachers: `(1 - alpha) * n(quality) + alpha * n(learnability)`.

    Args:
        quality, learnability (`ArrayLike`): `(teachers,)`; for both, higher is better.
        alpha (`float`, defaults to 0.4): Weight of learnability. 0 and 1 are exact.
        normalization (`str`, defaults to `"minmax"`): See `normalize`.

    Returns:
        `np.ndarray`: float64, `(teachers,)`.

    Raises:
        ConfigError: If `alpha` is not between 0 and 1 or the normalisation is unknown.
        ScoringError: If a score is NaN or infinite.
    """
    _require_alpha(alpha)
    return _mix(normalize(quality, normalization), normalize(learnability, normalization), alpha)


def add_rewards(
    dataset: Dataset,
    alpha: float = 0.4,
    normalization: str = "minmax",
    learnability_column: str = LEARNABILITY,
    higher_is_better: bool = True,
    reward_column: str = REWARD,
) -> Dataset:
    """Adds the column `reward` to scored answers.

    Scores are normalised over all answers to a prompt: those of all teachers, with all their turns, samples and
    attempts. So rewards of samples can be compared with each other and with those of other teachers, and the mean
    reward of a teacher's samples equals the reward of their mean score (`minmax` and `zscore` are linear; `rank` is
    not).

    Args:
        dataset (`Dataset`): The columns `prompt_id`, `teacher`, `quality` and the learnability column. Rows of a
            prompt may be in any order.
        alpha (`float`, defaults to 0.4), normalization (`str`, defaults to `"minmax"`): See `reward`.
        learnability_column (`str`, defaults to `"learnability"`): Column of learnability; `"rsr"` for the
            rank-surprisal ratio.
        higher_is_better (`bool`, defaults to `True`): Set to `False` if a lower value is more learnable, as for `rsr`.
        reward_column (`str`, defaults to `"reward"`): Column of the reward; use another name for a second student.

    Returns:
        `Dataset`: The rows with `reward` (float64). A row with a missing score gets null and is left out of the
        normalisation.

    Raises:
        ConfigError: If `alpha` or the normalisation is wrong.
        MissingColumnError: If a column is absent.
        ScoringError: If a score is NaN or infinite; the message names the prompt and the teacher.
    """
    _require_alpha(alpha)
    _require_method(normalization)
    require_columns(dataset.column_names, (PROMPT_ID, TEACHER, QUALITY, learnability_column), "reward")
    quality = _column(dataset, QUALITY)
    learnability = _column(dataset, learnability_column) * (1.0 if higher_is_better else -1.0)
    good, learnable = _normalize_columns(dataset[PROMPT_ID][:], [quality, learnability], normalization)
    return set_column(dataset, reward_column, _or_null(_mix(good, learnable, alpha)), "float64")


def add_weighted_quality(
    dataset: Dataset, columns: Sequence[str], weights: Sequence[float], normalization: str
) -> Dataset:
    """Adds `quality`: the weighted mean of several columns, each normalised within the prompt first.

    Args:
        dataset (`Dataset`): The columns `prompt_id`, `teacher` and `columns`.
        columns (`Sequence[str]`): Names of the columns; for all of them, higher is better.
        weights (`Sequence[float]`): One weight per column, above 0.
        normalization (`str`): See `normalize`.

    Returns:
        `Dataset`: The rows with `quality` (float64). A row with a missing value gets null and is left out of the
        normalisation.
    """
    _require_method(normalization)
    values = [_column(dataset, column) for column in columns]
    parts = _normalize_columns(dataset[PROMPT_ID][:], values, normalization)
    return set_column(dataset, QUALITY, _or_null(np.average(parts, axis=0, weights=weights)), "float64")


def _column(dataset: Dataset, name: str) -> Floats:
    """Reads a column as float64 with NaN for null; refuses NaN and infinite values."""
    raw = dataset[name][:]
    values: Floats = np.array([np.nan if value is None else value for value in raw], dtype=np.float64)
    present = np.array([value is not None for value in raw], dtype=bool)
    wrong = np.flatnonzero(present & ~np.isfinite(values))
    if wrong.size:
        row = int(wrong[0])
        raise ScoringError(
            f"`{name}` must be finite, got {values[row]} for prompt {dataset[row][PROMPT_ID]}, "
            f"teacher {dataset[row][TEACHER]} ({wrong.size} such rows). Fix the values, or set them to null."
        )
    return values


def _normalize_columns(prompts: Sequence[str], columns: Sequence[Floats], method: str) -> list[Floats]:
    """Normalises columns within the prompt; a row with a missing value is left out and gets NaN."""
    usable = np.flatnonzero(~np.isnan(columns).any(axis=0))
    _, groups = np.unique(np.asarray(prompts, dtype=object).astype(str), return_inverse=True)
    order = usable[np.argsort(groups[usable], kind="stable")]
    normalized = [np.full(len(prompts), np.nan) for _ in columns]
    if order.size:
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        for column, values in zip(normalized, columns, strict=True):
            column[order] = _normalize_groups(values[order], starts, method)
    return normalized


def _or_null(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _normalize_groups(values: Floats, starts: NDArray[np.intp], method: str) -> Floats:
    """Normalises consecutive groups that begin at `starts`."""
    counts = np.diff(starts, append=len(values))
    if method == "rank":
        require("normalise by rank", "scipy")
        from scipy.stats import rankdata

        ranks = np.concatenate([rankdata(part) for part in np.split(values, starts[1:])])
        sizes = np.repeat(counts, counts)
        return np.where(sizes > 1, (ranks - 1) / np.maximum(sizes - 1, 1), 0.5)
    low = np.repeat(np.minimum.reduceat(values, starts), counts)
    high = np.repeat(np.maximum.reduceat(values, starts), counts)
    constant = low == high
    # Halved first: the difference of two finite numbers can be infinite.
    span = np.where(constant, 1.0, high / 2 - low / 2)
    scaled = np.where(constant, 0.5, (values / 2 - low / 2) / span)
    if method == "minmax":
        return scaled
    mean = np.repeat(np.add.reduceat(scaled, starts) / counts, counts)
    variance = np.repeat(np.add.reduceat((scaled - mean) ** 2, starts) / counts, counts)
    return np.where(constant, 0.0, (scaled - mean) / np.sqrt(np.where(constant, 1.0, variance)))


def _mix(quality: Floats, learnability: Floats, alpha: float) -> Floats:
    if alpha in (0, 1):
        return learnability if alpha else quality
    return (1 - alpha) * quality + alpha * learnability


def _require_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ConfigError(f"`alpha` must be between 0 and 1, got {alpha}.")


def _require_method(method: str) -> None:
    if method not in _METHODS:
        raise ConfigError(f"`normalization` must be one of {', '.join(_METHODS)}, got {method!r}.")


#: Metric → column. `mean-logprob` is always computed.
COLUMN_OF = {
    "mean-logprob": LEARNABILITY,
    "rsr": RSR,
    "perplexity": PERPLEXITY,
    "completion_tokens": STUDENT_COMPLETION_TOKENS,
}

#: Metrics that the reward can use → whether a higher value is more learnable.
HIGHER_IS_BETTER = {"mean-logprob": True, "rsr": False, "perplexity": False}

#: Limit at which ranks are capped in the rank-surprisal ratio (arXiv 2601.14249).
RANK_LIMIT = 100


@dataclass(frozen=True)
class AnswerScore:
    """The student's score of one answer.

    Args:
        logprob (`float`): Sum of the natural log-probabilities of the completion's tokens, ≤ 0.
        tokens (`int`): Number of scored tokens.
        rank (`int`, *optional*): Sum of the tokens' ranks, each at most `RANK_LIMIT`.
        truncated (`bool`, defaults to `False`): True if only the start of the answer was scored.
        error (`str`, *optional*): Reason that there is no score; the numbers are then invalid.
    """

    logprob: float
    tokens: int
    rank: int | None = None
    truncated: bool = False
    error: str | None = None

    @property
    def learnability(self) -> float:
        """Mean log-probability, nats/token, ≤ 0: `r_l = (1/T) Σ_t log p(y_t | x, y_<t)` (arXiv 2510.10925, eq. 1)."""
        return self.logprob / self.tokens

    @property
    def perplexity(self) -> float:
        """`exp(−learnability)`, ≥ 1."""
        return math.exp(min(-self.learnability, 700.0))

    @property
    def rsr(self) -> float | None:
        """Rank-surprisal ratio `Σ min(rank, 100) / Σ surprisal`, lower is better (arXiv 2601.14249)."""
        return None if self.rank is None else self.rank / max(-self.logprob, 1e-12)

    def value(self, metric: str) -> float | int | None:
        """Looks a metric up by its name; `None` if there is no score."""
        if self.error is not None:
            return None
        named: dict[str, float | int | None] = {
            "mean-logprob": self.learnability,
            "rsr": self.rsr,
            "perplexity": self.perplexity,
            "completion_tokens": self.tokens,
        }
        return named[metric]


def require_metrics(metrics: Sequence[str]) -> None:
    """Checks the names of metrics.

    Raises:
        ConfigError: If there is none, one is unknown, or the first cannot feed a reward.
    """
    if isinstance(metrics, str) or not metrics or not set(metrics) <= set(COLUMN_OF):
        raise ConfigError(f"`metrics` must be some of {', '.join(COLUMN_OF)}, got {metrics!r}.")
    require_learnability_metric(metrics[0], "the first of `metrics`")


def require_learnability_metric(metric: str, name: str = "`learnability_metric`") -> None:
    """Checks that a metric can feed the reward.

    Raises:
        ConfigError: If it cannot.
    """
    if metric not in HIGHER_IS_BETTER:
        raise ConfigError(f"{name} must be one of {', '.join(HIGHER_IS_BETTER)}, got {metric!r}.")
