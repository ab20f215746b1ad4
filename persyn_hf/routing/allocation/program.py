"""The linear program of an allocation for some of the prompts, scaled so that the solver's tolerances are negligible.

It uses *reduced* scores: a teacher's score minus its price. At the right prices, each prompt's best teacher gives the
best overall allocation, and only prompts with nearly equal teachers need a solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.packages import require
from persyn_hf.routing.allocation.limits import Array, Counts, Limits

#: Penalty per answer beyond a limit, in units of the radius; it bounds the change of a price per step.
_PENALTY = 1.0
#: Largest change of a difference of two prices, each moving by the radius, in units of the radius.
WINDOW = 2.0


@dataclass(frozen=True)
class Prices:
    """Shadow prices of the limits, in units of the scores.

    Args:
        teacher (`ndarray` of shape `(teachers,)`): Price of a teacher's answer: positive if more prompts prefer the
            teacher than it may answer, negative if fewer prefer it than it must answer.
        budget (`float`): Price of one USD.
    """

    teacher: Array
    budget: float

    def of(self, limits: Limits) -> Array:
        """Returns the amount subtracted from each teacher's score, shape `(teachers,)`."""
        prices: Array = self.teacher + self.budget * limits.cost
        return prices


@dataclass(frozen=True)
class Program:
    """One program: the candidate teachers of some prompts, and the remaining limits.

    Args:
        rows, teachers (`ndarray` of shape `(pairs,)`): Prompt (0 to `prompts − 1`) and candidate teacher of each pair.
        gains (`ndarray` of shape `(pairs,)`): Reduced scores minus that of the last chosen teacher, in units of
            `radius`.
        weights (`ndarray` of shape `(prompts,)`): Number of equal prompts that each row represents.
        lower, upper (`ndarray` of shape `(teachers,)`): Remaining minimum and maximum number of answers.
        budget (`float`): Remaining USD.
        prices (`Prices`): Prices in the reduced scores.
        radius (`float`): Maximum error of the prices.
        limits (`Limits`): Limits of the whole allocation.
    """

    rows: NDArray[np.int64]
    teachers: NDArray[np.int64]
    gains: Array
    weights: Array
    lower: Array
    upper: Array
    budget: float
    prices: Prices
    radius: float
    limits: Limits

    def relaxed(self) -> tuple[Prices, float, float]:
        """Solves the relaxation with fractional answers.

        Returns:
            `(prices, answers, money)`: Better prices, each at most the radius away; the violation of the bounds, in
                answers; and the violation of the budget, in answers of the most expensive teacher.
        """
        from scipy.optimize import linprog

        far = np.abs(self.prices.teacher) > self.radius
        high = self.prices.teacher > 0
        lower = np.where(far & high, self.upper, self.lower)
        upper = np.where(far & ~high, self.lower, self.upper)
        worth = np.where(far, 0.0, self.prices.teacher / self.radius)
        objective, matrix, right, bounds = self._system(lower, upper, worth, tight=self._budget_is_tight)
        found = linprog(objective, A_eq=matrix, b_eq=right, bounds=bounds, method="highs")
        if found.status != 0:
            raise AssertionError(f"HiGHS cannot solve a program that has a solution: {found.message}")
        dual = found.eqlin.marginals[self.prompts :]
        prices = self.prices.of(self.limits) - self.radius * dual[:-1]
        budget = max(0.0, self.prices.budget - self.radius * dual[-1] / self._dearest)
        broken = found.x[len(self.rows) + len(self.lower) + 1 :]
        return Prices(prices - budget * self.limits.cost, budget), float(broken[:-1].sum()), float(broken[-1])

    def whole(self, nodes: int, enough: float) -> tuple[Counts | None, float]:
        """Solves the program with whole answers.

        Args:
            nodes (`int`): Maximum number of search nodes; a time limit would make the result depend on the machine.
            enough (`float`): Gap to the optimum, in units of the scores, at which the search stops.

        Returns:
            `(answers, gap)`: Answers of each pair, or `None` if no allocation was found; and the maximum distance from
                the optimum, in units of the scores.
        """
        from scipy.optimize import Bounds, LinearConstraint, linprog, milp

        worth = self.prices.teacher / self.radius
        objective, matrix, right, bounds = self._system(self.lower, self.upper, worth, tight=False)
        kept = len(self.rows) + len(self.lower) + 1  # without the variables for violated limits
        objective, matrix, bounds = objective[:kept], matrix[:, :kept], bounds[:kept]
        low, high = np.array(bounds).T
        kinds = np.zeros(kept)
        kinds[: len(self.rows)] = 1
        size = linprog(objective, A_eq=matrix, b_eq=right, bounds=bounds, method="highs").fun
        if size is None:
            return None, np.inf
        # HiGHS's gap is relative to the objective, so a shift moves the objective far from zero, to about the number
        # of prompts.
        answers = float(self.weights.sum()) * self.limits.top_k
        objective[: len(self.rows)] -= (size + answers) / answers
        found = milp(
            objective,
            integrality=kinds,
            bounds=Bounds(low, high),
            constraints=LinearConstraint(matrix, right, right),
            options={"node_limit": nodes, "mip_rel_gap": enough / self.radius / answers},
        )
        if found.x is None:
            return None, np.inf
        answers_of = np.rint(found.x[: len(self.rows)]).astype(np.int64)
        return answers_of, max(0.0, float(found.fun - found.mip_dual_bound)) * self.radius

    @property
    def prompts(self) -> int:
        """Number of prompts, or of groups of equal prompts, in the program."""
        return len(self.weights)

    @property
    def _dearest(self) -> float:
        return max(float(self.limits.cost.max()), 1e-300)

    @property
    def _budget_is_tight(self) -> bool:
        return self.prices.budget * self._dearest > self.radius

    def _system(self, lower: Array, upper: Array, worth: Array, tight: bool) -> tuple[Any, Any, Any, Any]:
        """Builds the system. Variables: pairs; answers per teacher; unspent budget; violations (over, under, USD)."""
        from scipy import sparse

        pairs, count = len(self.rows), len(self.lower)
        cost = self.limits.cost / self._dearest
        bounded = np.isfinite(self.budget)
        left = self.prices.budget * self._dearest / self.radius if bounded and not tight else 0.0
        slack = pairs + count
        teacher = np.arange(count)
        entries = [
            (self.rows, np.arange(pairs), np.ones(pairs)),
            (self.prompts + self.teachers, np.arange(pairs), np.ones(pairs)),
            (self.prompts + teacher, pairs + teacher, np.full(count, -1.0)),
            (self.prompts + teacher, slack + 1 + teacher, np.ones(count)),
            (self.prompts + teacher, slack + 1 + count + teacher, np.full(count, -1.0)),
            (np.full(count, self.prompts + count), pairs + teacher, cost),
            (np.full(2, self.prompts + count), np.array([slack, slack + 1 + 2 * count]), np.array([1.0, -1.0])),
        ]
        row, column, value = (np.concatenate(part) for part in zip(*entries, strict=True))
        shape = (self.prompts + count + 1, slack + 2 + 2 * count)
        matrix = sparse.csr_array((value, (row, column)), shape=shape)
        spent = self.budget / self._dearest if bounded else 0.0
        right = np.concatenate([self.weights * self.limits.top_k, np.zeros(count), [spent]])
        penalties = np.full(2 * count + 1, _PENALTY)
        objective = np.concatenate([-self.gains, -worth, [left], penalties])
        free = (0.0 if bounded else -np.inf, 0.0 if tight and bounded else np.inf)
        most = self.weights[self.rows]
        bounds = list(zip(np.zeros(pairs), most, strict=True)) + list(zip(lower, upper, strict=True)) + [free]
        return objective, matrix, right, bounds + [(0.0, np.inf)] * (2 * count + 1)


def make_program(
    scores: Array,
    last: Array,
    chosen: Counts,
    share: float,
    prices: Prices,
    radius: float,
    limits: Limits,
    weights: Array | None = None,
) -> Program:
    """Builds a program for some prompts.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): Scores of these prompts.
        last (`ndarray` of shape `(prompts,)`): Reduced score of the last chosen teacher of each prompt.
        chosen (`ndarray` of shape `(teachers,)`): Answers already assigned to other prompts.
        share (`float`): Share of these prompts among the undecided ones.
        prices (`Prices`): Current prices.
        radius (`float`): Maximum error of the prices.
        limits (`Limits`): Limits of the whole allocation.
        weights (`ndarray` of shape `(prompts,)`, *optional*): Number of equal prompts per row; default: 1.
    """
    require("allocate under limits", "scipy")
    gains = (scores - prices.of(limits) - last[:, None]) / radius
    rows, teachers = np.nonzero(gains >= -WINDOW)
    spent = float(chosen @ limits.cost)
    return Program(
        rows=rows,
        teachers=teachers,
        gains=np.minimum(gains[rows, teachers], 2 * WINDOW),
        weights=np.ones(len(scores)) if weights is None else weights,
        lower=np.asarray((limits.lower - chosen) * share, dtype=np.float64),
        upper=np.asarray((limits.upper - chosen) * share, dtype=np.float64),
        budget=(limits.budget - spent) * share,
        prices=prices,
        radius=radius,
        limits=limits,
    )
