"""Bootstrap intervals of means and of the share of the gap to the oracle that is closed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persyn_hf.packages import require

Array = NDArray[np.float64]

#: Number of bootstrap draws of an interval.
DRAWS = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap 95% interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Returns plain values, rounded for a config file."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_means(values: Array, seed: int = 0, draws: int = DRAWS) -> Array:
    """Computes means of resampled prompts, with the same prompts for every column.

    Args:
        values (`ndarray` of shape `(prompts, policies)`): Values; NaN where unknown.
        seed (`int`, defaults to 0): Random seed.
        draws (`int`, defaults to 2000): Number of draws.

    Returns:
        `ndarray` of shape `(draws, policies)`.
    """
    require("find bootstrap intervals", "scipy")
    from scipy.stats import bootstrap

    if len(values) == 1:  # every draw is this prompt
        return np.repeat(np.nan_to_num(values), draws, axis=0)
    known = ~np.isnan(values)
    filled, count = np.where(known, values, 0.0), len(values)

    def means(rows: NDArray[np.int64], axis: int = -1) -> Array:
        times = np.stack([np.bincount(row, minlength=count) for row in np.atleast_2d(rows)]).astype(float)
        mean: Array = (times @ filled) / np.maximum(times @ known, 1e-12)
        return mean.T if rows.ndim > 1 else mean[0]

    found = bootstrap(
        (np.arange(count),),
        means,
        n_resamples=draws,
        batch=100,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    distribution: Array = found.bootstrap_distribution.T
    return distribution


def interval(mean: float, draws: Array) -> Interval:
    """Returns a mean with the 2.5% and 97.5% points of its bootstrap draws; non-finite draws are left out."""
    known = draws[np.isfinite(draws)]
    low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
    return Interval(float(mean), float(low), float(high))


#: Gaps below this, in reward per prompt, count as none.
_NO_GAP = 1e-12


def gap_closed(router: Array, best_single: Array, oracle: Array) -> Array:
    """Computes `(router − best single) / (oracle − best single)`; NaN where there is no gap to close."""
    gap = oracle - best_single
    with np.errstate(divide="ignore", invalid="ignore"):
        closed: Array = np.where(gap > _NO_GAP, (router - best_single) / gap, np.nan)
    return closed


def gap_interval(means: Array, draws: Array) -> Interval | None:
    """Computes a policy's share of the gap between the best single teacher and the oracle, with its interval.

    Args:
        means (`ndarray` of shape `(3,)`): Mean rewards of the policy, the best single teacher and the oracle.
        draws (`ndarray` of shape `(draws, 3)`): Bootstrap draws of the three.

    Returns:
        `Interval`: Interval of `(policy − best single) / (oracle − best single)`; `None` without a gap to close.
    """
    closed = float(gap_closed(*means))
    if np.isnan(closed):
        return None
    drawn = gap_closed(draws[:, 0], draws[:, 1], draws[:, 2])
    return interval(closed, drawn if np.isfinite(drawn).any() else np.array([closed]))
