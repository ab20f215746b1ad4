"""Regression of all teachers' rewards at once, its shrinkage estimated from the rewards themselves.

Each teacher's reward is its mean, plus what the prompt's features add, plus noise. Teachers do not vary alone: those
of a kind gain and lose on the same prompts. So the weights of one feature are taken to be drawn from a normal
distribution whose covariance over teachers is estimated (empirical Bayes by expectation maximisation), and so is the
noise of one prompt. What the data do not bear out is shrunk away, and no strength is left to be chosen.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Steps of expectation maximisation. Held-out rewards no longer change after about 30.
_STEPS = 60
#: Share of the rewards' covariance that the prompt is taken to explain before anything is known.
_FIRST_SHARE = 0.1


def shrunken_weights(features: Array, deviations: Array, strengths: tuple[float, ...]) -> list[Array]:
    """Posterior means of the weights of a multi-output linear model.

    Args:
        features (`ndarray` of shape `(prompts, features)`): Centred.
        deviations (`ndarray` of shape `(prompts, teachers)`): Rewards minus the teachers' means; NaN where missing. A
            missing one is filled in at every step with what the prompt and the other teachers say.
        strengths (`tuple[float, ...]`): Factors of the estimated prior precision: 1 is what the data say, more shrinks
            more.

    Returns:
        `list[ndarray]`: Of shape `(features, teachers)`, in the order of `strengths`.
    """
    count, teachers = deviations.shape
    missing = np.isnan(deviations)
    filled = np.where(missing, 0.0, deviations)
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    kept = sizes > 1e-6 * sizes.max(initial=0.0)
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    if not sizes.size:
        return [np.zeros((features.shape[1], teachers)) for _ in strengths]
    jitter = 1e-8 * np.eye(teachers)
    spread = filled.T @ filled / count
    noise = (1 - _FIRST_SHARE) * spread + jitter
    signal = _FIRST_SHARE * count / float((sizes**2).sum()) * spread + jitter
    for _ in range(_STEPS):
        mean, variance = _posterior(left.T @ filled, sizes**2, signal, noise)
        fitted = left @ mean
        signal = ((_outer(mean) + variance) / (sizes**2)[:, None, None]).mean(axis=0)
        if missing.any():
            filled = _fill(deviations, missing, fitted, noise)
        residual = filled - fitted
        noise = (residual.T @ residual + variance.sum(axis=0)) / count + jitter
    weights = []
    for strength in strengths:
        mean, _ = _posterior(left.T @ filled, sizes**2, signal / strength, noise)
        weights.append(right.T @ (mean / sizes[:, None]))
    return weights


def _posterior(projected: Array, squares: Array, signal: Array, noise: Array) -> tuple[Array, Array]:
    """Means `(components, teachers)` and covariances of what the prompt adds, along each principal component."""
    prior = squares[:, None, None] * signal
    gain = np.linalg.solve(prior + noise, prior)  # the transpose of `prior @ inverse(prior + noise)`
    mean: Array = np.einsum("kij,ki->kj", gain, projected)
    variance: Array = prior - np.einsum("kij,kjl->kil", prior, gain)
    return mean, variance


def _outer(values: Array) -> Array:
    product: Array = values[:, :, None] * values[:, None, :]
    return product


def _fill(deviations: Array, missing: NDArray[np.bool_], fitted: Array, noise: Array) -> Array:
    """Missing deviations as the prompt and the noise of the teachers that did answer suggest."""
    filled: Array = np.where(missing, fitted, deviations)
    for pattern in np.unique(missing[missing.any(axis=1)], axis=0):
        if pattern.all():
            continue
        rows = (missing == pattern).all(axis=1)
        known = filled[np.ix_(rows, ~pattern)] - fitted[np.ix_(rows, ~pattern)]
        shared = np.linalg.solve(noise[np.ix_(~pattern, ~pattern)], noise[np.ix_(~pattern, pattern)])
        filled[np.ix_(rows, pattern)] += known @ shared
    return filled
