from __future__ import annotations

import math

import numpy as np
import torch

from persyn_hf.routing.crossval import earns_its_place
from persyn_hf.routing.evaluate import judge_routes, judge_scores
from persyn_hf.routing.heads import (
    Head,
    bradley_terry_loss,
    expected_reward_loss,
    fit_path,
    pair_scale,
    shrunken_weights,
)
from persyn_hf.routing.intervals import bootstrap_means, gap_closed, interval
from persyn_hf.routing.verdict import prompts_needed

NAN = float("nan")


def test_bradley_terry_by_hand_ties_and_missing_make_no_pair() -> None:
    scores = torch.tensor([[1.0, 0.0, 5.0, 2.0]])
    rewards = torch.tensor([[0.9, 0.5, NAN, 0.5]])
    expected = (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(1.0))) / 2
    assert math.isclose(bradley_terry_loss(scores, rewards).item(), expected, rel_tol=1e-6)
    mask = torch.tensor([[True, True, True, False]])
    assert math.isclose(bradley_terry_loss(scores, rewards, mask).item(), math.log1p(math.exp(-1.0)), rel_tol=1e-6)
    assert bradley_terry_loss(scores, torch.full((1, 4), 0.5)).item() == 0.0


def test_margin_weights_pairs_by_their_difference() -> None:
    scores, rewards = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.4]])
    pairs = {(0, 1): 0.5, (0, 2): 0.6, (1, 2): 0.1}
    loss = sum(w * math.log1p(math.exp(-(scores[0, i] - scores[0, j]))) for (i, j), w in pairs.items()) / 1.2
    assert math.isclose(bradley_terry_loss(scores, rewards, margin=True).item(), loss, rel_tol=1e-5)


def test_expected_reward_by_hand() -> None:
    scores, rewards = torch.tensor([[0.0, math.log(3.0), 9.0]]), torch.tensor([[1.0, 0.2, NAN]])
    assert math.isclose(expected_reward_loss(scores, rewards).item(), -(0.25 * 1.0 + 0.75 * 0.2), rel_tol=1e-6)
    assert math.isclose(expected_reward_loss(scores, rewards, tau=1e-3).item(), -0.2, rel_tol=1e-6)


def test_strongest_regularisation_is_the_best_single_teacher() -> None:
    random = np.random.default_rng(0)
    features, rewards = random.normal(size=(40, 5)), random.random((40, 3))
    for objective in ("regression", "bradley-terry", "bradley-terry-margin"):
        (head,) = fit_path(objective, features, rewards, (1e6,))
        assert np.abs(head.weight).max() < 1e-5
        assert head(features).argmax(1).tolist() == [int(rewards.mean(0).argmax())] * 40


def test_expected_reward_starts_from_the_regression_and_earns_more_where_it_may() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 5))
    rewards = features @ random.normal(size=(5, 3)) * 0.3 + 0.3 * random.normal(size=(200, 3))
    (regression,) = fit_path("regression", features, rewards, (1.0,))
    strong, weak = fit_path("expected-reward", features, rewards, (1e6, 1e-4))
    scale = strong.means[0] / regression.means[0]
    np.testing.assert_allclose(strong.weight, scale * regression.weight, atol=1e-5)

    def earned(head: Head) -> float:
        return -expected_reward_loss(torch.from_numpy(head(features)), torch.from_numpy(rewards)).item()

    assert earned(weak) > earned(strong) + 0.01


def test_regression_finds_planted_weights_and_shrinks_noise_away() -> None:
    random = np.random.default_rng(0)
    features, planted = random.normal(size=(3000, 6)), random.normal(size=(6, 4))
    noise = random.normal(size=(3000, 4))
    (weight,) = shrunken_weights(features, features @ planted + 0.5 * noise, (1.0,))
    np.testing.assert_allclose(weight, planted, atol=0.05)
    (weight,) = shrunken_weights(features, noise, (1.0,))
    ordinary = np.linalg.lstsq(features, noise, rcond=None)[0]
    assert np.abs(weight).mean() < 0.8 * np.abs(ordinary).mean()


def test_teachers_that_vary_together_learn_from_each_other() -> None:
    random = np.random.default_rng(1)
    features, shared = random.normal(size=(60, 20)), random.normal(size=(20, 1)) * 0.3
    planted = shared @ np.ones((1, 8))
    rewards = features @ planted + random.normal(size=(60, 8))
    (together,) = shrunken_weights(features, rewards, (1.0,))
    alone = np.concatenate([shrunken_weights(features, rewards[:, [k]], (1.0,))[0] for k in range(8)], axis=1)
    assert np.square(together - planted).mean() < 0.7 * np.square(alone - planted).mean()


def test_missing_rewards_are_filled_from_the_other_teachers() -> None:
    random = np.random.default_rng(2)
    features, planted = random.normal(size=(400, 5)), random.normal(size=(5, 3))
    rewards = features @ planted + 0.3 * random.normal(size=(400, 3))
    rewards[random.random(400) < 0.3, 1] = NAN
    (weight,) = shrunken_weights(features, rewards, (1.0,))
    np.testing.assert_allclose(weight, planted, atol=0.08)
    assert shrunken_weights(np.zeros((9, 2)), rewards[:9], (1.0,))[0].tolist() == [[0.0] * 3] * 2


def test_a_router_must_be_more_than_lucky() -> None:
    gains = np.random.default_rng(0).normal(size=400)
    gains -= gains.mean()
    error = gains.std() / 20
    assert earns_its_place(gains + error)  # one standard error: 84%
    assert not earns_its_place(gains + 0.15 * error)  # 56%
    assert not earns_its_place(np.array([1.0, NAN])) and not earns_its_place(np.zeros(9))
    few = gains[:60] - gains[:60].mean()
    error = few.std() / 60**0.5
    assert not earns_its_place(few + error) and earns_its_place(few + 2 * error)  # a small probe: 95%


def test_pair_scale_recovers_the_scale_of_bradley_terry_scores() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(20000, 2)) * 2
    wins = random.random(20000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    rewards = np.stack([wins, ~wins], axis=1).astype(float)
    assert abs(pair_scale(scores / 7, rewards) - 7) < 0.3
    assert Head(np.ones(2), np.ones((3, 2))).scaled(2.0).means.tolist() == [2.0, 2.0]


def test_judging_by_hand() -> None:
    rewards = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5], [0.6, 0.4, 0.2]])
    routes = {"router": np.array([0, 2, 2, 0]), "best_single": np.zeros(4, int), "oracle": np.array([0, 2, 0, 0])}
    result = judge_routes(rewards, routes)
    assert math.isclose(result["router"].reward.mean, 0.775)
    assert math.isclose(result["router"].regret.mean, 0.125)
    assert math.isclose(result["router"].gap_closed.mean, (0.775 - 0.65) / (0.9 - 0.65))
    assert math.isclose(result["router"].hit1.mean, 0.75)
    scores = np.array([[2.0, 1.0, 0.0]] * 4)
    ranking = judge_scores(rewards, scores)
    assert math.isclose(ranking.pair_accuracy.mean, (3 + 0 + 2 + 3) / 12) and ranking.hit3.mean == 1.0


def test_perfectly_calibrated_scores_have_no_calibration_error() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(10000, 2))
    wins = random.random(10000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    rewards = np.stack([wins, ~wins], axis=1).astype(float)
    assert judge_scores(rewards, scores).calibration_error.mean < 0.025
    assert judge_scores(rewards, scores * 10).calibration_error.low > 0.2


def test_bootstrap_intervals_cover_the_mean_and_pair_their_columns() -> None:
    values = np.random.default_rng(3).normal(size=(400, 1)) + np.array([0.0, 1.0])
    values[::5, 0] = NAN
    draws = bootstrap_means(values[:, [0, 1, 1]], seed=1)
    assert draws.shape == (2000, 3) and (draws[:, 1] == draws[:, 2]).all()
    assert abs(draws[:, 1].std() - values[:, 1].std() / 20) < 0.003
    assert np.abs(draws.mean(axis=0)[:2] - np.nanmean(values, axis=0)).max() < 0.01
    np.testing.assert_array_equal(draws, bootstrap_means(values[:, [0, 1, 1]], seed=1))


def test_gap_and_needed_prompts() -> None:
    assert np.isnan(gap_closed(np.array(1.0), np.array(1.0), np.array(1.0)))
    assert interval(1.0, np.array([1.0, 1.0])).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    curve = [(100, 0.1 - 10 / 100), (200, 0.1 - 10 / 200), (400, 0.1 - 10 / 400)]
    needed = prompts_needed(curve, 1.0, 400)
    assert needed is not None
    total = 400 + needed
    assert 0.1 - 10 / total > 1.96 / math.sqrt(total) and 0.1 - 10 / (total * 0.95) <= 1.96 / math.sqrt(total * 0.95)
    assert prompts_needed([(100, -0.1), (200, -0.1)], 1.0, 200) is None
