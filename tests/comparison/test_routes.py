"""Allocations of every policy on an example small enough to do by hand."""

from collections import Counter

import numpy as np
import pytest

from persyn_hf.comparison.routes import Known, mean_reward, teachers_of
from persyn_hf.config import POLICIES
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.routing.rewards import RewardTable, read_rewards

IDS = [f"{row:016x}" for row in range(4)]
TEACHERS = ("big", "cousin", "plain")
QUALITY = {"big": [1, 1, 1, 0], "cousin": [1, 0, 1, 0], "plain": [1, 1, 0, 0]}  # means 0.75, 0.5, 0.5
LEARNABILITY = {"big": [-3, -3, -3, -3], "cousin": [-1, -1, -1, -1], "plain": [-0.5, -0.5, -0.5, -0.5]}
REWARD = {"big": [0.5, 0.9, 0.4, 0.1], "cousin": [0.8, 0.2, 0.7, 0.3], "plain": [0.6, 0.6, 0.3, 0.6]}


def table(ids=IDS):
    return read_rewards(
        {
            "prompt_id": [identity for identity in ids for _ in TEACHERS],
            "prompt": [f"prompt {identity}" for identity in ids for _ in TEACHERS],
            "teacher": [name for _ in ids for name in TEACHERS],
            "quality": [QUALITY[name][row] for row in range(len(ids)) for name in TEACHERS],
            "learnability": [LEARNABILITY[name][row] for row in range(len(ids)) for name in TEACHERS],
            "reward": [REWARD[name][row] for row in range(len(ids)) for name in TEACHERS],
        }
    )


@pytest.fixture
def known():
    families = {"big": "Grand", "cousin": "Small", "plain": "Small"}
    return Known(table(), ["big", "cousin", "cousin", "plain"], IDS, families, "Small", parallel=table())


def test_each_policy_by_hand(known):
    assert teachers_of("strong", known, 0) == ["big"] * 4  # 0.75 is the best mean quality
    assert teachers_of("family-strong", known, 0) in (["cousin"] * 4, ["plain"] * 4)  # both 0.5, not "big"
    assert teachers_of("persyn", known, 0) == ["big", "cousin", "cousin", "plain"]
    assert teachers_of("oracle", known, 0) == ["cousin", "big", "cousin", "plain"]
    # CAR, beta 3: big 0.75 / (1 + 3·3) = 0.075, cousin 0.5 / (1 + 3·1) = 0.125, plain 0.5 / (1 + 3·0.5) = 0.2.
    assert teachers_of("car", known, 0) == ["plain"] * 4


def test_car_without_the_loss_is_strong(known):
    from dataclasses import replace

    assert teachers_of("car", replace(known, beta=0.0), 0) == ["big"] * 4
    # At beta 0.1 the loss costs little: big 0.75 / 1.3 = 0.577, plain 0.5 / 1.05 = 0.476.
    assert teachers_of("car", replace(known, beta=0.1), 0) == ["big"] * 4


def test_mix_is_the_strong_teacher_and_one_weak_one_in_the_given_share(known):
    from dataclasses import replace

    many = [f"{row:016x}" for row in range(4000)]
    for share in (0.2, 0.5):
        drawn = Counter(teachers_of("mix", replace(known, ids=many, strong_share=share), 7))
        assert set(drawn) == {"big", "plain"}  # "plain" is the other teacher that the student finds most likely
        assert drawn["big"] / 4000 == pytest.approx(share, abs=0.03)
    one, same, other = (teachers_of("mix", replace(known, ids=many), seed) for seed in (1, 1, 2))
    assert one == same != other


def test_random_uses_every_teacher_alike(known):
    from dataclasses import replace

    many = [f"{row:016x}" for row in range(3000)]
    drawn = Counter(teachers_of("random", replace(known, ids=many), 3))
    assert set(drawn) == set(TEACHERS)
    assert all(count / 3000 == pytest.approx(1 / 3, abs=0.03) for count in drawn.values())


@pytest.mark.parametrize("policy", ["strong", "mix", "family-strong", "car", "random", "oracle"])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_comparison_and_an_allocation_route_alike(known, policy, seed):
    from datasets import Dataset

    from persyn_hf import allocate

    full = table()
    rows = [
        {
            "prompt_id": identity,
            "prompt": identity,
            "teacher": name,
            **{key: getattr(full, key)[row, column] for key in ("quality", "learnability")},
            "reward": full.rewards[row, column],
        }
        for row, identity in enumerate(full.ids)
        for column, name in enumerate(full.teachers)
    ]
    made = allocate(
        Dataset.from_dict({"prompt_id": IDS}),
        full.teachers,
        policy=policy,
        probe=Dataset.from_list(rows),
        families=known.families,
        student_family="Small",
        seed=seed,
    )
    assert made.routes == teachers_of(policy, known, seed)


def test_no_policy_earns_more_than_the_oracle(known):
    random = np.random.default_rng(0)
    rewards = random.random((50, 3))
    ids = [f"{row:016x}" for row in range(50)]
    full = RewardTable([f"p{row}" for row in range(50)], ids, list(TEACHERS), rewards, rewards, -rewards)
    probe = full.subset(range(20))
    routes = [TEACHERS[index] for index in random.integers(3, size=50)]
    everything = Known(probe, routes, ids, {"big": "Small"}, "Small", parallel=full)
    earned = {policy: mean_reward(full, ids, teachers_of(policy, everything, 0)) for policy in POLICIES}
    assert earned["oracle"] == pytest.approx(rewards.max(axis=1).mean())
    assert max(earned, key=earned.get) == "oracle"
    assert all(earned["oracle"] > value for policy, value in earned.items() if policy != "oracle")


def test_what_a_policy_lacks_is_named(known):
    from dataclasses import replace

    with pytest.raises(ConfigError, match="Small"):
        teachers_of("family-strong", replace(known, family="Large"), 0)
    with pytest.raises(DataError, match="every teacher's scored answer"):
        teachers_of("oracle", replace(known, parallel=None), 0)
