"""Report of a router's training: its results on held-out prompts and the decision on the fallback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_hf.config import POLICY_LABELS
from persyn_hf.routing.crossval import (
    OutOfFold,
    choose_strength,
    chosen_rewards,
    cross_validate,
    earns_its_place,
    nested_routes,
)
from persyn_hf.routing.heads import Array, count_missing, pair_scale
from persyn_hf.routing.intervals import Interval, bootstrap_means, gap_interval, interval
from persyn_hf.routing.rewards import RewardTable

#: Columns of [`policy_rewards`].
_COLUMNS = ("router", "best_single", "random", "oracle", "knn")


@dataclass(frozen=True)
class RouterReport:
    """Cross-validated results on the probe.

    Args:
        prompts (`int`): Number of prompts of the cross-validation.
        folds (`int`): Number of folds.
        teachers (`list[str]`): Names, best mean reward first.
        means (`list[float]`): Mean reward of each teacher.
        objective (`str`): Training objective.
        strength (`float`): Strength of the regularisation; for a fine-tuned backbone, the number of epochs.
        held_out (`dict[str, Interval]`): Mean reward per prompt of `router`, `best_single`, `random`, `oracle`, `knn`.
            `best_single` is the best teacher of the training folds; `router` is the candidate, before any fallback.
        gain (`Interval`): Router's reward minus the best single teacher's, per prompt.
        gap_closed (`Interval`, *optional*): `(router − best single) / (oracle − best single)`; `None` without a gap.
        fallback (`str`, *optional*): Teacher that every prompt goes to if the router does not beat it.
        reason (`str`): One sentence that explains the decision on the fallback.
        learning_curve (`list[tuple[int, float]]`): Numbers of training prompts with the cross-validated gain.
        more_prompts (`int`, *optional*): Additional probe prompts that would make the gain significant if the learning
            curve continues; `None` if it already is significant, or if no number would do.
        scores (`ndarray` of shape `(prompts, teachers)`): Out-of-fold scores, on the scale of Bradley–Terry scores.
        prompt_ids (`list[str]`): Ids of the rows of `scores`.
        scale (`float`): Factor from trained scores to Bradley–Terry scores (an inverse temperature); it maximises the
            likelihood of the held-out preferences.
    """

    prompts: int
    folds: int
    teachers: list[str]
    means: list[float]
    objective: str
    strength: float
    held_out: dict[str, Interval]
    gain: Interval
    gap_closed: Interval | None
    fallback: str | None
    reason: str
    learning_curve: list[tuple[int, float]]
    more_prompts: int | None
    scores: Array
    prompt_ids: list[str]
    scale: float

    @property
    def beats_best_single(self) -> bool:
        """True if the interval of the gain lies above zero."""
        return self.gain.low > 0

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for the `persyn` block; `router` is the *deployed* router, after any fallback."""
        policies = {name: value.as_dict() for name, value in self.held_out.items()}
        policies["candidate"] = policies["router"]
        if self.fallback is not None:
            policies["router"] = policies["best_single"]
        return {
            **policies,
            "prompts": self.prompts,
            "folds": self.folds,
            "gain": self.gain.as_dict(),
            "gap_closed": None if self.gap_closed is None else self.gap_closed.as_dict(),
            "reason": self.reason,
            "learning_curve": [[count, round(gain, 6)] for count, gain in self.learning_curve],
            "more_prompts": self.more_prompts,
        }

    def __str__(self) -> str:
        width = max(len(POLICY_LABELS[name]) for name in self.held_out)
        where = f"held out, {self.prompts} prompts, {self.folds} folds"
        lines = [f"{'policy':{width}}  mean reward, 95% interval ({where})"]
        for name, value in self.held_out.items():
            lines.append(f"{POLICY_LABELS[name]:{width}}  {value.mean:.4f}  {value.low:.4f} to {value.high:.4f}")
        gap = self.gap_closed
        if gap is not None:
            lines.append(f"{'gap closed':{width}}  {gap.mean:.3f}  {gap.low:.3f} to {gap.high:.3f}")
        return "\n".join([*lines, self.reason])


def judge(
    table: RewardTable,
    rounds: list[OutOfFold],
    objective: str,
    fallback: str,
    seed: int,
    curve: Callable[[float], list[tuple[int, float]]],
) -> RouterReport:
    """Chooses the strength by cross-validation and evaluates it on prompts that were not used to choose it.

    Args:
        table (`RewardTable`): Rewards, best teacher first.
        rounds (`list[OutOfFold]`): Cross-validated scores.
        objective, fallback, seed: As for [`train_router`].
        curve (`Callable`): Function from the gain on the whole probe to the learning curve.
    """
    rewards = table.rewards
    values = policy_rewards(rewards, rounds)
    policies, gain, closed = policy_intervals(values, seed)
    step = choose_strength(rounds, rewards)
    falls_back = fallback == "best-single" and not earns_its_place(values[:, 0] - values[:, 1], seed)
    points = curve(gain.mean)
    needed: int | None = 0 if closed is not None else None
    if closed is not None and gain.low <= 0:
        needed = prompts_needed(points, float(np.nanstd(values[:, 0] - values[:, 1])), len(rewards))
    scores = np.broadcast_to(table.means, rewards.shape) if falls_back else rounds[0].scores[step]
    scale = pair_scale(scores, rewards)
    return RouterReport(
        prompts=len(rewards),
        folds=len(np.unique(rounds[0].fold)),
        teachers=table.teachers,
        means=[float(mean) for mean in table.means],
        objective=objective,
        strength=rounds[0].strengths[step],
        held_out=policies,
        gain=gain,
        gap_closed=closed,
        fallback=table.teachers[0] if falls_back else None,
        reason=explain_gain(table.teachers, gain, falls_back, needed, closed is not None),
        learning_curve=points,
        more_prompts=needed or None,
        scores=scores * scale,
        prompt_ids=table.ids,
        scale=scale,
    )


def policy_rewards(rewards: Array, rounds: list[OutOfFold]) -> Array:
    """Computes rewards per prompt of router, best single, random, oracle and kNN, averaged over rounds.

    The router's strength is chosen without the prompt's fold. For every policy, a missing reward counts as the lowest.

    Returns:
        `ndarray` of shape `(prompts, 5)`.
    """
    rewards = count_missing(rewards)
    values = [
        np.stack(
            [
                chosen_rewards(rewards, routes),
                chosen_rewards(rewards, held_out.best_single),
                rewards.mean(axis=1),
                rewards.max(axis=1),
                chosen_rewards(rewards, held_out.knn.argmax(axis=1)),
            ],
            axis=1,
        )
        for held_out, routes in zip(rounds, nested_routes(rounds, rewards), strict=True)
    ]
    mean: Array = np.mean(values, axis=0)
    return mean


def policy_intervals(values: Array, seed: int) -> tuple[dict[str, Interval], Interval, Interval | None]:
    """Computes intervals of the policies, of the gain over the best single teacher, and of the gap closed."""
    means, draws = np.nanmean(values, axis=0), bootstrap_means(values, seed)
    policies = {name: interval(means[i], draws[:, i]) for i, name in enumerate(_COLUMNS)}
    gain = interval(means[0] - means[1], draws[:, 0] - draws[:, 1])
    return policies, gain, gap_interval(means[[0, 1, 3]], draws[:, [0, 1, 3]])


def learning_curve(
    objective: str, features: Array, rewards: Array, folds: int, seed: int, full_gain: float
) -> list[tuple[int, float]]:
    """Computes the held-out gain over the best single teacher with a third, two thirds and all of the probe."""
    curve = []
    order = np.random.default_rng(seed + 1).permutation(len(rewards))
    for part in (1 / 3, 2 / 3):
        count = int(len(rewards) * part)
        if count < 4 * folds:
            continue
        rows = order[:count]
        rounds = cross_validate(objective, features[rows], rewards[rows], folds, seed)
        values = policy_rewards(rewards[rows], rounds)
        curve.append((count * (folds - 1) // folds, float(np.nanmean(values[:, 0] - values[:, 1]))))
    return [*curve, (len(rewards) * (folds - 1) // folds, full_gain)]


def prompts_needed(curve: Sequence[tuple[int, float]], spread: float, have: int) -> int | None:
    """Estimates the number of additional probe prompts that would make the gain significant.

    It assumes that the gain grows as `a − b / n` (least squares through the curve) and its standard error falls as
    `spread / √n`, and finds the first `n`, up to 32 times the probe, at which the gain exceeds 1.96 standard errors.

    Args:
        curve (`Sequence[tuple[int, float]]`): Numbers of training prompts with their gains.
        spread (`float`): Standard deviation of the gain of one prompt.
        have (`int`): Current number of probe prompts.

    Returns:
        `int`, *optional*: Number of prompts; `None` if there is no such `n`.
    """
    counts = np.array([count for count, _ in curve], dtype=float)
    gains = np.array([gain for _, gain in curve])
    if len(counts) > 1:
        design = np.stack([np.ones_like(counts), -1.0 / counts], axis=1)
        limit, slope = np.linalg.lstsq(design, gains, rcond=None)[0]
    else:
        limit, slope = gains[-1], 0.0
    spread = max(spread, 1e-6)
    for count in np.unique(np.geomspace(have, 32 * have, 200).astype(int)):
        if limit - slope / count > 1.96 * spread / np.sqrt(count):
            return max(int(count) - have, 0)
    return None


def explain_gain(teachers: Sequence[str], gain: Interval, fallback: bool, more: int | None, gap: bool = True) -> str:
    """Explains the decision on the fallback in one or two sentences.

    Args:
        teachers (`Sequence[str]`): Names, best first.
        gain (`Interval`): Router's reward minus the best single teacher's.
        fallback (`bool`): Whether every prompt goes to the best single teacher.
        more (`int`, *optional*): Additional probe prompts that would show a gain: 0 if it is already shown, `None` if
            no number would.
        gap (`bool`, defaults to `True`): Whether the oracle earns more than the best single teacher.
    """
    if not gap:
        where = "every prompt goes to it" if fallback else "any routes are as good"
        return f"There is no gap to close: {teachers[0]!r} earns as much as the oracle on held-out prompts; {where}."
    figures = f"{gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f})"
    if more:
        advice = f" About {more} more probe prompts would be needed to show a gain, if its learning curve continues."
    elif more is None:
        advice = " Extrapolating its learning curve, no number of probe prompts would show a gain."
    else:
        advice = ""
    if fallback:
        return (
            f"The router does not beat the best single teacher on held-out prompts: {figures} reward per prompt; "
            f"every prompt goes to {teachers[0]!r}.{advice}"
        )
    if gain.low > 0:
        return f"The router beats the best single of {len(teachers)} teachers on held-out prompts by {figures}."
    return (
        f"The router's gain over the best single of {len(teachers)} teachers on held-out prompts, {figures}, "
        f"is within chance.{advice}"
    )
