"""The linear program of an allocation, for some of the prompts, in units in which the solver's tolerances are small.

Scores enter as *reduced* scores: a teacher's score minus its price. At the right prices, the best teacher of every
prompt taken for itself is the best allocation of all, and only prompts with nearly equal teachers need a solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.packages import require
from persyn_hf.routing.allocation.limits import Array, Counts, Limits

#: What breaking a limit by one answer costs in the program, in units of the radius: prices move no further at once.
_PENALTY = 1.0
#: Two prices that move by the radius each bring a teacher this much closer to another, in units of the radius.
WINDOW = 2.0


@dataclass(frozen=True)
class Prices:
    """The cost of a teacher's answer to the others, in units of the scores.

    Args:
        teacher (`ndarray` of shape `(teachers,)`): Positive where a teacher is wanted by more prompts than it may
            answer, negative where it must answer more than want it.
        budget (`float`): Price of one USD.
    """

    teacher: Array
    budget: float

    def of(self, limits: Limits) -> Array:
        """The amount taken off each teacher's score, shape `(teachers,)`."""
        prices: Array = self.teacher + self.budget * limits.cost
        return prices


@dataclass(frozen=True)
class Program:
    """One program: which teachers some prompts may go to, and how many answers are left to give.

    Args:
        rows, teachers (`ndarray` of shape `(pairs,)`): A prompt (0 to `prompts − 1`) and a teacher it may go to.
        gains (`ndarray` of shape `(pairs,)`): Reduced scores, from the last chosen one on, in units of `radius`.
        weights (`ndarray` of shape `(prompts,)`): Number of prompts that each stands for.
        lower, upper (`ndarray` of shape `(teachers,)`): Answers that are left to give.
        budget (`float`): USD that are left.
        prices (`Prices`), radius (`float`), limits (`Limits`): What the above was reduced by.
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
        """Solves it with fractional answers.

        Returns:
            `(prices, answers, money)`: Better prices, each at most the radius away; by how many answers bounds had to
            be broken for that, and by how many of the dearest answers the budget.
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
        """Solves it with whole answers.

        Args:
            nodes (`int`): Most nodes of the search; a limit in time would make the result depend on the machine.
            enough (`float`): Units of the scores within which an allocation counts as the best.

        Returns:
            `(answers, gap)`: Of each pair, or `None` where no allocation was found; and how much more any other can
            give at most, in units of the scores.
        """
        from scipy.optimize import Bounds, LinearConstraint, linprog, milp

        worth = self.prices.teacher / self.radius
        objective, matrix, right, bounds = self._system(self.lower, self.upper, worth, tight=False)
        kept = len(self.rows) + len(self.lower) + 1  # without the variables that say how far a limit is broken
        objective, matrix, bounds = objective[:kept], matrix[:, :kept], bounds[:kept]
        low, high = np.array(bounds).T
        kinds = np.zeros(kept)
        kinds[: len(self.rows)] = 1
        size = linprog(objective, A_eq=matrix, b_eq=right, bounds=bounds, method="highs").fun
        if size is None:
            return None, np.inf
        # The gap is relative to the objective, so that is moved to about the number of prompts, far from zero.
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
        """Prompts, or groups of equal ones, in the program."""
        return len(self.weights)

    @property
    def _dearest(self) -> float:
        return max(float(self.limits.cost.max()), 1e-300)

    @property
    def _budget_is_tight(self) -> bool:
        return self.prices.budget * self._dearest > self.radius

    def _system(self, lower: Array, upper: Array, worth: Array, tight: bool) -> tuple[Any, Any, Any, Any]:
        """Variables: pairs; answers per teacher; what the budget leaves; broken limits (too many, too few, USD)."""
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
    """A program for some prompts.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): Scores of these prompts.
        last (`ndarray` of shape `(prompts,)`): The reduced score of the last chosen teacher of each.
        chosen (`ndarray` of shape `(teachers,)`): Answers that are already given, to prompts outside.
        share (`float`): These prompts' share of those that are undecided.
        prices (`Prices`), radius (`float`), limits (`Limits`): Prices, how far they may be wrong, and the limits.
        weights (`ndarray` of shape `(prompts,)`, *optional*): Number of equal prompts; default: one.
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
