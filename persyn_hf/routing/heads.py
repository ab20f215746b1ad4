"""Heads on frozen features: `scores = means + features @ weight`, with the weight pulled towards zero.

At infinite strength a head is the teachers' mean rewards, that is: the best single teacher for every prompt. What the
prompt adds is bought by cross-validation. Two objectives shrink in a way of their own: `regression` estimates its
strength from the rewards, and `expected-reward`, whose loss has many local minima, starts from the regression and is
pulled towards it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from persyn_hf.routing.bayes import Array as Array  # every file here takes it from `heads`
from persyn_hf.routing.bayes import shrunken_weights
from persyn_hf.routing.objectives import objective_loss

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
    "regression": 1.0, "bradley-terry": 2.0, "bradley-terry-margin": 2.0, "expected-reward": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Head:
    """A linear head.

    Args:
        means (`ndarray` of shape `(teachers,)`): What every prompt starts from.
        weight (`ndarray` of shape `(features, teachers)`): What a prompt's features add.
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


def teacher_means(rewards: Array) -> Array:
    """Mean reward per teacher over the prompts that it answered; the lowest mean where it answered none."""
    known = ~np.isnan(rewards)
    counts = known.sum(axis=0)
    means = np.where(known, rewards, 0.0).sum(axis=0) / np.maximum(counts, 1)
    lowest = means[counts > 0].min() if counts.any() else 0.0
    return np.where(counts > 0, means, lowest)


def fit_path(objective: str, features: Array, rewards: Array, strengths: tuple[float, ...]) -> list[Head]:
    """Fits one head per strength, from the strongest to the weakest, each going on from the one before.

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
    if objective == "regression":
        return [Head(means, weight) for weight in shrunken_weights(features, rewards - means, strengths)]
    if objective == "expected-reward":
        start = scale * shrunken_weights(features, rewards - means, (1.0,))[0]
    return _descent_path(objective, features, rewards, Head(means * scale, start), strengths)


def _descent_path(
    objective: str, features: Array, rewards: Array, start: Head, strengths: tuple[float, ...]
) -> list[Head]:
    x, target = torch.from_numpy(features), torch.from_numpy(rewards)
    means, origin = torch.from_numpy(start.means), torch.from_numpy(start.weight)
    weight = origin.clone().requires_grad_()
    heads = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny steps: handing them to threads costs more than it saves
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
    torch.set_num_threads(threads)
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
