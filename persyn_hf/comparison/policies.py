"""The policies of a comparison: which teacher answers which prompt of a training set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from persyn_hf.config import Policy
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.routing import policies as baselines
from persyn_hf.routing.rewards import RewardTable

#: Policies that draw at random: another seed gives another training set.
DRAWN: frozenset[str] = frozenset({"mix", "random"})


@dataclass(frozen=True)
class Known:
    """What policies choose by, for one student.

    Args:
        probe (`RewardTable`): The scored probe.
        routes (`Sequence[str]`): The router's teacher for each training prompt.
        ids (`Sequence[str]`): `prompt_id` of each training prompt.
        families (`Mapping[str, str | None]`): Family of each teacher.
        family (`str`, *optional*): The student's.
        parallel (`RewardTable`, *optional*): Every teacher's scored answer to every training prompt.
        mix_strong_share (`float`, defaults to 0.5), car_beta (`float`, defaults to 3)
    """

    probe: RewardTable
    routes: Sequence[str]
    ids: Sequence[str]
    families: Mapping[str, str | None]
    family: str | None = None
    parallel: RewardTable | None = None
    mix_strong_share: float = baselines.MIX_STRONG_SHARE
    car_beta: float = baselines.CAR_BETA


def teachers_of(policy: Policy, known: Known, seed: int) -> list[str]:
    """The teacher of each training prompt under a policy.

    Args:
        policy (`str`): One of `POLICIES`.
        known (`Known`): What it may look at: the probe, except for `persyn` (the router) and `oracle` (everything).
        seed (`int`): Of `mix` and `random`.

    Raises:
        ConfigError: If `family-strong` has no teacher of the student's family.
        DataError: If `oracle` lacks the parallel answers, or the probe lacks a score.
    """
    if policy == "persyn":
        return list(known.routes)
    if policy == "oracle":
        return _oracle(known)
    probe, count = known.probe, len(known.ids)
    if policy == "strong":
        routes = baselines.strong(probe, count)
    elif policy == "mix":
        routes = baselines.mix(probe, count, seed, known.mix_strong_share)
    elif policy == "car":
        routes = baselines.car(probe, count, known.car_beta)
    elif policy == "random":
        routes = baselines.random(probe, count, seed)
    else:
        found = baselines.family_strong(probe, count, known.families, known.family)
        if found is None:
            there = ", ".join(sorted({name for name in known.families.values() if name}))
            raise ConfigError(
                f"`family-strong` needs a teacher of the student's family ({known.family or 'none is given'}); "
                f"teachers have {there or 'no families'}. Set `family` of teachers and students, or leave the policy "
                "out."
            )
        routes = found
    return [probe.teachers[index] for index in routes]


def mean_reward(table: RewardTable, ids: Sequence[str], teachers: Sequence[str]) -> float:
    """The mean reward that an allocation earns on prompts that every teacher has answered; missing ones left out."""
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    column_of = {name: column for column, name in enumerate(table.teachers)}
    earned = [
        table.rewards[row_of[identity], column_of[teacher]]
        for identity, teacher in zip(ids, teachers, strict=True)
        if identity in row_of and teacher in column_of
    ]
    return float(np.nanmean(earned))


def _oracle(known: Known) -> list[str]:
    if known.parallel is None:
        raise DataError("The oracle needs every teacher's scored answer to every training prompt.")
    table = known.parallel
    best = dict(zip(table.ids, baselines.oracle(table), strict=True))
    # A prompt that fewer than two teachers answered has no best one; the best on average stands in.
    return [table.teachers[best.get(identity, 0)] for identity in known.ids]
