"""Baselines through the same door as the router's own scores, and what becomes of several answers."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from persyn_hf import Teacher, allocate, keep_best
from persyn_hf.columns import prompt_id
from persyn_hf.errors import ConfigError, DataError, MissingColumnError
from persyn_hf.routing.policies import Basis, policy_routes, policy_scores, prompt_rewards
from persyn_hf.routing.rewards import RewardTable

TEACHERS = ["big", "kin", "near"]
#: Quality and learnability: big is strongest, near the most likely to the student, kin of the student's family.
MEANS = {"big": (0.9, -2.0), "kin": (0.7, -1.0), "near": (0.4, -0.1)}


@pytest.fixture
def probe() -> Dataset:
    random = np.random.default_rng(0)
    rows = []
    for number in range(40):
        for name, (quality, learnability) in MEANS.items():
            noise = float(random.normal() * 0.3)
            rows.append(
                {"prompt_id": prompt_id(str(number)), "prompt": str(number), "teacher": name,
                 "quality": quality + noise, "learnability": learnability, "reward": quality + noise}
            )  # fmt: skip
    return Dataset.from_list(rows)


@pytest.fixture
def prompts() -> Dataset:
    texts = [str(number) for number in range(40)]
    return Dataset.from_dict({"prompt_id": [prompt_id(text) for text in texts], "prompt": texts})


def test_strong_and_car_give_everything_to_one(probe: Dataset, prompts: Dataset) -> None:
    assert set(allocate(prompts, TEACHERS, policy="strong", probe=probe).routes) == {"big"}
    # 0.9 / (1 + 3·2) = 0.13, 0.7 / (1 + 3·1) = 0.18, 0.4 / (1 + 3·0.1) = 0.31
    assert set(allocate(prompts, TEACHERS, policy="car", probe=probe).routes) == {"near"}
    assert set(allocate(prompts, TEACHERS, policy="car", beta=0.0, probe=probe).routes) == {"big"}


def test_limits_hold_for_baselines_too(probe: Dataset, prompts: Dataset) -> None:
    made = allocate(prompts, TEACHERS, policy="strong", probe=probe, max_share=0.5)
    assert made.counts == {"big": 20, "kin": 20, "near": 0}
    cost = {"big": 1.0, "kin": 0.1, "near": 0.1}
    assert allocate(prompts, TEACHERS, policy="strong", probe=probe, budget=13.0, cost=cost).counts["big"] == 10


def test_mix_is_one_to_one_unless_told(probe: Dataset) -> None:
    many = Dataset.from_dict({"prompt": [str(number) for number in range(4000)]})
    shares = allocate(many, TEACHERS, policy="mix", probe=probe, seed=1).shares
    assert abs(shares["big"] - 0.5) < 0.03 and shares["kin"] == 0 and abs(shares["near"] - 0.5) < 0.03
    fifth = allocate(many, TEACHERS, policy="mix", strong_share=0.2, probe=probe, seed=1).shares
    assert abs(fifth["big"] - 0.2) < 0.03


def test_family_strong(probe: Dataset, prompts: Dataset) -> None:
    shared = {"model": "m", "backend": "local"}
    teachers = [Teacher(name=name, family="Kin" if name != "big" else "Other", **shared) for name in TEACHERS]
    made = allocate(prompts, teachers, policy="family-strong", student_family="Kin", probe=probe)
    assert set(made.routes) == {"kin"}
    capped = allocate(prompts, teachers, policy="family-strong", student_family="Kin", probe=probe, max_share=0.4)
    assert capped.counts == {"big": 8, "kin": 16, "near": 16}  # a stranger only where it must be
    with pytest.raises(ConfigError, match=r"'Qwen2\.5'"):
        allocate(prompts, teachers, policy="family-strong", student_family="Qwen2.5", probe=probe)


def test_oracle_and_random(probe: Dataset, prompts: Dataset) -> None:
    made = allocate(prompts, TEACHERS, policy="oracle", probe=probe)
    rewards = np.array(probe["reward"][:]).reshape(40, 3)
    assert made.routes == [TEACHERS[index] for index in rewards.argmax(axis=1)]
    assert made.expected_reward == pytest.approx(rewards.max(axis=1).mean())
    drawn = allocate(prompts, TEACHERS, policy="random", seed=2)
    assert set(drawn.routes) == set(TEACHERS)
    assert drawn.routes == allocate(prompts, TEACHERS, policy="random", seed=2).routes
    with pytest.raises(DataError, match="none of 1, first"):
        allocate(Dataset.from_dict({"prompt_id": ["x"]}), TEACHERS, policy="oracle", probe=probe)


@pytest.fixture
def table() -> RewardTable:
    """Three prompts: "a" is strongest, "b" the most likely to the student, "c" of its family; some answers failed."""
    nan = float("nan")
    rewards = np.array([[0.2, 0.9, nan], [0.6, 0.1, 0.3], [nan, 0.4, 0.4]])
    quality = np.array([[0.9, 0.4, 0.5], [0.8, 0.3, 0.6], [0.7, 0.2, nan]])
    learnability = np.array([[-3.0, -0.2, -1.0], [-3.0, -0.4, -1.0], [-3.0, -0.3, nan]])
    return RewardTable(["1", "2", "3"], ["x", "y", "z"], ["a", "b", "c"], rewards, quality, learnability)


def test_scores_of_every_policy_by_hand(table: RewardTable) -> None:
    basis = Basis(table.teachers, table, {"c": "Kin", "a": "Other"}, "Kin", table.rewards)
    # What is missing of "c" counts as the lowest: quality (0.5 + 0.6 + 0.2) / 3, learnability (-1 - 1 - 3) / 3.
    assert policy_scores("strong", basis, 2) == pytest.approx(np.array([[0.8, 0.3, 1.3 / 3]] * 2))
    # 0.8 / (1 + 3·3), 0.3 / (1 + 3·0.3), 1.3 / 3 / (1 + 3·5/3)
    assert policy_scores("car", basis, 1) == pytest.approx(np.array([[0.08, 0.3 / 1.9, 1.3 / 18]]))
    family = policy_scores("family-strong", basis, 1)[0]
    assert family[2] == pytest.approx(1.3 / 3) and family[2] > family[0] > family[1]  # a stranger is the last resort
    oracle = policy_scores("oracle", basis, 3)
    assert oracle[0, :2].tolist() == [0.2, 0.9] and oracle[0, 2] == oracle[2, 0] < 0.1  # failed: below all others
    assert policy_routes("oracle", basis, 3).tolist() == [1, 0, 1]  # the first of equals


def test_draws_are_those_of_their_seed() -> None:
    """Another draw would ask teachers again for what was paid for: comparisons go on where they stopped."""
    means = RewardTable(["p"], ["p"], ["a", "b", "c"], np.array([[1.0, 0.5, 0.2]]), np.array([[1.0, 0.5, 0.2]]))
    basis = Basis(means.teachers, means)
    assert policy_routes("mix", basis, 12, seed=1).tolist() == [2, 2, 0, 2, 0, 0, 2, 0, 2, 0, 2, 2]
    assert policy_routes("random", basis, 12, seed=1).tolist() == [1, 1, 2, 2, 0, 0, 2, 2, 0, 0, 2, 1]
    many = policy_routes("random", basis, 3000, seed=7)
    assert np.bincount(many) / 3000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_limits_move_random_prompts_to_random_teachers(prompts: Dataset) -> None:
    free = allocate(prompts, TEACHERS, policy="random", seed=3)
    capped = allocate(prompts, TEACHERS, policy="random", seed=3, max_share={"big": 0.1})
    moved = [now for before, now in zip(free.routes, capped.routes, strict=True) if before == "big" != now]
    assert capped.counts["big"] == 4 and len(moved) == free.counts["big"] - 4
    assert set(moved) == {"kin", "near"}
    kept = [b == n for b, n in zip(free.routes, capped.routes, strict=True) if b != "big"]
    assert all(kept)  # nobody else is moved


def test_rewards_of_prompts_that_a_table_lacks_are_unknown(table: RewardTable) -> None:
    found = prompt_rewards(table, ["y", "unheard", "x"])
    assert found[[0, 2], :2].tolist() == [[0.6, 0.1], [0.2, 0.9]] and np.isnan(found[1]).all()
    # All teachers are equal there: the first, which is the best on average.
    assert policy_routes("oracle", Basis(table.teachers, rewards=found), 3).tolist() == [0, 0, 1]


def test_a_policy_without_its_basis_is_refused(table: RewardTable) -> None:
    with pytest.raises(ConfigError, match="must be one of persyn, strong, mix, family-strong, car, random, oracle"):
        policy_scores("family_strong", Basis(table.teachers, table), 3)
    with pytest.raises(ConfigError, match="'persyn' needs the scores of a router"):
        policy_scores("persyn", Basis(table.teachers, table), 3)
    with pytest.raises(ConfigError, match="'oracle' needs the rewards of every teacher's answer"):
        policy_scores("oracle", Basis(table.teachers, table), 3)
    with pytest.raises(ConfigError, match=r"family \(none is given\); teachers have Kin, Other"):
        policy_scores("family-strong", Basis(table.teachers, table, {"c": "Kin", "a": "Other"}), 3)


def test_a_baseline_says_what_it_lacks(probe: Dataset, prompts: Dataset) -> None:
    with pytest.raises(ConfigError, match="'strong' needs scored answers"):
        allocate(prompts, TEACHERS, policy="strong")
    with pytest.raises(DataError, match="`quality`"):
        allocate(prompts, TEACHERS, policy="strong", probe=probe.remove_columns("quality"))
    with pytest.raises(DataError, match="scored answers of newcomer"):
        allocate(prompts, [*TEACHERS, "newcomer"], policy="strong", probe=probe)


def test_the_best_of_several_answers_is_kept() -> None:
    scored = Dataset.from_dict(
        {
            "prompt_id": ["p", "q", "r", "s", "p", "q", "r", "s"],
            "teacher": ["a", "a", "a", "a", "b", "b", "b", "b"],
            "reward": [0.1, 0.9, None, None, 0.7, 0.9, float("nan"), 0.2],
            "error": [None, None, "gone", "gone", None, None, "gone", None],
        }
    )
    best = keep_best(scored)
    assert best["prompt_id"][:] == ["p", "q", "r", "s"]
    assert best["teacher"][:] == ["b", "a", "a", "b"]
    assert best["error"][2] == "gone"
    with pytest.raises(MissingColumnError, match="`quality`"):
        keep_best(scored, by="quality")
