"""What a policy thinks of every teacher for every prompt: scores, so that all policies are allocations.

`strong`, `car` and `family-strong` think the same of all prompts; without limits everything goes to one teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.errors import ConfigError, DataError
from persyn_hf.routing.policies import CAR_BETA, MIX_STRONG_SHARE, car_values, mean_quality, weak_teacher
from persyn_hf.routing.rewards import RewardTable, read_rewards

#: The router's own choice, and what it must beat.
POLICIES = ("persyn", "strong", "mix", "family-strong", "car", "random", "oracle")


def policy_scores(
    policy: str,
    prompts: int,
    teachers: Sequence[str],
    probe: Any = None,
    *,
    prompt_ids: Sequence[str] | None = None,
    families: Mapping[str, str | None] | None = None,
    student_family: str | None = None,
    strong_share: float = MIX_STRONG_SHARE,
    beta: float = CAR_BETA,
    seed: int = 0,
) -> NDArray[np.floating]:
    """Scores of a policy that needs no router.

    Args:
        policy (`str`): `strong`: the highest mean quality on the probe. `mix`: strong and weak, drawn for each prompt
            (arXiv 2502.12143). `family-strong`: the strongest of the student's family. `car`: mean quality divided by
            `1 + beta · mean student loss` (arXiv 2411.07133). `random`. `oracle`: the prompts' own rewards.
        prompts (`int`), teachers (`Sequence[str]`): How many prompts, and the teachers in order.
        probe (`Dataset`, *optional*): Scored answers that the policy chooses by; for `oracle`, those of the prompts.
        prompt_ids (`Sequence[str]`, *optional*): For `oracle`.
        families (mapping, *optional*), student_family (`str`, *optional*): For `family-strong`.
        strong_share (`float`, defaults to 0.5): For `mix`: 1:1.
        beta (`float`, defaults to 3): For `car`.
        seed (`int`, defaults to 0): For `mix` and `random`.

    Returns:
        `ndarray` of shape `(prompts, teachers)`.

    Raises:
        ConfigError: If the policy is unknown or lacks what it chooses by.
        DataError: If the probe lacks a column or a teacher.
    """
    random = np.random.default_rng(seed)
    if policy == "random":
        return random.random((prompts, len(teachers)), dtype=np.float32)
    if policy not in POLICIES or policy == "persyn":
        raise ConfigError(f"`policy` must be one of {', '.join(POLICIES)}, got {policy!r}.")
    if probe is None:
        raise ConfigError(f"The policy {policy!r} chooses by scored answers; pass them as `probe`.")
    table = read_rewards(probe, f"the policy {policy!r}")
    absent = [name for name in teachers if name not in table.teachers]
    if absent:
        raise DataError(f"The policy {policy!r} needs scored answers of {', '.join(absent)}; `probe` has none.")
    table = table.reordered(teachers)
    if policy == "oracle":
        return _oracle(table, prompt_ids)
    if policy == "mix":
        strong = random.random(prompts) < strong_share
        chosen = np.where(strong, int(mean_quality(table).argmax()), weak_teacher(table))
        drawn: NDArray[np.float32] = (chosen[:, None] == np.arange(len(teachers))).astype(np.float32)
        return drawn
    values = car_values(table, beta) if policy == "car" else mean_quality(table)
    if policy == "family-strong":
        member = np.array([student_family is not None and (families or {}).get(t) == student_family for t in teachers])
        if not member.any():
            raise ConfigError(
                f"The policy 'family-strong' found no teacher of the student's family {student_family!r}; "
                "set `family` of the teachers and `student_family`."
            )
        # A stranger is worse than every member, by the whole range: limits may still send prompts there.
        values = np.where(member, values, values - 2 * (np.ptp(values) + 1))
    return np.broadcast_to(values, (prompts, len(teachers)))


def _oracle(table: RewardTable, prompt_ids: Sequence[str] | None) -> NDArray[np.float64]:
    if prompt_ids is None:
        raise ConfigError("The policy 'oracle' needs `prompt_id` to find the prompts' own rewards in `probe`.")
    row_of = {identity: row for row, identity in enumerate(table.ids)}
    absent = [identity for identity in prompt_ids if identity not in row_of]
    if absent:
        raise DataError(
            f"The policy 'oracle' needs rewards of every prompt; `probe` has none of {len(absent)}, first {absent[0]}."
        )
    rewards = table.rewards[[row_of[identity] for identity in prompt_ids]]
    # An answer that failed is worse than any that did not.
    missing = np.nanmin(rewards) - 2 * (np.nanmax(rewards) - np.nanmin(rewards) + 1)
    return np.where(np.isnan(rewards), missing, rewards)
