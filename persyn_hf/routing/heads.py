"""Heads on frozen features: `scores = means + features @ weight`, with the weight shrunk towards zero.

At infinite strength the scores are the teachers' mean rewards, so every prompt goes to the best single teacher.
Cross-validation chooses the strength. Two objectives shrink differently: `regression` estimates the strength from the
rewards, and `expected-reward`, whose loss has many local minima, starts at the regression and shrinks towards it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

from persyn_hf.config import Objective
from persyn_hf.models.workers import one_thread

#: Candidate strengths, strongest first. Features have a mean square length of 1, so these suit every backbone.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "regression": (1.0,),  # estimated from the rewards: see `shrunken_weights`
    "bradley-terry": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "bradley-terry-margin": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "expected-reward": (0.1, 0.03, 0.01, 0.003, 0.001),
}

#: Exponent of the principal components' singular values; above 1, the weaker ones are shrunk (see `FeatureMap`).
#: Objectives that estimate their shrinkage from the data do not need this.
POWER: dict[str, float] = {
    "regression": 1.0,
    "bradley-terry": 2.0,
    "bradley-terry-margin": 2.0,
    "expected-reward": 1.0,
}


@dataclass(frozen=True)
class Head:
    """A linear head.

    Args:
        means (`ndarray` of shape `(teachers,)`): Intercept: the scores that all prompts share.
        weight (`ndarray` of shape `(features, teachers)`): Weights of a prompt's features.
    """

    means: Array
    weight: Array

    def __call__(self, features: Array) -> Array:
        """Returns scores of shape `(prompts, teachers)` for features of shape `(prompts, features)`."""
        scores: Array = self.means + features @ self.weight
        return scores

    def scaled(self, factor: float) -> Head:
        """Returns a head whose scores are `factor` times as large; the ranking is the same."""
        return Head(self.means * factor, self.weight * factor)


def count_missing(values: Array) -> Array:
    """Replaces every missing value by the lowest known value.

    All policies are compared this way: on the same prompts, with the lowest reward for a missing answer. So no policy
    earns more than the oracle, the best reward of each prompt.

    Args:
        values (`ndarray` of shape `(prompts, teachers)`): Values; NaN where missing.

    Returns:
        `ndarray` of the same shape: Prompts without any value stay NaN.
    """
    known = ~np.isnan(values)
    if not known.any():
        return values
    counted: Array = np.where(known, values, values[known].min())
    counted[~known.any(axis=1)] = np.nan
    return counted


def teacher_means(values: Array) -> Array:
    """Returns the mean value per teacher over prompts with any value; a missing value counts as the lowest."""
    counted = count_missing(values)
    counted = counted[~np.isnan(counted).any(axis=1)]
    means: Array = counted.mean(axis=0) if len(counted) else np.zeros(values.shape[1])
    return means


def known_means(rewards: Array) -> Array:
    """Returns the mean reward per teacher over the prompts it answered; the lowest mean if it answered none."""
    known = ~np.isnan(rewards)
    counts = known.sum(axis=0)
    means = np.where(known, rewards, 0.0).sum(axis=0) / np.maximum(counts, 1)
    lowest = means[counts > 0].min() if counts.any() else 0.0
    return np.where(counts > 0, means, lowest)


def fit_path(objective: str, features: Array, rewards: Array, strengths: tuple[float, ...]) -> list[Head]:
    """Fits one head per strength, from the strongest to the weakest, each initialised with the one before.

    In the means, missing rewards count as the lowest. The weights are learnt from the known rewards alone, because an
    outage says nothing about prompts.

    Args:
        objective (`str`): One of `OBJECTIVES`.
        features (`ndarray` of shape `(prompts, features)`): Centred features of mean square length about 1.
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        strengths (`tuple[float, ...]`): Factors of the squared weight (for regression: of the estimated precision),
            descending. An infinite strength gives the means; for expected-reward, the regression.

    Returns:
        `list[Head]`: Heads in the order of `strengths`.
    """
    means = teacher_means(rewards)
    scale = pair_scale(np.broadcast_to(means, rewards.shape), rewards)
    start = np.zeros((features.shape[1], rewards.shape[1]))
    deviations = rewards - known_means(rewards)
    if objective == "regression":
        return [Head(means, weight) for weight in shrunken_weights(features, deviations, strengths)]
    if objective == "expected-reward":
        start = scale * shrunken_weights(features, deviations, (1.0,))[0]
    return _descent_path(objective, features, rewards, Head(means * scale, start), strengths)


def _descent_path(
    objective: str, features: Array, rewards: Array, start: Head, strengths: tuple[float, ...]
) -> list[Head]:
    import torch

    x, target = torch.from_numpy(features), torch.from_numpy(rewards)
    means, origin = torch.from_numpy(start.means), torch.from_numpy(start.weight)
    weight = origin.clone().requires_grad_()
    heads = []
    with one_thread():
        for strength in strengths:
            optimizer = torch.optim.LBFGS([weight], max_iter=40, history_size=10, line_search_fn="strong_wolfe")

            def closure(strength: float = strength, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
                optimizer.zero_grad()
                loss = objective_loss(objective, means + x @ weight, target)
                loss = loss + strength * (weight - origin).square().sum()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            optimizer.step(closure)  # type: ignore[no-untyped-call]
            heads.append(Head(start.means, weight.detach().numpy().copy()))
    return heads


def pair_scale(scores: Array, rewards: Array) -> float:
    """Returns the factor that turns scores into Bradley–Terry scores; it maximises the likelihood of the preferences.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): Scores of prompts that they were not fitted to.
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing.

    Returns:
        `float`: Positive factor, so the ranking does not change. Scaled scores of a pair differ by at most about 20:
            the probability is then 1 in practice, and teachers added later still have room.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit

    difference = scores[:, :, None] - scores[:, None, :]
    with np.errstate(invalid="ignore"):
        wins = (rewards[:, :, None] - rewards[:, None, :]) > 0
    gaps = difference[wins]
    spread = float(np.abs(gaps).max(initial=0.0))
    if spread == 0.0:
        return 1.0
    best = minimize_scalar(
        lambda log: -float(log_expit(np.exp(log) * gaps / spread).mean()), bounds=(-6.0, 3.0), method="bounded"
    )
    return float(np.exp(best.x)) / spread


Array = NDArray[np.float64]

#: Steps of expectation maximisation. Held-out rewards no longer change after about 30.
_STEPS = 60
#: Initial share of the rewards' covariance that is attributed to the prompt.
_FIRST_SHARE = 0.1


def shrunken_weights(features: Array, deviations: Array, strengths: tuple[float, ...]) -> list[Array]:
    """Computes posterior means of the weights of a multi-output linear model (empirical Bayes).

    Args:
        features (`ndarray` of shape `(prompts, features)`): Centred features.
        deviations (`ndarray` of shape `(prompts, teachers)`): Rewards minus the teachers' means; NaN where missing.
            Missing ones are imputed at every step from the prompt and the other teachers.
        strengths (`tuple[float, ...]`): Factors of the estimated prior precision: 1 is the estimate, larger shrinks
            more.

    Returns:
        `list[ndarray]`: Weights of shape `(features, teachers)`, in the order of `strengths`.
    """
    count, teachers = deviations.shape
    missing = np.isnan(deviations)
    patterns = _patterns(missing)
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
        mean, spread_of_means, variance = _posterior(left.T @ filled, sizes**2, signal, noise)
        fitted = left @ mean
        signal = spread_of_means
        if missing.any():
            filled = _fill(deviations, patterns, fitted, noise)
        residual = filled - fitted
        noise = (residual.T @ residual + variance) / count + jitter
    weights = []
    for strength in strengths:
        mean, _, _ = _posterior(left.T @ filled, sizes**2, signal / strength, noise)
        weights.append(right.T @ (mean / sizes[:, None]))
    return weights


def _posterior(projected: Array, squares: Array, signal: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Computes the posterior of the prompt's effect along each principal component.

    One change of the teachers' basis diagonalises signal and noise, so no component needs its own matrix:
    `O(teachers³ + components · teachers²)`.

    Args:
        projected (`ndarray` of shape `(components, teachers)`): Projected deviations.
        squares (`ndarray` of shape `(components,)`): Squared singular values.
        signal, noise (`ndarray` of shape `(teachers, teachers)`): Covariances.

    Returns:
        `(ndarray, ndarray, ndarray)`: Posterior means, shape `(components, teachers)`; estimated signal covariance and
        sum of the posterior covariances, both of shape `(teachers, teachers)`.
    """
    lower = np.linalg.cholesky(noise)
    half = np.linalg.solve(lower, np.linalg.solve(lower, signal).T)
    share, turn = np.linalg.eigh((half + half.T) / 2)
    back = turn.T @ lower.T  # from the diagonal basis to the teachers
    ratio = squares[:, None] * np.maximum(share, 0.0)
    variances = ratio / (ratio + 1.0)
    means = variances * (np.linalg.solve(lower, projected.T).T @ turn)
    scaled = means / np.sqrt(squares)[:, None]
    spoken = scaled.T @ scaled + np.diag((variances / squares[:, None]).sum(axis=0))
    return means @ back, back.T @ spoken @ back / len(squares), (back.T * variances.sum(axis=0)) @ back


def _patterns(missing: NDArray[np.bool_]) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Returns every set of missing teachers (not that of all), with a mask of the prompts that lack exactly it."""
    patterns = np.unique(missing[missing.any(axis=1)], axis=0)
    return [(one, (missing == one).all(axis=1)) for one in patterns if not one.all()]


def _fill(
    deviations: Array, patterns: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]], fitted: Array, noise: Array
) -> Array:
    """Imputes missing deviations from the prompt and from the noise of the teachers that answered."""
    filled: Array = np.where(np.isnan(deviations), fitted, deviations)
    precision = np.linalg.inv(noise)
    for pattern, rows in patterns:
        known = filled[np.ix_(rows, ~pattern)] - fitted[np.ix_(rows, ~pattern)]
        if 2 * pattern.sum() <= len(pattern):  # the smaller of two systems with one solution
            inside, across = precision[np.ix_(pattern, pattern)], precision[np.ix_(pattern, ~pattern)]
            filled[np.ix_(rows, pattern)] -= np.linalg.solve(inside, across @ known.T).T
        else:
            shared = np.linalg.solve(noise[np.ix_(~pattern, ~pattern)], noise[np.ix_(~pattern, pattern)])
            filled[np.ix_(rows, pattern)] += known @ shared
    return filled


OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


def bradley_terry_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None, margin: bool = False) -> Tensor:
    """Computes the mean of `−log σ(s_win − s_lose)` over each prompt's pairs of teachers (arXiv 2510.10925, eq. 3).

    Teachers of equal reward, and teachers without a reward, form no pair.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never count.
        margin (`bool`, defaults to `False`): Whether to weight each pair by its difference in reward, so that
            near-ties count little.

    Returns:
        `Tensor`: Scalar; 0 without any pair.
    """
    import torch
    from torch.nn.functional import softplus

    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    difference = filled[:, :, None] - filled[:, None, :]
    pair = (difference > 0) & known[:, :, None] & known[:, None, :]
    weight = torch.where(pair, difference if margin else torch.ones_like(difference), 0.0).to(scores.dtype)
    losses = softplus(-(scores[:, :, None] - scores[:, None, :]))
    return (losses * weight).sum() / weight.sum().clamp_min(torch.finfo(scores.dtype).tiny)


def expected_reward_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Computes the mean over prompts of `−Σ_i softmax(s / τ)_i · r_i`: the negated reward of a sampled teacher.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never count.
        tau (`float`, defaults to 1.0): Temperature, > 0. Smaller is closer to the reward of `argmax`, larger is
            smoother.

    Returns:
        `Tensor`: Scalar.
    """
    import torch

    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    some = known.any(dim=1)
    logits = (scores / tau).masked_fill(~known, float("-inf"))[some]
    return -(logits.softmax(dim=1) * filled[some]).sum(dim=1).mean()


def regression_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """Computes the mean squared error of scores as estimates of the rewards; missing rewards are left out."""
    import torch

    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    error = torch.where(known, scores - rewards.nan_to_num(), torch.zeros_like(scores))
    return error.square().sum() / known.sum().clamp_min(1)


def objective_loss(objective: str, scores: Tensor, rewards: Tensor, tau: float = 1.0) -> Tensor:
    """Computes the loss of a named objective.

    Raises:
        ValueError: If the name is not in `OBJECTIVES`.
    """
    if objective == "bradley-terry":
        return bradley_terry_loss(scores, rewards)
    if objective == "bradley-terry-margin":
        return bradley_terry_loss(scores, rewards, margin=True)
    if objective == "expected-reward":
        return expected_reward_loss(scores, rewards, tau=tau)
    if objective == "regression":
        return regression_loss(scores, rewards)
    raise ValueError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
