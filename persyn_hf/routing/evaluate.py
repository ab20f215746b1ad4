"""Evaluation of a router against its baselines, on prompts that every teacher has answered."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.config import HELD_OUT_POLICIES, POLICY_LABELS, Policy
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.routing.crossval import nearest_rewards
from persyn_hf.routing.heads import Array, count_missing
from persyn_hf.routing.intervals import Interval, bootstrap_means, gap_interval, interval
from persyn_hf.routing.policies import Basis, policy_routes
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.seen import seen_prompts

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True)
class Evaluation:
    """Results of [`evaluate_router`]. All intervals are bootstrap 95% intervals over prompts.

    Args:
        prompts (`int`): Number of evaluated prompts.
        teachers (`int`): Number of teachers.
        policies (`dict[str, PolicyResult]`): Results of `router`, `random`, `best_single`, `oracle`, and of `strong`,
            `mix`, `family-strong`, `car` and `knn` if the tables have what they need.
        rankings (`dict[str, RankingResult]`): Quality of the order of the teachers by `router`, `best_single` (mean
            rewards, the same for every prompt) and `knn`.
        in_sample (`bool`): True if the baselines were chosen on the evaluated prompts because the router records no
            probe.
    """

    prompts: int
    teachers: int
    policies: dict[str, PolicyResult]
    rankings: dict[str, RankingResult]
    in_sample: bool

    @property
    def gap_closed(self) -> Interval | None:
        """The router's share of the gap between the best single teacher and the oracle; `None` without a gap."""
        return self.policies["router"].gap_closed

    @property
    def pair_accuracy(self) -> Interval | None:
        """Share of teacher pairs that the router orders correctly; `None` if all rewards are equal."""
        return self.rankings["router"].pair_accuracy

    @property
    def hit3(self) -> Interval:
        """Share of prompts with a best teacher among the router's first three."""
        return self.rankings["router"].hit3

    @property
    def calibration_error(self) -> Interval | None:
        """Calibration error of the router's pair probabilities, 0 to 1; `None` if all rewards are equal."""
        return self.rankings["router"].calibration_error

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON."""
        return asdict(self)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        routes = Table(title=f"Routes of {self.prompts} prompts to {self.teachers} teachers", title_justify="left")
        routes.add_column("policy")
        for name in ("mean reward", "regret", "gap closed", "hit@1"):
            routes.add_column(name, justify="right")
        for name, result in self.policies.items():
            cells = (result.reward, result.regret, result.gap_closed, result.hit1)
            routes.add_row(POLICY_LABELS[name], *map(_cell, cells), style="bold" if name == "router" else "")
        order = Table(title="Order of the teachers", title_justify="left")
        order.add_column("scores")
        for name in ("pair accuracy", "hit@3", "ECE of pairs"):
            order.add_column(name, justify="right")
        for name, ranking in self.rankings.items():
            error = _cell(ranking.calibration_error) if name == "router" else "–"
            order.add_row(POLICY_LABELS[name], _cell(ranking.pair_accuracy), _cell(ranking.hit3), error)
        note = "In brackets: bootstrap 95% intervals over prompts. A missing answer counts as the lowest reward."
        if self.gap_closed is None:
            note += " There is no gap to close: the best single teacher earns as much as the oracle."
        if self.in_sample:
            note += " The baselines were chosen on the evaluated prompts: the router records no results of its probe."
        return Group(routes, order, note)

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120).print(self, highlight=False)
        return text.getvalue().rstrip()


def evaluate_router(
    router: PersynRouter,
    scored: Any,
    probe: Any = None,
    *,
    student_family: str | None = None,
    seed: int = 0,
    show: bool = True,
) -> Evaluation:
    """Evaluates a router on scored answers to prompts that it was not trained on, and prints a table.

    The best single teacher and the other baselines are chosen on the training prompts: from `probe`, or else from the
    means in the router's checkpoint. Prompts that the router was trained on are left out, with a warning. For every
    policy, a missing answer counts as the lowest reward.

    Args:
        router (`PersynRouter`): Router to evaluate.
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id`, `prompt`, `teacher`, `reward`.
        probe (`Dataset`, *optional*): Scored table that the router was trained on. Adds the baseline kNN, which finds
            the nearest prompts of this table by the router's embeddings.
        student_family (`str`, *optional*): Family of the student, for the baseline Family-Strong.
        seed (`int`, defaults to 0): Random seed of the bootstrap and of the random baselines.
        show (`bool`, defaults to `True`): Whether to print the table.

    Returns:
        `Evaluation`: Every measure with its interval.

    Raises:
        MissingColumnError, DataError: If a table is invalid, or the router was trained on all of its prompts; that
            error has the cross-validated figures.
        RouterMismatchError: If a table has teachers that the router does not have.

    Example:
        >>> result = evaluate_router(router, held_out, probe)  # doctest: +SKIP
        >>> result.gap_closed.low > 0  # doctest: +SKIP
    """
    table = _unseen(router, _aligned(router, read_rewards(scored, "evaluate_router"), "scored"))
    neighbours = None if probe is None else _aligned(router, read_rewards(probe, "evaluate_router"), "probe")
    known = neighbours or _stored_probe(router)
    scores = router.scores(table.prompts)
    index = {name: position for position, name in enumerate(router.teachers)}
    ranked = {
        "router": scores.astype(np.float64),
        "best_single": np.broadcast_to((known or table).means, scores.shape),
    }
    basis = _basis(router, table, known, student_family)
    routes: dict[str, np.ndarray] = {
        "router": np.array([index[name] for name in router.routes(scores)]),
        "random": policy_routes("random", basis, len(scores), seed),
        "best_single": ranked["best_single"].argmax(axis=1),
    }
    routes |= {name: policy_routes(name, basis, len(scores), seed) for name in _possible(basis)}
    if neighbours is not None:
        near = router.embeddings(neighbours.prompts)
        center = near.mean(axis=0)
        asked = router.embeddings(table.prompts) - center
        ranked["knn"] = nearest_rewards(near - center, neighbours.rewards, asked)
        routes["knn"] = ranked["knn"].argmax(axis=1)
    routes["oracle"] = policy_routes("oracle", basis, len(scores))
    evaluation = Evaluation(
        len(table.prompts),
        len(table.teachers),
        judge_routes(table.rewards, routes, seed),
        {name: judge_scores(table.rewards, values, seed) for name, values in ranked.items()},
        known is None,
    )
    if show:
        from rich.console import Console

        Console().print(evaluation, highlight=False)
    return evaluation


def _basis(router: PersynRouter, table: RewardTable, known: RewardTable | None, family: str | None) -> Basis:
    """Returns the basis of the baselines: the known means, or else the evaluated prompts."""
    families = {teacher["name"]: teacher.get("family") for teacher in router.metadata["teachers"]}
    return Basis(router.teachers, known or table, families, family, rewards=table.rewards)


def _possible(basis: Basis) -> Iterator[Policy]:
    """Yields the baselines for which the basis has quality and learnability."""
    if basis.probe is None or basis.probe.quality is None:
        return
    yield "strong"
    yield "mix"
    if basis.relatives.any():
        yield "family-strong"
    if basis.probe.learnability is not None:
        yield "car"


def _stored_probe(router: PersynRouter) -> RewardTable | None:
    """Returns the checkpoint's means over its training prompts as a table of one row, or `None` without them."""
    means: Mapping[str, Mapping[str, float]] = router.metadata.get("probe_means") or {}
    if "reward" not in means:
        return None
    rows = {
        name: np.array([[values.get(teacher, np.nan) for teacher in router.teachers]])
        for name, values in means.items()
    }
    return RewardTable(
        ["probe"], ["probe"], router.teachers, rows["reward"], rows.get("quality"), rows.get("learnability")
    )


def _unseen(router: PersynRouter, table: RewardTable) -> RewardTable:
    """Returns the rows of prompts that the router was not trained on, and warns about the others.

    Raises:
        DataError: If fewer than two are left.
    """
    seen = seen_prompts(router.metadata, table.prompts)
    if seen is None:
        warnings.warn(
            "This router does not record its training prompts, so persyn_hf cannot verify that these prompts are held "
            "out.",
            stacklevel=3,
        )
        return table
    if not seen.any():
        return table
    count, left = int(seen.sum()), len(seen) - int(seen.sum())
    told = f"The router was trained on {count} of these {len(seen)} prompts"
    if left < 2:
        raise DataError(
            f"{told}, so its results on them would be too good. {_cross_validated(router.metadata)}Evaluate it on "
            "scored answers to other prompts."
        )
    warnings.warn(f"{told}; they are left out, and {left} are evaluated.", stacklevel=3)
    return table.subset(np.flatnonzero(~seen))


def _cross_validated(block: Mapping[str, Any]) -> str:
    """Returns the router's cross-validated figures as a sentence; empty if it records none."""
    held_out = block.get("held_out") or {}
    means = {key: mean for key in HELD_OUT_POLICIES if (mean := _mean(held_out.get(key))) is not None}
    if not means:
        return ""
    rewards = ", ".join(f"{POLICY_LABELS[key]} {mean:.3f}" for key, mean in means.items())
    closed = _mean(held_out.get("gap_closed"))
    gap = "no gap to close" if closed is None else f"gap closed {closed:.3f}"
    return f"Its cross-validation on them found: {rewards}; {gap}. "


def _mean(entry: object) -> float | None:
    """Returns the mean of an interval in a router's block, or `None` if there is none."""
    mean = entry.get("mean") if isinstance(entry, Mapping) else None
    return float(mean) if isinstance(mean, int | float) else None


def _aligned(router: PersynRouter, table: RewardTable, name: str) -> RewardTable:
    strangers = sorted(set(table.teachers) - set(router.teachers) - set(router.metadata.get("left_out") or {}))
    if strangers:
        raise RouterMismatchError(
            f"`{name}` must have answers of the router's teachers {router.teachers} only, got answers of {strangers}."
        )
    return table.reordered(router.teachers)


def _cell(value: Interval | None) -> str:
    return "–" if value is None else str(value)


_BINS = 10


@dataclass(frozen=True)
class PolicyResult:
    """Result of one policy on the evaluated prompts.

    Args:
        reward (`Interval`): Mean reward per prompt.
        regret (`Interval`): Oracle's reward minus this one.
        gap_closed (`Interval`, *optional*): `(reward − best single) / (oracle − best single)`; `None` without a gap.
        hit1 (`Interval`): Share of prompts routed to (one of) their best teachers.
    """

    reward: Interval
    regret: Interval
    gap_closed: Interval | None
    hit1: Interval


@dataclass(frozen=True)
class RankingResult:
    """Quality of the order in which scores rank the teachers of a prompt.

    Args:
        pair_accuracy (`Interval`, *optional*): Share of teacher pairs with different rewards that the scores order
            correctly; `None` if there is no such pair.
        hit3 (`Interval`): Share of prompts with a best teacher among the three highest scores.
        calibration_error (`Interval`, *optional*): Expected calibration error of `σ(s_i − s_j)` over those pairs, 0 to
            1; meaningful only for Bradley–Terry scores.
    """

    pair_accuracy: Interval | None
    hit3: Interval
    calibration_error: Interval | None


def judge_routes(rewards: Array, routes: dict[str, np.ndarray], seed: int = 0) -> dict[str, PolicyResult]:
    """Computes reward, regret, gap closed and hit@1 of several policies on the same prompts.

    Args:
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing, which counts as the lowest and
            never as a hit. Prompts without any reward are left out.
        routes (`dict[str, ndarray]`): Teacher indices of shape `(prompts,)` by policy; must include `best_single` and
            `oracle`.
        seed (`int`, defaults to 0): Random seed of the bootstrap.

    Raises:
        DataError: If no prompt has a reward.
    """
    names = list(routes)
    rows = _rewarded(rewards)
    counted = count_missing(rewards)
    chosen = [(rows, route[rows]) for route in routes.values()]
    earned = np.stack([counted[cells] for cells in chosen], axis=1)
    known = np.stack([~np.isnan(rewards[cells]) for cells in chosen], axis=1)
    hits = known & (earned >= counted[rows].max(axis=1)[:, None] - 1e-12)
    count = len(names)
    values = np.concatenate([earned, hits], axis=1)
    means, draws = values.mean(axis=0)[None], bootstrap_means(values, seed)
    single, top = names.index("best_single"), names.index("oracle")
    results = {}
    for column, name in enumerate(names):
        results[name] = PolicyResult(
            reward=interval(means[0, column], draws[:, column]),
            regret=interval(means[0, top] - means[0, column], draws[:, top] - draws[:, column]),
            gap_closed=gap_interval(means[0, [column, single, top]], draws[:, [column, single, top]]),
            hit1=interval(means[0, count + column], draws[:, count + column]),
        )
    return results


def judge_scores(rewards: Array, scores: Array, seed: int = 0) -> RankingResult:
    """Computes pair accuracy, hit@3 and expected calibration error of scores.

    Args:
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        scores (`ndarray` of shape `(prompts, teachers)`): Bradley–Terry scores.
        seed (`int`, defaults to 0): Random seed of the bootstrap.

    Raises:
        DataError: If no prompt has a reward.
    """
    rows = _rewarded(rewards)
    rewards, scores = rewards[rows], scores[rows]
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
    accuracy, hit, error = (interval(summaries[0][k][0], summaries[1][k]) for k in range(3))
    return RankingResult(accuracy, hit, error) if pair.any() else RankingResult(None, hit, None)


def _rewarded(rewards: Array) -> NDArray[np.int64]:
    """Returns the indices of the prompts that have a reward."""
    rows: NDArray[np.int64] = np.flatnonzero(~np.isnan(rewards).all(axis=1))
    if not rows.size:
        raise DataError(f"Expected prompts with a `reward`, got {len(rewards)} prompts without any; score them first.")
    return rows
