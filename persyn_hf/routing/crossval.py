"""Cross-validation of a head: choice of the strength, and the test against the best single teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persyn_hf.routing.heads import STRENGTHS, Array, count_missing, fit_path, teacher_means
from persyn_hf.routing.intervals import bootstrap_means

#: Share of bootstrap draws that must show a gain before a router replaces the best single teacher, by number of probe
#: prompts; linear in between. On few prompts the intervals are too narrow: with a shuffled probe of 90, a quarter of
#: the routers passed. On many prompts the router is shrunk so close to that teacher that a false gain costs little,
#: while a true gain is rarely significant.
CONFIDENCE = {100: 0.95, 150: 0.75, 400: 0.6}

#: Number of cross-validations, each with different folds; one is too noisy to choose a strength.
REPEATS = 3


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold scores: each prompt is scored by heads that were not trained on it.

    Args:
        strengths (`tuple[float, ...]`): Candidates, most cautious first: strengths of a head, descending, or epochs of
            a fine-tuned model, ascending.
        scores (`ndarray` of shape `(strengths, prompts, teachers)`): Out-of-fold scores.
        best_single (`ndarray` of int, shape `(prompts,)`): Best teacher of each prompt's training folds.
        fold (`ndarray` of int, shape `(prompts,)`): Fold that held the prompt out.
        knn (`ndarray` of shape `(prompts, teachers)`): Mean rewards of the nearest training prompts.
    """

    strengths: tuple[float, ...]
    scores: Array
    best_single: np.ndarray
    fold: np.ndarray
    knn: Array


def cross_validate(objective: str, features: Array, rewards: Array, folds: int, seed: int) -> list[OutOfFold]:
    """Cross-validates every strength: fits on all folds but one and scores that one. Repeated `REPEATS` times.

    Args:
        objective (`str`): One of `OBJECTIVES`.
        features (`ndarray` of shape `(prompts, features)`): Features of the frozen backbone.
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        folds (`int`): Number of folds, at most the number of prompts.
        seed (`int`): Random seed of the assignment to folds.
    """
    random = np.random.default_rng(seed)
    folds = min(folds, len(rewards))
    return [_one_round(objective, features, rewards, random.permutation(len(rewards)) % folds) for _ in range(REPEATS)]


def _one_round(objective: str, features: Array, rewards: Array, fold: np.ndarray) -> OutOfFold:
    count = len(rewards)
    strengths = STRENGTHS[objective]
    scores = np.empty((len(strengths), *rewards.shape))
    best_single, knn = np.empty(count, dtype=int), np.empty(rewards.shape)
    for index in np.unique(fold):
        inside, outside = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        center = features[inside].mean(axis=0)
        heads = fit_path(objective, features[inside] - center, rewards[inside], strengths)
        for step, head in enumerate(heads):
            scores[step, outside] = head(features[outside] - center)
        best_single[outside] = teacher_means(rewards[inside]).argmax()
        knn[outside] = nearest_rewards(features[inside], rewards[inside], features[outside])
    return OutOfFold(strengths, scores, best_single, fold, knn)


def nearest_rewards(known: Array, rewards: Array, asked: Array, neighbours: int = 20) -> Array:
    """Returns mean rewards of the nearest prompts by cosine, `(asked, teachers)`; missing ones count as the lowest."""
    left = asked / np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), 1e-12)
    right = known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-12)
    near = np.argsort(-(left @ right.T), axis=1)[:, :neighbours]
    nearest: Array = count_missing(rewards)[near].mean(axis=1)
    return nearest


def chosen_rewards(rewards: Array, routes: np.ndarray) -> Array:
    """Returns the reward of each prompt's chosen teacher, shape `(prompts,)`; NaN where that teacher has none."""
    chosen: Array = rewards[np.arange(len(rewards)), routes]
    return chosen


def choose_strength(rounds: list[OutOfFold], rewards: Array, allowed: list[np.ndarray] | None = None) -> int:
    """Returns the index of the strength whose routes earn most out of fold; of equals, the strongest.

    The mean reward of a strength is smoothed with those of its neighbours (weights ¼, ½, ¼).

    Args:
        rounds (`list[OutOfFold]`): Result of [`cross_validate`].
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing, which counts as the lowest.
        allowed (`list[ndarray]`, *optional*): Prompts to choose by, for each round; default: all.
    """
    rewards = count_missing(rewards)
    earned = np.zeros(len(rounds[0].strengths))
    for number, held_out in enumerate(rounds):
        rows = slice(None) if allowed is None else allowed[number]
        routes = held_out.scores.argmax(axis=2)
        earned += [np.nanmean(chosen_rewards(rewards, route)[rows]) for route in routes]
    padded = np.concatenate([earned[:1], earned, earned[-1:]])
    smooth = padded[:-2] / 4 + padded[1:-1] / 2 + padded[2:] / 4
    return int(np.argmax(np.round(smooth, 12)))


def nested_routes(rounds: list[OutOfFold], rewards: Array) -> list[np.ndarray]:
    """Returns each prompt's route for every round, by a strength chosen without that prompt's fold."""
    nested = []
    for held_out in rounds:
        routes = np.empty(len(rewards), dtype=int)
        for index in np.unique(held_out.fold):
            outside = held_out.fold == index
            step = choose_strength(rounds, rewards, [~outside] * len(rounds))
            routes[outside] = held_out.scores[step, outside].argmax(axis=1)
        nested.append(routes)
    return nested


def earns_its_place(gains: Array, seed: int = 0) -> bool:
    """Decides from held-out gains if a router replaces the best single teacher.

    It does if the mean gain is positive in at least the share of bootstrap draws over prompts that `CONFIDENCE`
    requires for this number of prompts.

    Args:
        gains (`ndarray` of shape `(prompts,)`): Router's reward minus the best single teacher's; NaN where unknown.
        seed (`int`, defaults to 0): Random seed of the bootstrap.
    """
    known = gains[~np.isnan(gains)]
    if known.size < 2:
        return False
    needed = float(np.interp(known.size, list(CONFIDENCE), list(CONFIDENCE.values())))
    return bool((bootstrap_means(known[:, None], seed) > 0).mean() >= needed)
