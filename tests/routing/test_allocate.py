"""Allocation: the optimum of HiGHS on small sets, a proven bound on larger ones, and limits that contradict."""

from __future__ import annotations

import re

import numpy as np
import pytest
from datasets import Dataset
from scipy.optimize import Bounds, LinearConstraint, milp

from persyn_hf import Teacher, allocate
from persyn_hf.errors import AllocationError, ConfigError, DataError, RouterMismatchError
from persyn_hf.routing.allocation import solver
from persyn_hf.routing.allocation.allocate import answer_costs, answer_rates
from persyn_hf.routing.allocation.limits import Limits, make_limits
from persyn_hf.routing.allocation.result import win_rates


def highs(scores: np.ndarray, limits: Limits) -> float:
    """The largest sum, from one plain program over all pairs."""
    prompts, teachers = scores.shape
    rows = [np.kron(np.eye(prompts), np.ones(teachers)), np.kron(np.ones(prompts), np.eye(teachers))]
    low = [np.full(prompts, limits.top_k), limits.lower]
    high = [np.full(prompts, limits.top_k), limits.upper]
    if np.isfinite(limits.budget):
        rows.append(np.tile(limits.cost, prompts)[None])
        low.append(np.array([-np.inf]))
        high.append(np.array([limits.budget]))
    found = milp(
        -scores.ravel(), integrality=np.ones(scores.size), bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.concatenate(rows), np.concatenate(low), np.concatenate(high)),
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    return float(-found.fun)


def random_case(random: np.random.Generator) -> tuple[np.ndarray, list[str], int, dict]:
    """Scores, teachers, `top_k` and limits, each kind of limit in some cases; one case in four has many ties."""
    prompts, teachers = int(random.integers(5, 60)), int(random.integers(2, 7))
    top_k = int(random.integers(1, min(teachers, 3) + 1))
    scores = random.normal(size=(prompts, teachers)) + random.normal(size=teachers)
    if random.random() < 0.25:
        scores = np.round(scores, 1)
    names = [f"t{index}" for index in range(teachers)]
    limits: dict = {}
    if random.random() < 0.6:
        limits["max_share"] = float(random.uniform(top_k / teachers, 1))
    if random.random() < 0.5:
        limits["min_share"] = {name: float(random.uniform(0, 0.8 * top_k / teachers)) for name in names[:-1]}
    if random.random() < 0.7:
        cost = dict(zip(names, random.uniform(0.1, 3, teachers), strict=True))
        low, mean = min(cost.values()), float(np.mean(list(cost.values())))
        limits |= {"cost": cost, "budget": float(prompts * top_k * random.uniform(low, mean))}
    if random.random() < 0.5:
        rate = dict(zip(names, random.uniform(0.5, 5, teachers), strict=True))
        seconds = float(prompts * top_k / sum(rate.values()) * random.uniform(1, 3))
        limits |= {"throughput": rate, "makespan": "shortest" if random.random() < 0.3 else seconds}
    return scores, names, top_k, limits


@pytest.mark.parametrize("small_steps", [False, True], ids=["at once", "prices from samples"])
def test_the_optimum_of_highs_under_every_limit(small_steps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if small_steps:  # the way of large sets: prices from samples, then the closest calls
        monkeypatch.setattr(solver, "_SAMPLE", 12)
        monkeypatch.setattr(solver, "_CORES", (8, 100))
    random, solved, refused = np.random.default_rng(11 + small_steps), 0, 0
    for _ in range(70):
        scores, names, top_k, given = random_case(random)
        try:
            limits = make_limits(names, len(scores), top_k, **given)
        except AllocationError:
            refused += 1
            continue
        made = allocate(scores, names, top_k=top_k, **given)
        best = highs(scores, limits)
        assert abs(made.total - best) <= 1e-6, given
        assert best - 1e-6 <= made.bound <= best + 1e-6
        assert limits.met_by(np.array(list(made.counts.values())))
        assert made.choices.shape == (len(scores), top_k)
        assert all(len(set(own)) == top_k for own in made.choices.tolist())
        assert made.total == pytest.approx(np.take_along_axis(scores, made.choices.astype(int), 1).sum(), abs=1e-9)
        solved += 1
    assert solved > 25 and refused > 5


def test_what_is_refused_cannot_be_done() -> None:
    """Every case that is called contradictory has no solution, by HiGHS over all pairs."""
    random, refused = np.random.default_rng(5), 0
    for _ in range(60):
        scores, names, top_k, given = random_case(random)
        given.pop("makespan", None)
        try:
            make_limits(names, len(scores), top_k, **given)
        except AllocationError:
            shares = {key: given.get(key) for key in ("max_share", "min_share")}
            loose = make_limits(names, len(scores), top_k, cost=given.get("cost"))
            free = {name: (given["min_share"] or {}).get(name, 0.0) for name in names} if shares["min_share"] else {}
            lower = np.array([np.ceil(free.get(name, 0.0) * len(scores) - 1e-9) for name in names])
            upper = np.full(len(names), np.floor((shares["max_share"] or 1.0) * len(scores) + 1e-9))
            tight = Limits(lower.astype(int), upper.astype(int), loose.cost, given.get("budget", np.inf), top_k)
            with pytest.raises(TypeError):  # HiGHS has no solution to negate
                highs(scores, tight)
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("kind", ["plain", "ties", "alike", "two teachers each"])
def test_thousands_of_prompts_come_with_a_proof(kind: str) -> None:
    random = np.random.default_rng(0)
    prompts, teachers = 2000, 8
    scores = (random.normal(size=(prompts, teachers)) + random.normal(size=teachers)).astype(np.float32)
    if kind == "ties":
        scores = np.round(scores, 1)
    if kind == "alike":
        scores = np.broadcast_to(scores[0], scores.shape)
    names = [f"t{index}" for index in range(teachers)]
    top_k = 2 if kind == "two teachers each" else 1
    cost = dict(zip(names, np.linspace(0.5, 2.0, teachers), strict=True))
    made = allocate(
        scores, names, top_k=top_k, max_share=0.25 * top_k, min_share=0.02, cost=cost, budget=1.05 * prompts * top_k
    )
    assert made.cost is not None and made.cost <= 1.05 * prompts * top_k + 1e-6
    assert all(0.02 <= share <= 0.25 * top_k for share in made.shares.values())
    assert made.gap <= 1e-4 * abs(made.total)  # it says itself how good it is
    assert made.bound >= made.total
    assert made.mean_score < made.best_score


def test_shares_alone_are_solved_exactly_at_any_size() -> None:
    random = np.random.default_rng(1)
    scores, names = random.normal(size=(20000, 6)), [f"t{index}" for index in range(6)]
    made = allocate(scores, names, max_share=0.18)
    assert made.gap <= 1e-6 * made.total
    assert max(made.shares.values()) <= 0.18


def test_without_limits_every_prompt_gets_its_best() -> None:
    scores = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    made = allocate(scores, list("abcd"))
    assert (made.choices[:, 0] == scores.argmax(axis=1)).all()
    assert made.gap == 0 and made.mean_score == made.best_score


def test_all_finish_together() -> None:
    scores = np.random.default_rng(0).normal(size=(1000, 3))
    rate = {"slow": 1.0, "medium": 2.0, "fast": 7.0}
    made = allocate(scores, list(rate), makespan="shortest", throughput=rate)
    assert made.counts == {"slow": 100, "medium": 200, "fast": 700}
    assert made.makespan == pytest.approx(100.0)
    assert made.seconds == pytest.approx({"slow": 100.0, "medium": 100.0, "fast": 100.0})
    looser = allocate(scores, list(rate), makespan=150.0, throughput=rate)
    assert looser.makespan is not None and 100 < looser.makespan <= 150 and looser.mean_score > made.mean_score


CONTRADICTIONS = [
    ({"max_share": 0.3}, "`max_share` allows 90 answers in total, but 100 prompts with `top_k` 1 need 100: 10 too"),
    ({"min_share": 0.4}, "`min_share` requires 120 answers in total, but 100 prompts with `top_k` 1 have 100:"),
    ({"min_share": {"a": 0.5}, "max_share": 0.4}, "a: `min_share` requires 50 of the 100 prompts, but `max_share`"),
    (
        {"budget": 100.0, "cost": {"a": 1, "b": 2, "c": 3}, "max_share": 0.5},
        "`budget` of 100 USD is 50 USD too little: the cheapest allocation within the shares costs 150 USD (a",
    ),
    (
        {"makespan": 10.0, "throughput": {"a": 1, "b": 2, "c": 5}},
        "`makespan` of 10 s cannot be met: the teachers can give only 80 of the 100 answers in that time. The",
    ),
    (
        {"makespan": 15.0, "throughput": {"a": 1, "b": 2, "c": 5}, "min_share": {"a": 0.3}},
        "`makespan` of 15 s cannot be met: `min_share` alone takes a 30 s. The shortest within the other",
    ),
]


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS)
def test_contradictions_are_explained(given: dict, message: str) -> None:
    with pytest.raises(AllocationError, match=re.escape(message)):
        allocate(np.zeros((100, 3)), ["a", "b", "c"], **given)


WRONG = [
    ({"max_share": 1.2}, "`max_share` must be between 0 and 1, got 1.2 for a"),
    ({"min_share": {"z": 0.1}}, "`min_share` names z; the teachers are a, b, c"),
    ({"budget": 1.0}, "`budget` needs `cost`"),
    ({"budget": 1.0, "cost": {"a": 1}}, "`cost` lacks b, c"),
    ({"makespan": 5.0}, "`makespan` needs `throughput`"),
    ({"makespan": 5.0, "throughput": {"a": 1, "b": 0, "c": 1}}, "`throughput` must be positive, got 0 for b"),
    ({"top_k": 4}, "`top_k` must be between 1 and the number of teachers, 3, got 4"),
    ({"temperature": -1.0}, "`temperature` must be non-negative"),
    ({"policy": "best"}, "`policy` must be one of persyn, strong"),
    ({"scale": "points"}, "`scale` must be one of bradley-terry, win-rate, reward"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_wrong_settings_are_named(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        allocate(np.zeros((10, 3)), ["a", "b", "c"], **given)


def test_wrong_scores_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(prompts, 2\)"):
        allocate(np.zeros((3, 3)), ["a", "b"])
    with pytest.raises(DataError, match="row 1"):
        allocate(np.array([[0.0, 1.0], [np.nan, 1.0]]), ["a", "b"])
    with pytest.raises(DataError, match="prompts to allocate, got an empty table"):
        allocate(np.zeros((0, 2)), ["a", "b"])
    ragged = Dataset.from_dict({"route_scores": [[0.0, 1.0], [1.0]]})
    with pytest.raises(DataError, match="one length"):
        allocate(ragged, ["a", "b"])


def test_temperature_samples_the_softmax_and_keeps_limits() -> None:
    scores = np.broadcast_to(np.log([0.6, 0.3, 0.1]) * 2.0, (20000, 3))
    made = allocate(scores, list("abc"), temperature=2.0, seed=3)
    assert [round(share, 1) for share in made.shares.values()] == [0.6, 0.3, 0.1]
    assert np.abs(np.array(list(made.shares.values())) - [0.6, 0.3, 0.1]).max() < 4 * np.sqrt(0.25 / 20000)
    again = allocate(scores, list("abc"), temperature=2.0, seed=3)
    assert (made.choices == again.choices).all()
    assert (made.choices != allocate(scores, list("abc"), temperature=2.0, seed=4).choices).any()
    capped = allocate(scores, list("abc"), temperature=2.0, max_share=0.4, seed=3)
    assert capped.counts["a"] == 8000 and capped.counts["b"] > capped.counts["c"] > 2000
    both = allocate(scores, list("abc"), temperature=2.0, top_k=2, seed=3)
    first = np.array([0.6, 0.3, 0.1])  # Plackett–Luce: the second is drawn among those that are left
    expected = first + sum(first[other] * np.where(np.arange(3) == other, 0, first) / (1 - first[other])
                           for other in range(3))  # fmt: skip
    assert np.abs(np.array(list(both.shares.values())) - expected).max() < 0.02


def test_win_rates_by_hand() -> None:
    scores = np.array([[0.0, np.log(3.0), 0.0]])
    expected = [(0.25 + 0.5) / 2, 0.75, (0.5 + 0.25) / 2]
    np.testing.assert_allclose(win_rates(scores)[0], expected)
    assert win_rates(scores, np.array([[1]]))[0, 0] == pytest.approx(0.75)
    made = allocate(scores, list("abc"))
    assert made.expected_reward == pytest.approx(0.75)
    assert allocate(scores, list("abc"), scale="win-rate").total == pytest.approx(0.75)
    assert allocate(scores, list("abc"), scale="reward").expected_reward == pytest.approx(np.log(3.0))


def test_tables_carry_routes() -> None:
    scores = np.array([[2.0, 0.0, 1.0], [1.0, 0.5, 0.7], [0.3, 0.0, 0.2]], dtype=np.float32)
    routed = Dataset.from_dict({"prompt": ["x", "y", "z"], "route": ["a"] * 3, "route_scores": list(scores)})
    made = allocate(routed.select([2, 0, 1]), list("abc"), top_k=2, max_share={"c": 0.4})
    table = made.apply(routed.select([2, 0, 1]))
    assert table["prompt"][:] == ["z", "x", "y"] and table["route"][:] == ["a"] * 3
    assert sorted(map(tuple, table["routes"][:])) == [("a", "b"), ("a", "b"), ("a", "c")]
    assert table["routes"][1] == ["a", "c"]  # where the second best is worth most
    first, second = made.rounds(routed.select([2, 0, 1]))
    assert first["route"][:] == ["a"] * 3 and second["route"][:] == ["b", "c", "b"]
    assert "routes" not in first.column_names


def test_teachers_in_another_order_are_noticed() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    routes = [["a", "b"][index] for index in scores.argmax(axis=1)]
    routed = Dataset.from_dict({"route": routes, "route_scores": list(scores)})
    assert allocate(routed, ["a", "b"]).routes == routes
    with pytest.raises(RouterMismatchError, match="in the order of the scores"):
        allocate(routed, ["b", "a"])
    with pytest.raises(RouterMismatchError, match="`route` names a"):
        allocate(routed, ["x", "b"])


def test_costs_and_rates_of_configured_teachers() -> None:
    shared = {"model": "org/m", "endpoint": "http://127.0.0.1:1"}
    teachers = [
        Teacher(name="a", price_per_million_prompt_tokens=2, price_per_million_completion_tokens=10,
                max_concurrency=4, **shared),
        Teacher(name="b", sampling={"max_tokens": 100}, price_per_million_completion_tokens=1, **shared),
    ]  # fmt: skip
    costs = answer_costs(teachers, {"a": 500, "b": 200}, prompt_tokens=50)
    assert costs == pytest.approx({"a": (50 * 2 + 500 * 10) / 1e6, "b": 200 / 1e6})
    assert answer_costs(teachers)["b"] == pytest.approx(100 / 1e6)
    deep = Teacher(
        name="a",
        price_per_million_prompt_tokens=2,
        price_per_million_cached_tokens=1,
        price_per_million_completion_tokens=10,
        price_per_million_reasoning_tokens=50,
        **shared,
    )
    thought = answer_costs([deep, teachers[1]], 500, 50, {"a": 20}, {"a": 400})
    assert thought["a"] == pytest.approx((30 * 2 + 20 * 1 + 100 * 10 + 400 * 50) / 1e6)
    rates = answer_rates(teachers, {"a": 500, "b": 200}, tokens_per_second=25)
    assert rates == pytest.approx({"a": 4 * 25 / 500, "b": 32 * 25 / 200})
    with pytest.raises(ConfigError, match="none for b"):
        answer_costs(teachers, {"a": 500})
    made = allocate(np.zeros((1000, 2)), teachers, budget=1.0, cost=costs)
    assert made.cost is not None and made.cost <= 1.0
