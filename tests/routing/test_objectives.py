from __future__ import annotations

import math

import numpy as np
import torch

from persyn_hf.routing.crossval import gap_closed, interval
from persyn_hf.routing.heads import Head, fit_path, pair_scale, teacher_means
from persyn_hf.routing.metrics import judge_routes, judge_scores
from persyn_hf.routing.objectives import bradley_terry_loss, expected_reward_loss
from persyn_hf.routing.report import prompts_needed

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
    for objective in ("regression", "bradley-terry", "bradley-terry-margin", "expected-reward"):
        (head,) = fit_path(objective, features, rewards, (1e6,))
        assert np.abs(head.weight).max() < 1e-5
        assert head(features).argmax(1).tolist() == [int(rewards.mean(0).argmax())] * 40


def test_ridge_with_missing_rewards_matches_a_fit_per_teacher() -> None:
    random = np.random.default_rng(0)
    features, rewards = random.normal(size=(40, 5)), random.random((40, 3))
    rewards[::3, 1] = NAN
    (head,) = fit_path("regression", features, rewards, (0.1,))
    means = teacher_means(rewards)
    deviation = np.where(np.isnan(rewards), NAN, rewards - means)
    target = deviation - np.nanmean(deviation, axis=1, keepdims=True)
    for teacher in range(3):
        rows = ~np.isnan(target[:, teacher])
        x = features[rows]
        weight = np.linalg.solve(x.T @ x + 0.1 * rows.sum() * np.eye(5), x.T @ target[rows, teacher])
        np.testing.assert_allclose(head.weight[:, teacher], weight, atol=1e-10)


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
    accuracy, hit3, _ = judge_scores(rewards, scores)
    assert math.isclose(accuracy.mean, (3 + 0 + 2 + 3) / 12) and hit3.mean == 1.0


def test_perfectly_calibrated_scores_have_no_calibration_error() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(size=(40000, 2))
    wins = random.random(40000) < 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    _, _, error = judge_scores(np.stack([wins, ~wins], axis=1).astype(float), scores)
    assert error.mean < 0.015
    _, _, sure = judge_scores(np.stack([wins, ~wins], axis=1).astype(float), scores * 10)
    assert sure.mean > 0.2


def test_gap_and_needed_prompts() -> None:
    assert np.isnan(gap_closed(np.array(1.0), np.array(1.0), np.array(1.0)))
    assert interval(1.0, np.array([1.0, 1.0])).as_dict() == {"mean": 1.0, "low": 1.0, "high": 1.0}
    curve = [(100, 0.1 - 10 / 100), (200, 0.1 - 10 / 200), (400, 0.1 - 10 / 400)]
    needed = prompts_needed(curve, 1.0, 400)
    assert needed is not None
    total = 400 + needed
    assert 0.1 - 10 / total > 1.96 / math.sqrt(total) and 0.1 - 10 / (total * 0.95) <= 1.96 / math.sqrt(total * 0.95)
    assert prompts_needed([(100, -0.1), (200, -0.1)], 1.0, 200) is None
