"""Solver for allocations: whole answers within every limit, and a proven upper bound on any allocation.

The solver searches for prices. With the right price for every teacher (and for one USD), each prompt's best teacher
after prices is the best overall allocation, by duality of the linear program. So the solver estimates prices on a
sample of prompts, fixes the prompts whose best teacher cannot change with a small error of the prices, and repeats
this on the rest, until HiGHS can solve the remaining few exactly. The prices also give a bound over all prompts; the
gap to it is reported, and is usually zero or one answer's difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.routing.allocation.limits import Array, Counts, Limits
from persyn_hf.routing.allocation.program import WINDOW, Prices, make_program

Choices = NDArray[np.integer[Any]]

#: Number of prompts in a linear program.
_SAMPLE = 2000
#: Share of the undecided prompts that stay undecided after a better estimate of the prices: several times the error of
#: the estimate, which is about one over the square root of a teacher's part of the sample.
_LEFT = 0.4
#: Precision of HiGHS's prices relative to the radius, with a safety factor of ten.
_PRECISION = 1e-6
#: Number of search nodes of an exact search, times its prompts.
_NODES = 10_000
#: Numbers of undecided prompts that HiGHS solves with whole answers, tried in turn until the bound is reached.
_CORES = (200, 1000)
#: Noise that breaks ties, relative to the range of the scores; the larger one is used if the smaller is not enough.
_NOISE = (1e-8, 1e-5)
#: Gap to the bound, relative to the total score, at which an allocation counts as optimal.
TOLERANCE = 5e-7
#: Maximum number of different rows of scores for which equal prompts are grouped.
_KINDS = 100
#: Number of prompts whose reduced scores are in memory at once.
_CHUNK = 1 << 16


_UNSOLVED = "The solver did not meet limits that can be met. This is a bug in persyn_hf; please report it."


@dataclass(frozen=True)
class Solution:
    """An allocation with an upper bound.

    Args:
        choices (`ndarray` of shape `(prompts, top_k)`): Teacher indices, best score first.
        total (`float`): Sum of the chosen scores.
        bound (`float`): Upper bound on the sum of any allocation within the limits.
    """

    choices: Choices
    total: float
    bound: float


def solve(scores: NDArray[np.floating], limits: Limits, seed: int = 0) -> Solution:
    """Finds the allocation with the largest sum of scores.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): Finite scores.
        limits (`Limits`): Limits that can be met (see [`make_limits`]).
        seed (`int`, defaults to 0): Random seed of the samples and of the noise that breaks ties.

    Returns:
        `Solution`: Allocation with `bound − total` at most 5e-7 of the total, unless the exact search reached its node
            limit.
    """
    random = np.random.default_rng(seed)
    values = scores.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    spread = max(high - low, 1e-12 * max(abs(high), abs(low)), 1e-300)
    start = Prices(np.zeros(values.shape[1]), 0.0)
    choices = _rank(values, start.of(limits), limits.top_k)[0]
    if limits.met_by(_count(choices, limits)):
        total = _total(scores, choices)
        return Solution(_best_first(scores, choices), total, total)
    kinds, kind, sizes = _kinds(values)
    if kinds is not None:
        return _by_kind(scores, kinds, kind, sizes, limits, spread, random)
    for noise in _NOISE:
        if len(values) > _CORES[0]:  # small sets are solved exactly, including ties
            for rows in range(0, len(values), _CHUNK):
                block = values[rows : rows + _CHUNK]
                block += random.random(block.shape) * (noise * spread)
        found = _decide(scores, values, limits, _estimate(values, limits, spread, random), spread)
        if found is not None:
            return found
    raise AssertionError(_UNSOLVED)


def _kinds(values: Array) -> tuple[Array | None, NDArray[np.intp], Counts]:
    """Groups equal rows if there are few different ones (a router that fell back scores all prompts alike)."""
    nothing = np.empty(0, dtype=np.int64)
    if len(values) <= _CORES[0] or len(np.unique(values[:: max(1, len(values) // 1000)], axis=0)) > _KINDS:
        return None, nothing, nothing
    kinds, kind, sizes = np.unique(values, axis=0, return_inverse=True, return_counts=True)
    return (kinds, kind.ravel(), sizes) if len(kinds) <= _KINDS else (None, nothing, nothing)


def _by_kind(
    scores: NDArray[np.floating],
    kinds: Array,
    kind: NDArray[np.intp],
    sizes: Counts,
    limits: Limits,
    spread: float,
    random: np.random.Generator,
) -> Solution:
    """Decides how many prompts of each group a teacher gets, then assigns them at random."""
    origin = Prices(np.zeros(kinds.shape[1]), 0.0)
    last = _rank(kinds, origin.teacher, limits.top_k)[1]
    nobody = np.zeros(kinds.shape[1], dtype=np.int64)
    program = make_program(kinds, last, nobody, 1.0, origin, spread, limits, sizes.astype(np.float64))
    answers, gap = program.whole(_NODES, 0.0)
    if answers is None:
        raise AssertionError(_UNSOLVED)
    choices = np.empty((len(scores), limits.top_k), dtype=np.int16)
    for number, size in enumerate(sizes):
        mine = program.rows == number
        # No teacher has more answers than there are prompts, so no prompt gets a teacher twice.
        dealt = np.repeat(program.teachers[mine], answers[mine]).reshape(limits.top_k, size).T
        choices[np.flatnonzero(kind == number)] = random.permutation(dealt)
    total = _total(scores, choices)
    return Solution(_best_first(scores, choices), total, total + gap)


def _estimate(values: Array, limits: Limits, spread: float, random: np.random.Generator) -> Prices:
    """Estimates the prices of the linear program over all prompts."""
    prices, radius, left = Prices(np.zeros(values.shape[1]), 0.0), spread, _LEFT
    for _ in range(60):
        choices, last, margin = _rank(values, prices.of(limits), limits.top_k)
        open_rows = np.flatnonzero(margin <= 2 * radius)
        everything = len(open_rows) <= _SAMPLE
        rows = open_rows if everything else random.choice(open_rows, _SAMPLE, replace=False)
        decided = _count(choices, limits) - _count(choices[open_rows], limits)
        program = make_program(
            values[rows], last[rows], decided, len(rows) / max(len(open_rows), 1), prices, radius, limits
        )
        prices, answers, money = program.relaxed()
        # A sample never has exactly its share of the remaining answers; small violations do not mean a wrong radius.
        if money > 1e-6 or answers > (1e-6 if everything else 0.02 * len(rows)):
            radius, left = min(radius * 2, spread), left**0.7
            continue
        if everything:
            return prices
        _, _, margin = _rank(values[rows], prices.of(limits), limits.top_k)
        closer = float(np.quantile(margin, left)) / 2
        radius = max(min(closer, radius / 2), _PRECISION * radius)
    return prices


def _decide(
    scores: NDArray[np.floating], values: Array, limits: Limits, prices: Prices, spread: float
) -> Solution | None:
    """Finds whole answers: all prompts follow the prices, except the most nearly tied ones, which HiGHS decides."""
    choices, last, margin = _rank(values, prices.of(limits), limits.top_k)
    bound = _bound(values, choices, prices, limits)
    enough = TOLERANCE * max(1.0, abs(bound)) if len(values) > _CORES[0] else 1e-8
    best: Solution | None = None

    def decide(rows: NDArray[np.intp], radius: float) -> float:
        """Decides these prompts and returns the gap to the best allocation that follows the prices elsewhere."""
        nonlocal best
        decided = _count(choices, limits) - _count(choices[rows], limits)
        program = make_program(values[rows], last[rows], decided, 1.0, prices, radius, limits)
        answers, open_gap = program.whole(max(1, _NODES // len(rows)), enough / 2)
        if answers is not None:
            made = choices.copy()
            made[rows] = np.repeat(program.teachers, answers).reshape(len(rows), limits.top_k)
            total = _total(scores, made)
            open_gap += max(0.0, _total(values, made) - total)  # the noise, which the bound contains
            if best is None or total > best.total:
                best = Solution(_best_first(scores, made), total, max(bound, total))
        return open_gap

    for size in _CORES:
        size = min(size, len(values))
        rows = np.sort(np.argpartition(margin, size - 1)[:size])
        decide(rows, max(float(margin[rows].max()) / 2, 1e-4 * spread))
        if best is not None and best.bound - best.total <= enough:
            break
        # A choice that costs a prompt more than the whole gap is in no better allocation, so only the rest is open.
        gap = 2 * spread if best is None else best.bound - best.total
        rows = np.flatnonzero(margin <= gap)
        if len(rows) <= _CORES[-1]:
            open_gap = decide(rows, gap / WINDOW)
            if best is not None:
                best = replace(best, bound=min(best.bound, best.total + open_gap))
                break
    return best


def _rank(values: Array, prices: Array, top_k: int) -> tuple[Choices, Array, Array]:
    """Returns each prompt's best teachers after prices, the last one's reduced score, and its lead over the next."""
    count, teachers = values.shape
    choices = np.empty((count, top_k), dtype=np.int16)
    last: Array = np.empty(count)
    margin: Array = np.full(count, np.inf)
    for start in range(0, count, _CHUNK):
        reduced = values[start : start + _CHUNK] - prices
        rows = np.arange(len(reduced))
        for rank in range(top_k):
            best = reduced.argmax(axis=1)
            choices[start : start + len(rows), rank] = best
            last[start : start + len(rows)] = reduced[rows, best]
            reduced[rows, best] = -np.inf
        if top_k < teachers:
            margin[start : start + len(rows)] = last[start : start + len(rows)] - reduced.max(axis=1)
    return choices, last, margin


def _bound(values: Array, choices: Choices, prices: Prices, limits: Limits) -> float:
    """Computes the Lagrangian dual at the given prices, an upper bound on any allocation within the limits."""
    rows = np.arange(len(values))[:, None]
    reduced = float((values[rows, choices] - prices.of(limits)[choices]).sum())
    bounds = np.where(prices.teacher > 0, limits.upper, limits.lower)
    paid = prices.budget * limits.budget if prices.budget > 0 else 0.0
    return reduced + float(prices.teacher @ bounds) + paid


def _count(choices: Choices, limits: Limits) -> Counts:
    counts: Counts = np.bincount(choices.ravel(), minlength=len(limits.cost)).astype(np.int64)
    return counts


def _total(scores: NDArray[np.floating], choices: Choices) -> float:
    return float(np.take_along_axis(scores, choices.astype(np.int64), axis=1).sum(dtype=np.float64))


def _best_first(scores: NDArray[np.floating], choices: Choices) -> Choices:
    if choices.shape[1] == 1:
        return choices
    order = np.argsort(-np.take_along_axis(scores, choices.astype(np.int64), axis=1), axis=1, kind="stable")
    ordered: Choices = np.take_along_axis(choices, order, axis=1)
    return ordered
