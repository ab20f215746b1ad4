"""Heads on frozen features: `scores = means + features @ weight`, with the weight pulled towards zero.

At infinite strength a head is the teachers' mean rewards, that is: the best single teacher for every prompt. What the
prompt adds is bought by cross-validation. Two objectives shrink in a way of their own: `regression` estimates its
strength from the rewards, and `expected-reward`, whose loss has many local minima, starts from the regression and is
pulled towards it.
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

#: Strengths tried, strongest first; features have a mean square length of 1, so they mean the same for every backbone.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "regression": (1.0,),  # estimated from the rewards: see `bayes`
    "bradley-terry": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "bradley-terry-margin": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "expected-reward": (0.1, 0.03, 0.01, 0.003, 0.001),
}

#: Exponent of the principal components' sizes; above 1, the weaker ones are shrunk (see `FeatureMap`). Objectives that
#: estimate their shrinkage need no such help.
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
        means (`ndarray` of shape `(teachers,)`): The scores that every prompt starts from.
        weight (`ndarray` of shape `(features, teachers)`): The scores that a prompt's features add.
    """

    means: Array
    weight: Array

    def __call__(self, features: Array) -> Array:
        """Scores of shape `(prompts, teachers)` from features of shape `(prompts, features)`."""
        scores: Array = self.means + features @ self.weight
        return scores

    def scaled(self, factor: float) -> Head:
        """The same ranking with scores `factor` times as large."""
        return Head(self.means * factor, self.weight * factor)


def count_missing(values: Array) -> Array:
    """The same values, with every missing one counted as the lowest that is known.

    All policies are compared so: on the same prompts, and a teacher that gave no answer earns the least there is. No
    policy then earns more than the oracle, the best reward of each prompt.

    Args:
        values (`ndarray` of shape `(prompts, teachers)`): NaN where missing.

    Returns:
        `ndarray` of the same shape: A prompt of which nothing is known stays NaN.
    """
    known = ~np.isnan(values)
    if not known.any():
        return values
    counted: Array = np.where(known, values, values[known].min())
    counted[~known.any(axis=1)] = np.nan
    return counted


def teacher_means(values: Array) -> Array:
    """Mean value per teacher over the prompts of which something is known; a missing one counts as the lowest."""
    counted = count_missing(values)
    counted = counted[~np.isnan(counted).any(axis=1)]
    means: Array = counted.mean(axis=0) if len(counted) else np.zeros(values.shape[1])
    return means


def known_means(rewards: Array) -> Array:
    """Mean reward per teacher over the prompts that it answered; the lowest mean where it answered none."""
    known = ~np.isnan(rewards)
    counts = known.sum(axis=0)
    means = np.where(known, rewards, 0.0).sum(axis=0) / np.maximum(counts, 1)
    lowest = means[counts > 0].min() if counts.any() else 0.0
    return np.where(counts > 0, means, lowest)


def fit_path(objective: str, features: Array, rewards: Array, strengths: tuple[float, ...]) -> list[Head]:
    """Fits one head per strength, from the strongest to the weakest, each going on from the one before.

    A head starts from means in which missing rewards count as the lowest; what a prompt adds is learnt from the known
    rewards alone, since an outage says nothing about prompts.

    Args:
        objective (`str`): One of `OBJECTIVES`.
        features (`ndarray` of shape `(prompts, features)`): Centred, mean square length about 1.
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.
        strengths (`tuple[float, ...]`): Factors of the squared weight, descending; for regression, of the estimated
            precision. Infinite: the means; for expected-reward, the regression.

    Returns:
        `list[Head]`: In the order of `strengths`.
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
    """The factor that makes scores Bradley–Terry scores: it maximises the likelihood of the observed preferences.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): On prompts that the scores were not fitted to.
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.

    Returns:
        `float`: Positive, so the ranking stays as it is. No pair comes to differ by more than 20: at that distance
            the probability is 1 for every purpose, and teachers that are added later must still have room.
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
    """The posterior of what the prompt adds along each principal component.

    One change of the teachers' basis makes signal and noise diagonal at once, so that a component costs no matrix of
    its own: `O(teachers³ + components · teachers²)`.

    Args:
        projected (`ndarray` of shape `(components, teachers)`): The projected deviations.
        squares (`ndarray` of shape `(components,)`): Squared singular values.
        signal, noise (`ndarray` of shape `(teachers, teachers)`): Covariances.

    Returns:
        `(ndarray, ndarray, ndarray)`: The posterior means, shape `(components, teachers)`; the signal that they speak
        for and the sum of their covariances, both of shape `(teachers, teachers)`.
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
    """Every set of missing teachers, with the prompts that lack exactly these; not that of all teachers."""
    patterns = np.unique(missing[missing.any(axis=1)], axis=0)
    return [(one, (missing == one).all(axis=1)) for one in patterns if not one.all()]


def _fill(
    deviations: Array, patterns: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]], fitted: Array, noise: Array
) -> Array:
    """Missing deviations as the prompt and the noise of the teachers that did answer suggest."""
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
    """Mean of `−log σ(s_win − s_lose)` over the pairs of teachers of one prompt (PerSyn, arXiv 2510.10925, eq. 3).

    Two teachers of equal reward make no pair, and neither does a teacher without a reward.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never do.
        margin (`bool`, defaults to `False`): Weight each pair by its difference in reward, so that a near-tie counts
            for little.

    Returns:
        `Tensor`: A scalar, 0 where there is no pair.
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
    """Mean over prompts of `−Σ_i softmax(s / τ)_i · r_i`: the reward of a teacher drawn from the softmax, negated.

    Args:
        scores (`Tensor` of shape `(prompts, teachers)`): The router's logits.
        rewards (`Tensor` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        mask (`Tensor` of bool, *optional*): True where the reward counts; NaN rewards never do.
        tau (`float`, defaults to 1.0): Temperature, > 0. Small: closer to what `argmax` earns; large: smoother.

    Returns:
        `Tensor`: A scalar.
    """
    import torch

    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    filled = torch.where(known, rewards, torch.zeros_like(rewards))
    some = known.any(dim=1)
    logits = (scores / tau).masked_fill(~known, float("-inf"))[some]
    return -(logits.softmax(dim=1) * filled[some]).sum(dim=1).mean()


def regression_loss(scores: Tensor, rewards: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of the scores as estimates of the rewards; missing rewards are left out."""
    import torch

    known = ~rewards.isnan() if mask is None else mask & ~rewards.isnan()
    error = torch.where(known, scores - rewards.nan_to_num(), torch.zeros_like(scores))
    return error.square().sum() / known.sum().clamp_min(1)


def objective_loss(objective: str, scores: Tensor, rewards: Tensor, tau: float = 1.0) -> Tensor:
    """The loss of a named objective.

    Raises:
        ValueError: If the name is none of `OBJECTIVES`.
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
