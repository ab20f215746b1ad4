"""How good a router is on prompts that every teacher has answered, beside everything it must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_hf.errors import RouterMismatchError
from persyn_hf.routing import baselines
from persyn_hf.routing.crossval import Interval, bootstrap_means, chosen_rewards, gap_closed, interval
from persyn_hf.routing.heads import Array
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.router import PersynRouter

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
class Evaluation:
    """What [`evaluate_router`] found. All intervals are bootstrap 95% intervals over prompts.

    Args:
        prompts (`int`): Evaluated prompts.
        policies (`dict[str, PolicyResult]`): `router`, `best_single`, `random`, `oracle`, and those of
            `strong`, `mix`, `family_strong`, `car` and `knn` that the tables allow.
        pair_accuracy (`Interval`): Share of teacher pairs with different rewards that the scores order rightly.
        hit3 (`Interval`): Share of prompts with a best teacher among the three highest scores.
        calibration_error (`Interval`): Expected calibration error of `σ(s_i − s_j)` over those pairs, 0 to 1.
        in_sample (`bool`): Whether baselines were chosen on the evaluated prompts, for want of a probe.
    """

    prompts: int
    policies: dict[str, PolicyResult]
    pair_accuracy: Interval
    hit3: Interval
    calibration_error: Interval
    in_sample: bool

    @property
    def gap_closed(self) -> Interval:
        """The router's share of the gap between the best single teacher and the oracle."""
        return self.policies["router"].gap_closed

    def __str__(self) -> str:
        lines = [f"{'policy':14s} {'reward':>24s} {'regret':>24s} {'gap closed':>26s} {'hit@1':>24s}"]
        for name, result in self.policies.items():
            cells = " ".join(
                f"{value.mean:8.4f} [{value.low:.4f}, {value.high:.4f}]".rjust(width)
                for value, width in zip(
                    (result.reward, result.regret, result.gap_closed, result.hit1), (24, 24, 26, 24), strict=True
                )
            )
            lines.append(f"{name:14s} {cells}")
        for label, value in (
            ("pair accuracy", self.pair_accuracy), ("hit@3", self.hit3), ("ECE of pairs", self.calibration_error),
        ):  # fmt: skip
            lines.append(f"{label:14s} {value.mean:8.4f} [{value.low:.4f}, {value.high:.4f}]")
        if self.in_sample:
            lines.append("Strong, Mix, Family-Strong and CAR were chosen on these very prompts; pass `probe`.")
        return "\n".join(lines)


def evaluate_router(
    router: PersynRouter, scored: Any, probe: Any = None, *, student_family: str | None = None, seed: int = 0
) -> Evaluation:
    """Judges a router on scored answers of prompts that it was not trained on.

    Args:
        router (`PersynRouter`): The router.
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id`, `prompt`, `teacher`, `reward`; `quality`
            and `learnability` allow more baselines.
        probe (`Dataset`, *optional*): The scored table that the router was trained on: baselines are chosen there, and
            kNN finds its neighbours there. Without it the best single teacher is the router's first label.
        student_family (`str`, *optional*): For Family-Strong.
        seed (`int`, defaults to 0): Of the bootstrap and of the random baselines.

    Returns:
        `Evaluation`: `print` it for a table.

    Raises:
        MissingColumnError, DataError: If a table is not what it must be.
        RouterMismatchError: If a table has other teachers than the router.
    """
    table = _aligned(router, read_rewards(scored, "evaluate_router"), "scored")
    known = None if probe is None else _aligned(router, read_rewards(probe, "evaluate_router"), "probe")
    scores = router.scores(table.prompts)
    index = {name: position for position, name in enumerate(router.teachers)}
    routes = {"router": np.array([index[name] for name in router.routes(scores)])}
    routes |= baseline_routes(router, table, known, student_family, seed)
    policies = judge_routes(table.rewards, routes, seed)
    pairs, hit3, error = judge_scores(table.rewards, scores.astype(np.float64), seed)
    return Evaluation(len(table.prompts), policies, pairs, hit3, error, in_sample=known is None)


def baseline_routes(
    router: PersynRouter, table: RewardTable, probe: RewardTable | None, family: str | None, seed: int
) -> dict[str, np.ndarray]:
    """Routes of every baseline that the tables allow, `best_single` and `oracle` always among them."""
    count = len(table.prompts)
    chosen_on = probe or table
    routes: dict[str, Any] = {"best_single": np.zeros(count, dtype=int)}
    if probe is not None:
        routes["best_single"] = baselines.best_single(probe, count)
    routes["random"] = baselines.random(chosen_on, count, seed)
    if chosen_on.quality is not None:
        routes["strong"] = baselines.strong(chosen_on, count)
        routes["mix"] = baselines.mix(chosen_on, count, seed)
        families = {teacher["name"]: teacher.get("family") for teacher in router.metadata["teachers"]}
        routes["family_strong"] = baselines.family_strong(chosen_on, count, families, family)
        if chosen_on.learnability is not None:
            routes["car"] = baselines.car(chosen_on, count)
    if probe is not None:
        routes["knn"] = baselines.knn(probe, router.embeddings(probe.prompts), router.embeddings(table.prompts))
    routes["oracle"] = baselines.oracle(table)
    return {name: route for name, route in routes.items() if route is not None}


def judge_routes(rewards: Array, routes: dict[str, np.ndarray], seed: int = 0) -> dict[str, PolicyResult]:
    """Rewards, regrets, gaps and hits of several ways of routing the same prompts.

    Args:
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where missing.
        routes (`dict[str, ndarray]`): Teacher indices of shape `(prompts,)`, `best_single` and `oracle` among them.
        seed (`int`, defaults to 0): Of the bootstrap.
    """
    names = list(routes)
    best = np.nanmax(rewards, axis=1)
    earned = np.stack([chosen_rewards(rewards, route) for route in routes.values()], axis=1)
    hits = np.where(np.isnan(earned), np.nan, (earned >= best[:, None] - 1e-12).astype(float))
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


def judge_scores(rewards: Array, scores: Array, seed: int = 0) -> tuple[Interval, Interval, Interval]:
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
    columns_ = np.concatenate([per_bin[0], per_bin[1], per_bin[2], hit3[:, None].astype(float)], axis=1)
    summaries = []
    for means in (columns_.mean(axis=0)[None], bootstrap_means(columns_, seed)):
        total, sure, good = (means[:, k * _BINS : (k + 1) * _BINS] for k in range(3))
        pairs = np.maximum(total.sum(1), 1e-12)
        summaries.append((good.sum(1) / pairs, means[:, -1], np.abs(good - sure).sum(1) / pairs))
    accuracy, hits, error = (interval(summaries[0][k][0], summaries[1][k]) for k in range(3))
    return accuracy, hits, error


def _aligned(router: PersynRouter, table: RewardTable, name: str) -> RewardTable:
    strangers = sorted(set(table.teachers) - set(router.teachers))
    if strangers:
        raise RouterMismatchError(
            f"`{name}` has answers of {strangers}; the router was trained for {router.teachers}."
        )
    return table.reordered(router.teachers)
