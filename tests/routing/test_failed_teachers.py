"""A teacher that mostly failed never wins, no policy passes the oracle, and nothing to compare is no number."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.routing.crossval import cross_validate
from persyn_hf.routing.evaluate import evaluate_router, judge_routes, judge_scores
from persyn_hf.routing.heads import count_missing, known_means, teacher_means
from persyn_hf.routing.intervals import bootstrap_means
from persyn_hf.routing.policies import Basis, policy_routes, weak_teacher
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.roster import add_teacher
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.training import fit_head, train_router
from persyn_hf.routing.verdict import policy_intervals, policy_rewards

from .conftest import make_scored

NAN = float("nan")


def outage(rows, teacher="alpha", left=6, reward=1.0):
    """The teacher answers its first prompts, all of them best, and fails from then on."""
    rows, count = [{"error": None, **row} for row in rows], 0
    for row in rows:
        if row["teacher"] == teacher:
            count += 1
            row["reward"] = reward if count <= left else None
            row["quality"] = row["reward"]
            row["error"] = None if count <= left else "HTTP 402: no credit"
    return rows


def test_a_missing_reward_counts_as_the_lowest():
    rewards = np.array([[0.5, NAN, 0.75], [0.25, 1.0, NAN], [NAN, NAN, NAN]])
    counted = count_missing(rewards)
    assert counted[:2].tolist() == [[0.5, 0.25, 0.75], [0.25, 1.0, 0.25]] and np.isnan(counted[2]).all()
    assert teacher_means(rewards).tolist() == [0.375, 0.625, 0.5]
    assert known_means(rewards).tolist() == [0.375, 1.0, 0.75]
    assert teacher_means(np.full((2, 3), NAN)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(12))
def test_no_policy_passes_the_oracle_whatever_is_missing(seed):
    random = np.random.default_rng(seed)
    prompts, teachers = int(random.integers(8, 40)), int(random.integers(2, 7))
    rewards = random.random((prompts, teachers)).round(2)
    rewards[random.random(rewards.shape) < random.random() * 0.8] = NAN
    rewards[random.integers(prompts), :] = 0.5  # something is known
    names = [f"t{column}" for column in range(teachers)]
    table = RewardTable(["p"] * prompts, ["p"] * prompts, names, rewards, rewards, -1.0 - rewards)
    basis = Basis(names, table, {names[-1]: "Kin"}, "Kin", rewards=rewards)
    routes = {name: policy_routes(name, basis, prompts, seed) for name in ("strong", "mix", "family-strong", "car")}
    routes |= {
        "best_single": np.full(prompts, table.means.argmax()),
        "oracle": policy_routes("oracle", basis, prompts),
    }
    routes |= {f"drawn {draw}": random.integers(teachers, size=prompts) for draw in range(5)}
    judged = judge_routes(rewards, routes, seed)
    top = judged["oracle"]
    for name, found in judged.items():
        assert found.reward.mean <= top.reward.mean and found.regret.low >= 0, name
        assert found.gap_closed is None or found.gap_closed.high <= 1 + 1e-9
    held_out = rewards[(~np.isnan(rewards)).sum(axis=1) >= 2]
    if len(held_out) >= 6:
        rounds = cross_validate("regression", random.standard_normal((len(held_out), 3)), held_out, 3, seed)
        policies, _, _ = policy_intervals(policy_rewards(held_out, rounds), seed)
        for name, found in policies.items():
            assert found.mean <= policies["oracle"].mean and found.high <= policies["oracle"].high, name


def test_a_teacher_that_died_is_told_and_left_out(tiny_bert, tmp_path):
    rows = outage(make_scored(60, learnable=False, noise=0.3, seed=3).to_list())
    with pytest.warns(UserWarning, match=r"'alpha' is left out: it answered 6 of 60 prompts; `router.min_answ"):
        router = train_router(rows, tiny_bert, "s", tmp_path, folds=3)
    assert sorted(router.teachers) == ["beta", "gamma"] and router.fallback == "beta"
    assert router.metadata["left_out"] == {"alpha": "answered 6 of 60 prompts"}
    held_out = router.metadata["held_out"]
    assert held_out["oracle"]["mean"] >= max(held_out[name]["mean"] for name in ("best_single", "router", "knn"))
    # Its answers are no strangers' where the router is judged.
    again = evaluate_router(router, outage(make_scored(40, seed=9).to_list()), show=False)
    assert again.teachers == 2


def test_kept_on_demand_it_is_still_no_best_teacher(tiny_bert):
    rows = outage(make_scored(60, learnable=False, noise=0.3, seed=3).to_list())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        router = train_router(rows, tiny_bert, "s", folds=3, min_answered=0)
        unnamed = train_router([row for row in rows if row["reward"] is not None], tiny_bert, "s", folds=3)
    assert router.teachers[-1] == "alpha" and router.fallback == "beta" and router.metadata["left_out"] == {}
    assert unnamed.fallback == "beta" and list(unnamed.metadata["left_out"]) == ["alpha"]


def test_judges_that_fail_everywhere_leave_nobody_out():
    rows = [dict(row, error=None) for row in make_scored(40).to_list()]
    for row in rows[:90]:  # 30 of 40 prompts of all teachers
        row["reward"] = None
    assert read_rewards(rows, "t", 0.5).left_out == {}
    for row in rows[90:]:
        if row["teacher"] == "beta":
            row["reward"] = None
    rows[90 + 1]["reward"] = 0.5
    assert read_rewards(rows, "t", 0.5).left_out == {"beta": "has rewards for 1 prompts, and another teacher has 10"}


def test_too_few_candidates_are_an_error_that_names_the_others():
    rows = outage(outage(make_scored(40).to_list(), "alpha"), "beta", left=3)
    with pytest.raises(DataError, match=r"1 teachers with rewards\. The teacher 'alpha' .*6 of 40.*'beta'.*3 of 40"):
        read_rewards(rows, "train_router", 0.5)
    rows = make_scored(10).to_list()
    rows[3]["reward"] = float("inf")
    with pytest.raises(DataError, match="finite numbers in the column `reward`"):
        read_rewards(rows)


def test_a_new_teacher_that_died_is_not_added(router_folder):
    router = PersynRouter.from_pretrained(router_folder)
    rows = make_scored(40, seed=8).to_list()
    rows += [dict(row, teacher="delta", reward=0.99 if n < 4 else None) for n, row in enumerate(rows[::3])]
    with pytest.raises(DataError, match=r"'delta' is left out: it answered 4 of 40"):
        add_teacher(router, rows)
    with pytest.raises(RouterMismatchError):
        add_teacher(router, make_scored(20))


def test_the_weak_teacher_of_mix_is_none_that_failed():
    quality = np.array([[0.9, 0.5, NAN], [0.9, 0.5, NAN], [0.9, 0.5, 0.8]])
    table = RewardTable(["p"] * 3, ["p"] * 3, ["a", "b", "c"], quality, quality, np.where(quality < 0.85, -0.1, -2))
    table.learnability[np.isnan(quality)] = NAN
    table.learnability[:, 1] = -0.5
    assert weak_teacher(table) == 1  # "c" is the most likely where it answered, which is one of three


def test_where_all_is_equal_there_is_no_gap_and_no_nan():
    table = RewardTable([f"p{n}" for n in range(12)], ["i"] * 12, ["a", "b"], np.full((12, 2), 0.5))
    head, report = fit_head(table, np.zeros((12, 0)), "regression", "best-single", 3, 0)
    assert report.gap_closed is None and report.fallback == "a" and report.more_prompts is None
    assert report.reason == (
        "There is no gap to close: 'a' earns as much as the oracle on held-out prompts; every prompt goes to it."
    )
    stored = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(stored)["gap_closed"] is None and "gap closed" not in str(report)
    assert np.isfinite(head(np.zeros((2, 0)))).all()


@pytest.mark.parametrize("objective", ["regression", "bradley-terry", "expected-reward"])
@pytest.mark.parametrize("features", [np.zeros((9, 4)), np.ones((9, 1))])
def test_constant_features_and_one_best_teacher_give_numbers(objective, features):
    rewards = np.tile([1.0, 0.0, NAN], (9, 1))
    rewards[0, 2] = 0.25
    table = RewardTable(["p"] * 9, ["p"] * 9, ["a", "b", "c"], rewards)
    _, report = fit_head(table, features, objective, "none", 3, 0)
    json.dumps(report.as_dict(), allow_nan=False)
    assert report.gap_closed is None and report.reason.endswith("any routes are as good.")


def test_judging_one_prompt_equal_rewards_or_none():
    rewards = np.array([[0.5, 0.5], [NAN, NAN]])
    routes = {"best_single": np.array([0, 0]), "oracle": np.array([1, 0])}
    judged = judge_routes(rewards, routes)["oracle"]
    assert (judged.reward.mean, judged.reward.low, judged.hit1.mean, judged.gap_closed) == (0.5, 0.5, 1.0, None)
    ranked = judge_scores(rewards, np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert ranked.pair_accuracy is None and ranked.calibration_error is None and ranked.hit3.mean == 1.0
    assert bootstrap_means(np.array([[2.0, 3.0]]), draws=4).tolist() == [[2.0, 3.0]] * 4
    with pytest.raises(DataError, match="got 3 prompts without any"):
        judge_routes(np.full((3, 2), NAN), {"best_single": np.zeros(3, int), "oracle": np.zeros(3, int)})


def test_routers_of_earlier_versions_are_read_without_nan(router_folder, tmp_path):
    router = PersynRouter.from_pretrained(router_folder)
    router.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["persyn"]["held_out"]["gap_closed"] = {"mean": NAN, "low": NAN, "high": NAN}
    config["persyn"]["held_out"]["knn"]["low"] = NAN
    (tmp_path / "config.json").write_text(json.dumps(config))
    held_out = PersynRouter.from_pretrained(tmp_path).metadata["held_out"]
    assert held_out["gap_closed"] is None and held_out["knn"]["low"] is None
