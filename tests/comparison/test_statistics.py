"""Intervals and paired tests against values known by other means, and the tables made of them."""

import itertools

import numpy as np
import pytest
from scipy import stats

from persyn_hf.comparison.presentation import PolicyFacts, comparison_markdown, findings, plot_comparison
from persyn_hf.comparison.statistics import Outcome, holm, mean_interval, paired, summarise
from persyn_hf.errors import DataError

IDS = tuple(f"p{row}" for row in range(40))


def outcomes(values, student="s", evaluation="greedy", ids=IDS):
    """`values`: policy → matrix (seeds, prompts)."""
    return [
        Outcome(student, policy, seed, evaluation, tuple(row), ids)
        for policy, matrix in values.items()
        for seed, row in enumerate(matrix)
    ]


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    inside = 0
    for repeat in range(200):
        seeds, prompts = random.normal(0, 0.05, size=(8, 1)), random.normal(0, 0.3, size=(1, 50))
        found = mean_interval(0.5 + seeds + prompts + random.normal(0, 0.1, size=(8, 50)), seed=repeat)
        inside += found.low <= 0.5 <= found.high
    assert 0.88 <= inside / 200 <= 0.99


def test_p_over_seeds_is_the_paired_t_test():
    random = np.random.default_rng(1)
    one, other = random.random((5, 40)), random.random((5, 40))
    expected = stats.ttest_rel(one.mean(axis=1), other.mean(axis=1)).pvalue
    assert paired(one, other)[1] == pytest.approx(expected)


def test_p_over_prompts_is_the_share_of_sign_flips_as_extreme():
    random = np.random.default_rng(2)
    one, other = random.random((3, 8)), random.random((3, 8))
    difference = (one - other).mean(axis=0)
    flips = [abs(np.mean(difference * signs)) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean(np.array(flips) >= abs(difference.mean()) - 1e-12)
    assert paired(one, other)[2] == pytest.approx(expected)


def test_no_difference_is_no_difference():
    same = np.random.default_rng(3).random((5, 40))
    value, p_seeds, p_prompts = paired(same, same)
    assert (value.mean, value.low, value.high, p_seeds, p_prompts) == (0.0, 0.0, 0.0, 1.0, 1.0)
    assert paired(same[:1], same[:1])[1] is None


def test_holm_by_hand():
    # 3 · 0.01, then 2 · 0.02, then the largest so far over 1 · 0.03.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_summary_pairs_every_policy_with_the_reference():
    base = np.zeros((2, 40))
    better, best = base.copy(), base.copy()
    better[:, :10], best[:, :20] = 1.0, 1.0
    summary = summarise(outcomes({"strong": base, "persyn": better, "oracle": best}))
    assert [(cell.policy, cell.value.mean, cell.by_seed) for cell in summary.cells] == [
        ("strong", 0.0, (0.0, 0.0)), ("persyn", 0.25, (0.25, 0.25)), ("oracle", 0.5, (0.5, 0.5)),
    ]  # fmt: skip
    assert [(one.policy, one.value.mean) for one in summary.differences] == [("strong", 0.25), ("oracle", -0.25)]
    # Ten prompts that all differ one way: 2 of 2^10 flips are as extreme; the correction doubles it.
    assert summary.differences[0].p_prompts == pytest.approx(2 / 2**10, rel=0.5)
    assert all(one.p_holm >= one.p_prompts for one in summary.differences)
    assert summarise(outcomes({"strong": base})).differences == ()


def test_unlike_seeds_or_prompts_are_refused():
    whole, part = np.zeros((2, 40)), np.zeros((1, 40))
    with pytest.raises(DataError, match="same seeds"):
        summarise(outcomes({"strong": whole, "persyn": part}))
    other = outcomes({"persyn": whole}, ids=tuple(f"q{row}" for row in range(40)))
    with pytest.raises(DataError, match="same seeds and prompts"):
        summarise(outcomes({"strong": whole}) + other)


def facts(rewards, left_out=0):
    return [
        PolicyFacts("s", policy, 40, left_out, 12.0, reward, {"a": 0.75, "b": 0.25})
        for policy, reward in rewards.items()
    ]


def test_tables_and_explanation_state_the_numbers(tmp_path):
    scores = {"strong": 0.2, "car": 0.3, "persyn": 0.5, "oracle": 0.6}
    matrices = {policy: np.full((2, 40), value) for policy, value in scores.items()}
    summary = summarise(outcomes(matrices))
    own = facts({"strong": 0.4, "car": 0.5, "persyn": 0.6, "oracle": 0.9}, left_out=10)
    page = comparison_markdown(summary, own)
    assert "| PerSyn router | 0.500 [0.500, 0.500] | 0.600 | 12 | a 75%, b 25% |" in page
    assert "| Strong | greedy | +0.300 [+0.300, +0.300] |" in page
    lines = list(findings(summary, own, "s"))
    assert lines[0].startswith("Data: 10 of 50 prompts")
    assert "oracle with 0.600" in lines[1]
    assert "25% of that gap" in lines[2]  # (0.6 − 0.5) / (0.9 − 0.5)
    assert "rho +1.00" in lines[3]
    plot_comparison(summary, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
