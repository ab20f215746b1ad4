"""Routes of a comparison: the teacher of each prompt in a policy's training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persyn_hf.config import CAR_BETA, MIX_STRONG_SHARE, Policy
from persyn_hf.errors import DataError
from persyn_hf.routing.heads import count_missing
from persyn_hf.routing.policies import Basis, policy_routes, prompt_rewards
from persyn_hf.routing.rewards import RewardTable


@dataclass(frozen=True)
class Known:
    """Inputs of the policies for one student.

    Args:
        probe (`RewardTable`): Scored probe.
        routes (`Sequence[str]`): Router's teacher of each training prompt.
        ids (`Sequence[str]`): `prompt_id` of each training prompt.
        families (`Mapping[str, str | None]`): Family of each teacher.
        family (`str`, *optional*): Family of the student.
        parallel (`RewardTable`, *optional*): Every teacher's scored answer to every training prompt.
        strong_share (`float`, defaults to 0.5): Share of the prompts that `mix` sends to the strong teacher.
        beta (`float`, defaults to 3): Weight of the student's loss in `car`.
    """

    probe: RewardTable
    routes: Sequence[str]
    ids: Sequence[str]
    families: Mapping[str, str | None]
    family: str | None = None
    parallel: RewardTable | None = None
    strong_share: float = MIX_STRONG_SHARE
    beta: float = CAR_BETA


def teachers_of(policy: Policy, known: Known, seed: int) -> list[str]:
    """Returns the teacher of each training prompt under a policy.

    Args:
        policy (`str`): Name of the policy.
        known (`Known`): Inputs of the policies. They use the probe, except `persyn` (the router's routes) and `oracle`
            (the parallel answers).
        seed (`int`): Random seed of `mix` and `random`.

    Raises:
        ConfigError: If `family-strong` has no teacher of the student's family.
        DataError: If `oracle` lacks the parallel answers, or the probe lacks a score.
    """
    if policy == "persyn":
        return list(known.routes)
    basis = _parallel_basis(known) if policy == "oracle" else _probe_basis(known)
    return [basis.teachers[index] for index in policy_routes(policy, basis, len(known.ids), seed)]


def mean_reward(table: RewardTable, ids: Sequence[str], teachers: Sequence[str]) -> float | None:
    """Computes the mean reward of routes. A missing reward counts as the lowest, so no policy exceeds the oracle.

    Args:
        table (`RewardTable`): Scored answers of every teacher.
        ids (`Sequence[str]`): `prompt_id` of the prompts; those that the table lacks are left out.
        teachers (`Sequence[str]`): Teacher of each prompt; all rewards of a teacher that the table lacks are missing.

    Returns:
        `float`, *optional*: Mean reward; `None` if the table has none of the prompts.
    """
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    column_of = {name: column for column, name in enumerate(table.teachers)}
    rewards = count_missing(table.rewards)
    lowest = float(rewards.min(initial=np.inf))
    earned = [
        rewards[row_of[identity], column_of[teacher]] if teacher in column_of else lowest
        for identity, teacher in zip(ids, teachers, strict=True)
        if identity in row_of
    ]
    return float(np.mean(earned)) if earned else None


def _probe_basis(known: Known) -> Basis:
    return Basis(
        known.probe.teachers,
        known.probe,
        known.families,
        known.family,
        strong_share=known.strong_share,
        beta=known.beta,
    )


def _parallel_basis(known: Known) -> Basis:
    if known.parallel is None:
        raise DataError("The policy 'oracle' needs every teacher's scored answer to every training prompt.")
    # A prompt that fewer than two teachers answered has no rewards here, so it goes to the first teacher of the table,
    # the best on average.
    return Basis(known.parallel.teachers, rewards=prompt_rewards(known.parallel, known.ids))
