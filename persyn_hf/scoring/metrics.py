"""What one forward pass over an answer says: the metrics, their columns and which way is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persyn_hf.columns import LEARNABILITY, PERPLEXITY, RSR, STUDENT_COMPLETION_TOKENS
from persyn_hf.errors import ConfigError

#: Every metric and its column. `mean-logprob` is always there.
COLUMN_OF = {
    "mean-logprob": LEARNABILITY,
    "rsr": RSR,
    "perplexity": PERPLEXITY,
    "completion_tokens": STUDENT_COMPLETION_TOKENS,
}

#: Those that can feed the reward, and whether a higher value is more learnable.
HIGHER_IS_BETTER = {"mean-logprob": True, "rsr": False, "perplexity": False}

#: Ranks above this count as this in the rank-surprisal ratio (arXiv 2601.14249).
RANK_LIMIT = 100


@dataclass(frozen=True)
class AnswerScore:
    """What the student thinks of one answer.

    Args:
        logprob (`float`): Sum of the natural log-probabilities of the completion's tokens, ≤ 0.
        tokens (`int`): Scored tokens.
        rank (`int`, *optional*): Sum of the tokens' ranks, each at most `RANK_LIMIT`.
        truncated (`bool`, defaults to `False`): Whether only the start of the answer was scored.
    """

    logprob: float
    tokens: int
    rank: int | None = None
    truncated: bool = False

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
        """One metric by its name."""
        named: dict[str, Any] = {
            "mean-logprob": self.learnability,
            "rsr": self.rsr,
            "perplexity": self.perplexity,
            "completion_tokens": self.tokens,
        }
        found: float | int | None = named[metric]
        return found


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
