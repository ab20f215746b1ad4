"""Measures of routes and of scores, each with a bootstrap interval over prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from persyn_hf.routing.crossval import Interval, bootstrap_means, gap_closed, interval
from persyn_hf.routing.heads import Array

_BINS = 10


@dataclass(frozen=True)
class PolicyResult:
    """One way of routing on the evaluated prompts.

    Args:
        reward (`Interval`): Mean reward per prompt.
        regret (`Interval`): Oracle's reward minus this one.
        gap_closed (`Interval`): `(reward − best single) / (oracle − best single)`.
        hit1 (`Interval`): Share of prompts whose teacher is (one of) the best.
    """

    reward: Interval
    regret: Interval
    gap_closed: Interval
    hit1: Interval


@dataclass(frozen=True)
class RankingResult:
    """How well scores order the teachers of a prompt.

    Args:
        pair_accuracy (`Interval`): Share of teacher pairs with different rewards that the scores order rightly.
        hit3 (`Interval`): Share of prompts with a best teacher among the three highest scores.
        calibration_error (`Interval`): Expected calibration error of `σ(s_i − s_j)` over those pairs, 0 to 1; it means
            something only where the scores are Bradley–Terry scores.
    """

    pair_accuracy: Interval
    hit3: Interval
    calibration_error: Interval


def judge_routes(rewards: Array, routes: dict[str, np.ndarray], seed: int = 0) -> dict[str, PolicyResult]:
    """Rewards, regrets, gaps and hits of several ways of routing the same prompts.

    Args:
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.
        routes (`dict[str, ndarray]`): Teacher indices of shape `(prompts,)`, `best_single` and `oracle` among them.
        seed (`int`, defaults to 0): Of the bootstrap.
    """
    names = list(routes)
    best = np.nanmax(rewards, axis=1)
    rows = np.arange(len(rewards))
    earned = np.stack([rewards[rows, route] for route in routes.values()], axis=1)
    hits = np.where(np.isnan(earned), np.nan, earned >= best[:, None] - 1e-12)
    count = len(names)
    values = np.concatenate([earned, hits], axis=1)
    means, draws = np.nanmean(values, axis=0)[None], bootstrap_means(values, seed)
    single, top = names.index("best_single"), names.index("oracle")
    results = {}
    for column, name in enumerate(names):
        results[name] = PolicyResult(
            reward=interval(means[0, column], draws[:, column]),
            regret=interval(means[0, top] - means[0, column], draws[:, top] - draws[:, column]),
            gap_closed=interval(
                float(gap_closed(means[0, column], means[0, single], means[0, top])),
                gap_closed(draws[:, column], draws[:, single], draws[:, top]),
            ),
            hit1=interval(means[0, count + column], draws[:, count + column]),
        )
    return results


def judge_scores(rewards: Array, scores: Array, seed: int = 0) -> RankingResult:
    """Pair accuracy, hit@3 and expected calibration error of scores.

    Args:
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.
        scores (`ndarray` of shape `(prompts, teachers)`): Bradley–Terry scores.
        seed (`int`, defaults to 0): Of the bootstrap.
    """
    upper = np.triu_indices(rewards.shape[1], 1)
    reward_gap = rewards[:, upper[0]] - rewards[:, upper[1]]
    score_gap = scores[:, upper[0]] - scores[:, upper[1]]
    with np.errstate(invalid="ignore"):
        pair = np.abs(reward_gap) > 0
        right = np.where(score_gap == 0, 0.5, (score_gap > 0) == (reward_gap > 0)) * pair
    confidence = 1.0 / (1.0 + np.exp(-np.abs(score_gap)))
    bins = np.minimum(((confidence - 0.5) * 2 * _BINS).astype(int), _BINS - 1)
    per_bin = np.zeros((3, len(rewards), _BINS))
    for number in range(_BINS):
        inside = pair & (bins == number)
        per_bin[:, :, number] = inside.sum(1), (confidence * inside).sum(1), (right * inside).sum(1)
    top3 = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    best = np.nanmax(rewards, axis=1)
    hit3 = (np.take_along_axis(np.nan_to_num(rewards, nan=-np.inf), top3, 1) >= best[:, None] - 1e-12).any(1)
    columns = np.concatenate([per_bin[0], per_bin[1], per_bin[2], hit3[:, None].astype(float)], axis=1)
    summaries = []
    for means in (columns.mean(axis=0)[None], bootstrap_means(columns, seed)):
        total, sure, good = (means[:, k * _BINS : (k + 1) * _BINS] for k in range(3))
        pairs = np.maximum(total.sum(1), 1e-12)
        summaries.append((good.sum(1) / pairs, means[:, -1], np.abs(good - sure).sum(1) / pairs))
    return RankingResult(*(interval(summaries[0][k][0], summaries[1][k]) for k in range(3)))
