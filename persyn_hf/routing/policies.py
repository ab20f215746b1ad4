"""Policies that need no router: scores of every teacher for every prompt, whose argmax is the route.

`strong`, `family-strong` and `car` give all prompts the same scores, so without limits one teacher gets every prompt.
The policy `persyn` uses the router's scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from persyn_hf.config import CAR_BETA, MIX_STRONG_SHARE, Policy
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.routing.heads import Array, teacher_means
from persyn_hf.routing.rewards import RewardTable

Scores = NDArray[np.floating]
Routes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Basis:
    """Inputs of the policies.

    Args:
        teachers (`Sequence[str]`): Names, in the order of the scores.
        probe (`RewardTable`, *optional*): Scored answers with the teachers in this order; not needed by `random` and
            `oracle`.
        families (`Mapping[str, str | None]`): Family of each teacher, for `family-strong`.
        student_family (`str`, *optional*): Family of the student, for `family-strong`.
        rewards (`ndarray` of shape `(prompts, teachers)`, *optional*): Rewards of the routed prompts, NaN where
            missing, for `oracle`.
        strong_share (`float`, defaults to 0.5): Share of the prompts that `mix` sends to the strong teacher, 0 to 1.
        beta (`float`, defaults to 3): Weight of the student's loss in `car`.
    """

    teachers: Sequence[str]
    probe: RewardTable | None = None
    families: Mapping[str, str | None] = field(default_factory=dict)
    student_family: str | None = None
    rewards: Array | None = None
    strong_share: float = MIX_STRONG_SHARE
    beta: float = CAR_BETA

    @property
    def relatives(self) -> NDArray[np.bool_]:
        """Mask of the teachers of the student's family, shape `(teachers,)`; all false if that family is unknown."""
        family = self.student_family
        return np.array([bool(family) and self.families.get(name) == family for name in self.teachers])


def policy_scores(policy: str, basis: Basis, prompts: int, seed: int = 0) -> Scores:
    """Computes the scores of a policy that needs no router.

    Args:
        policy (`str`): Name of the policy. `strong`: highest mean quality on the probe. `mix`: the strong teacher or a
            weak one, drawn for each prompt (arXiv 2502.12143). `family-strong`: the strongest teacher of the student's
            family. `car`: mean quality divided by `1 + beta · mean student loss` (arXiv 2411.07133). `random`: drawn
            for each prompt. `oracle`: the rewards of the routed prompts.
        basis (`Basis`): Inputs of the policy.
        prompts (`int`): Number of prompts to score.
        seed (`int`, defaults to 0): Random seed of `mix` and `random`.

    Returns:
        `ndarray` of shape `(prompts, teachers)`.

    Raises:
        ConfigError: If the policy is unknown or the basis lacks its inputs.
        DataError: If the probe lacks a column.

    Example:
        >>> policy_scores("random", Basis(["large", "small"]), prompts=6).argmax(axis=1).tolist()
        [1, 1, 1, 0, 0, 0]
    """
    require_policy(policy)
    if policy == "random":
        return _random_scores(prompts, len(basis.teachers), seed)
    if policy == "oracle":
        return _oracle_scores(basis)
    if policy == "persyn" or basis.probe is None:
        needed = "the scores of a router" if policy == "persyn" else "scored answers; pass them as `probe`"
        raise ConfigError(f"The policy {policy!r} needs {needed}.")
    if policy == "mix":
        drawn = np.random.default_rng(seed).random(prompts) < basis.strong_share
        chosen = np.where(drawn, int(mean_quality(basis.probe).argmax()), weak_teacher(basis.probe))
        one_hot: Scores = (chosen[:, None] == np.arange(len(basis.teachers))).astype(np.float32)
        return one_hot
    if policy == "strong":
        values = mean_quality(basis.probe)
    elif policy == "car":
        values = car_values(basis.probe, basis.beta)
    else:
        values = _family_values(basis, mean_quality(basis.probe))
    return np.broadcast_to(values, (prompts, len(values)))


def policy_routes(policy: str, basis: Basis, prompts: int, seed: int = 0) -> Routes:
    """Returns the teacher of every prompt under a policy, as an index into `basis.teachers`; see [`policy_scores`].

    Of equal scores, the first teacher wins.
    """
    routes: Routes = policy_scores(policy, basis, prompts, seed).argmax(axis=1)
    return routes


def require_policy(policy: str) -> None:
    """Checks the name of a policy.

    Raises:
        ConfigError: If the policy is unknown.
    """
    known = get_args(Policy)
    if policy not in known:
        raise ConfigError(f"`policy` must be one of {', '.join(known)}, got {policy!r}.")


def prompt_rewards(table: RewardTable, ids: Sequence[str]) -> Array:
    """Returns the rewards of prompts in the given order, shape `(prompts, teachers)`; NaN for unknown prompts."""
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    padded = np.concatenate([table.rewards, np.full((1, len(table.teachers)), np.nan)])
    rewards: Array = padded[[row_of.get(identity, -1) for identity in ids]]
    return rewards


def mean_quality(probe: RewardTable) -> Array:
    """Returns the mean quality of each teacher, whose maximum is the strongest; missing counts as the lowest.

    Raises:
        DataError: If the table has no `quality`.
    """
    if probe.quality is None:
        raise DataError(
            "The strongest teacher is chosen by the column `quality`, which the table lacks; score it first."
        )
    return teacher_means(probe.quality)


def weak_teacher(probe: RewardTable) -> int:
    """Returns the weak teacher of `mix`: the one whose answers the student finds most likely, except the strongest.

    It has the highest mean learnability, or the lowest mean quality if the table has no learnability.
    """
    quality = mean_quality(probe)
    weakness = -quality if probe.learnability is None else teacher_means(probe.learnability).copy()
    weakness[int(quality.argmax())] = -np.inf
    return int(weakness.argmax())


def car_values(probe: RewardTable, beta: float = CAR_BETA) -> Array:
    """Computes the Compatibility-Adjusted Reward of each teacher: `mean quality / (1 + beta · mean student loss)`.

    The student's loss is the negated learnability, in nats/token (arXiv 2411.07133).

    Raises:
        DataError: If the table has no `quality` or no `learnability`.
    """
    if probe.learnability is None:
        raise DataError("CAR needs the column `learnability`; score the answers with a student first.")
    values: Array = mean_quality(probe) / (1.0 - beta * teacher_means(probe.learnability))
    return values


def _family_values(basis: Basis, quality: Array) -> Array:
    relatives = basis.relatives
    if not relatives.any():
        there = ", ".join(sorted({name for name in basis.families.values() if name}))
        family = repr(basis.student_family) if basis.student_family else "none is given"
        raise ConfigError(
            f"The policy 'family-strong' needs a teacher of the student's family ({family}); teachers have "
            f"{there or 'no families'}. Set `family` of the teachers and the family of the student, or leave the "
            "policy out."
        )
    # Other teachers score below every relative, by more than the range, so that limits may still send prompts there.
    values: Array = np.where(relatives, quality, quality - 2 * (np.ptp(quality) + 1))
    return values


def _random_scores(prompts: int, teachers: int, seed: int) -> NDArray[np.float32]:
    """Returns random scores: above 1 for a teacher drawn per prompt, below 1 for the others (limits may use them)."""
    random = np.random.default_rng(seed)
    drawn = random.integers(teachers, size=prompts)
    scores = random.random((prompts, teachers), dtype=np.float32)
    scores[np.arange(prompts), drawn] += 1
    return scores


def _oracle_scores(basis: Basis) -> Array:
    """Returns the rewards of the routed prompts, with failed answers below all others."""
    if basis.rewards is None:
        raise ConfigError("The policy 'oracle' needs the rewards of every teacher's answer to every prompt.")
    known = basis.rewards[~np.isnan(basis.rewards)]
    missing = known.min() - 2 * (np.ptp(known) + 1) if known.size else 0.0
    scores: Array = np.where(np.isnan(basis.rewards), missing, basis.rewards)
    return scores
