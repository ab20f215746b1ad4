"""Heads on frozen features: `scores = γ · means + features @ weight`, with the weight pulled towards zero.

At infinite strength a head is the teachers' mean rewards, that is: the best single teacher for every prompt. What the
prompt adds is bought by cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_expit

from persyn_hf.routing.objectives import objective_loss

Array = NDArray[np.float64]

#: Strengths tried, strongest first; features have a mean square length of 1, so they mean the same for every backbone.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "regression": (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003),
    "bradley-terry": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "bradley-terry-margin": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
    "expected-reward": (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001),
}


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
    """Fits one head per strength, from the strongest to the weakest, each starting from the one before.

    Args:
        objective (`str`): One of `OBJECTIVES`.
        features (`ndarray` of shape `(prompts, features)`): Centred, mean square length about 1.
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.
        strengths (`tuple[float, ...]`): Factors of the squared weight, descending.

    Returns:
        `list[Head]`: In the order of `strengths`.
    """
    means = teacher_means(rewards)
    if objective == "regression":
        return _ridge_path(features, rewards, means, strengths)
    scale = pair_scale(np.broadcast_to(means, rewards.shape), rewards)
    return _descent_path(objective, features, rewards, means * scale, strengths)


def _ridge_path(features: Array, rewards: Array, means: Array, strengths: tuple[float, ...]) -> list[Head]:
    """Ridge regression of the rewards' deviations from the teachers' means, within the prompt where all are known."""
    known = ~np.isnan(rewards)
    target = np.where(known, rewards - means, 0.0)
    # What all teachers of a prompt share moves no decision, so it is not fitted.
    target = np.where(known, target - target.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1), 0.0)
    weights = np.zeros((len(strengths), features.shape[1], rewards.shape[1]))
    patterns, group = np.unique(known, axis=1, return_inverse=True)
    for index in range(patterns.shape[1]):
        rows, teachers = patterns[:, index], np.flatnonzero(group.reshape(-1) == index)
        if not rows.any():
            continue
        squares, basis = np.linalg.eigh(features[rows].T @ features[rows])
        projected = basis.T @ (features[rows].T @ target[np.ix_(rows, teachers)])
        for step, strength in enumerate(strengths):
            weights[step][:, teachers] = basis @ (projected / (squares + strength * rows.sum())[:, None])
    return [Head(means, weight) for weight in weights]


def _descent_path(
    objective: str, features: Array, rewards: Array, means: Array, strengths: tuple[float, ...]
) -> list[Head]:
    x, target = torch.from_numpy(features), torch.from_numpy(rewards)
    start = torch.from_numpy(means)
    weight = torch.zeros(features.shape[1], rewards.shape[1], dtype=torch.float64, requires_grad=True)
    heads = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny steps: handing them to threads costs more than it saves
    for strength in strengths:
        optimizer = torch.optim.LBFGS([weight], max_iter=40, history_size=10, line_search_fn="strong_wolfe")

        def closure(strength: float = strength, optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = objective_loss(objective, start + x @ weight, target) + strength * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        heads.append(Head(means, weight.detach().numpy().copy()))
    torch.set_num_threads(threads)
    return heads


def pair_scale(scores: Array, rewards: Array) -> float:
    """The factor that makes scores Bradley–Terry scores: it maximises the likelihood of the observed preferences.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): On prompts that the scores were not fitted to.
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.

    Returns:
        `float`: Positive, so the ranking stays as it is.
    """
    difference = scores[:, :, None] - scores[:, None, :]
    with np.errstate(invalid="ignore"):
        wins = (rewards[:, :, None] - rewards[:, None, :]) > 0
    gaps = difference[wins]
    spread = float(np.abs(gaps).max(initial=0.0))
    if spread == 0.0:
        return 1.0
    best = minimize_scalar(
        lambda log: -float(log_expit(np.exp(log) * gaps / spread).mean()), bounds=(-6.0, 6.0), method="bounded"
    )
    return float(np.exp(best.x)) / spread
