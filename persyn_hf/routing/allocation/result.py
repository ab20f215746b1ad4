"""The result of an allocation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.config.allocation import AllocationOptions
from persyn_hf.routing.allocation.solver import Solution

if TYPE_CHECKING:
    from datasets import Dataset


_CHUNK = 1 << 14


@dataclass(frozen=True, eq=False)
class AllocationResult:
    """Routes for the whole set.

    Args:
        teachers (`tuple[str, ...]`): Names, in the order of the scores.
        choices (`ndarray` of shape `(prompts, top_k)`): Indices into `teachers`, best score first.
        policy, scale (`str`), temperature (`float`), seed (`int`): As given to [`allocate`].
        total (`float`): Maximised sum: the chosen scores, including the noise of `temperature`.
        bound (`float`): Upper bound on the sum of any allocation within the limits.
        mean_score (`float`): Mean chosen score, without noise.
        best_score (`float`): Mean score without limits; the difference to `mean_score` is the cost of the limits.
        expected_reward (`float`): Mean expected reward per answer. For a router's scores: the share of the other
            teachers that the chosen one is expected to beat (the reward normalised by rank); for rewards: the mean
            score.
        cost (`float`, *optional*): Total USD, if costs are known.
        seconds (`Mapping[str, float]`, *optional*): Seconds each teacher takes, if throughputs are known.
    """

    teachers: tuple[str, ...]
    choices: NDArray[np.integer[Any]]
    policy: str
    scale: str
    temperature: float
    seed: int
    total: float
    bound: float
    mean_score: float
    best_score: float
    expected_reward: float
    cost: float | None
    seconds: Mapping[str, float] | None

    @classmethod
    def of(
        cls,
        solution: Solution,
        scores: NDArray[np.floating],
        teachers: Sequence[str],
        settings: AllocationOptions,
        *,
        seed: int,
        cost: Mapping[str, float] | None,
        throughput: Mapping[str, float] | None,
    ) -> AllocationResult:
        """Builds the result of a solution that was found with the given settings."""
        counts = np.bincount(solution.choices.ravel(), minlength=len(teachers))
        chosen = np.take_along_axis(scores, solution.choices.astype(np.int64), axis=1)
        top = np.partition(scores, scores.shape[1] - solution.choices.shape[1], axis=1)
        reward = chosen if settings.scale != "bradley-terry" else win_rates(scores, solution.choices)
        return cls(
            teachers=tuple(teachers),
            choices=solution.choices,
            policy=settings.policy,
            scale=settings.scale,
            temperature=settings.temperature,
            seed=seed,
            total=solution.total,
            bound=solution.bound,
            mean_score=float(chosen.mean(dtype=np.float64)),
            best_score=float(top[:, -solution.choices.shape[1] :].mean(dtype=np.float64)),
            expected_reward=float(reward.mean(dtype=np.float64)),
            cost=None if cost is None else float(sum(cost[t] * n for t, n in zip(teachers, counts, strict=True))),
            seconds=None
            if throughput is None
            else {t: float(n / throughput[t]) for t, n in zip(teachers, counts, strict=True)},
        )

    @property
    def top_k(self) -> int:
        """Number of teachers per prompt."""
        return int(self.choices.shape[1])

    @property
    def counts(self) -> dict[str, int]:
        """Number of answers of each teacher."""
        counts = np.bincount(self.choices.ravel(), minlength=len(self.teachers))
        return {teacher: int(count) for teacher, count in zip(self.teachers, counts, strict=True)}

    @property
    def shares(self) -> dict[str, float]:
        """Share of the prompts that each teacher answers; they sum to `top_k`."""
        return {teacher: count / len(self.choices) for teacher, count in self.counts.items()}

    @property
    def makespan(self) -> float | None:
        """Seconds until the last teacher finishes, if throughputs are known."""
        return None if self.seconds is None else max(self.seconds.values())

    @property
    def gap(self) -> float:
        """Maximum distance of `total` from the optimum; 0 if the allocation is proven optimal."""
        return max(self.bound - self.total, 0.0)

    @property
    def routes(self) -> list[str]:
        """The teacher of every prompt; with `top_k` above 1, the one with the best score."""
        return [self.teachers[choice] for choice in self.choices[:, 0].tolist()]

    def apply(self, prompts: Dataset) -> Dataset:
        """Returns the table with the column `route`, and `routes` (a prompt's teachers, best first) if `top_k` > 1.

        Args:
            prompts (`Dataset`): Table that was allocated.
        """
        from datasets import List, Value

        table = prompts.remove_columns([n for n in (columns.ROUTE, columns.ROUTES) if n in prompts.column_names])
        table = table.add_column(columns.ROUTE, self.routes, feature=Value("string"))
        if self.top_k > 1:
            several = [[self.teachers[choice] for choice in row] for row in self.choices.tolist()]
            table = table.add_column(columns.ROUTES, several, feature=List(Value("string")))
        return table

    def rounds(self, prompts: Dataset) -> list[Dataset]:
        """Returns one routed table per `top_k` choice: generate each, concatenate, score, then use [`keep_best`]."""
        return split_rounds(self.apply(prompts))

    def summary(self) -> dict[str, Any]:
        """Returns plain values, without the routes."""
        return {
            "policy": self.policy,
            "scale": self.scale,
            "top_k": self.top_k,
            "temperature": self.temperature,
            "seed": self.seed,
            "prompts": len(self.choices),
            "counts": self.counts,
            "total": self.total,
            "bound": self.bound,
            "mean_score": self.mean_score,
            "best_score": self.best_score,
            "expected_reward": self.expected_reward,
            "cost": self.cost,
            "seconds": None if self.seconds is None else dict(self.seconds),
        }

    def __str__(self) -> str:
        width = max(len(teacher) for teacher in self.teachers)
        lines = []
        for teacher, count in self.counts.items():
            time = "" if self.seconds is None else f"  {self.seconds[teacher]:10.1f} s"
            lines.append(f"{teacher:{width}s} {count:9d} {count / len(self.choices):7.1%}{time}")
        lines.append(f"mean score {self.mean_score:.4f}; without limits {self.best_score:.4f}")
        unit = "share of the other teachers beaten" if self.scale == "bradley-terry" else "mean score"
        lines.append(f"expected reward {self.expected_reward:.4f} ({unit})")
        if self.cost is not None:
            lines.append(f"cost {self.cost:.4f} USD")
        relative = self.gap / max(abs(self.total), 1e-12)
        lines.append(f"at most {self.gap:.3g} below the best sum, {self.total:.6g} ({relative:.1e} of it)")
        return "\n".join(lines)


def split_rounds(allocated: Dataset) -> list[Dataset]:
    """Splits an allocated table into one table per choice; a table with one teacher per prompt is returned as is."""
    from datasets import Value

    if columns.ROUTES not in allocated.column_names:
        return [allocated]
    routes = allocated[columns.ROUTES][:]
    table = allocated.remove_columns([columns.ROUTE, columns.ROUTES])
    return [
        table.add_column(columns.ROUTE, [own[rank] for own in routes], feature=Value("string"))
        for rank in range(len(routes[0]) if routes else 0)
    ]


def win_rates(scores: NDArray[np.floating], choices: NDArray[np.integer[Any]] | None = None) -> NDArray[np.float64]:
    """Computes the share of the other teachers that each is expected to beat: mean of `σ(s_i − s_j)` over `j ≠ i`.

    Args:
        scores (`ndarray` of shape `(prompts, teachers)`): Bradley–Terry scores.
        choices (`ndarray` of shape `(prompts, top_k)`, *optional*): Indices of the teachers to compute it for;
            default: all.

    Returns:
        `ndarray` of the shape of `choices`, or of `scores`: Shares, 0 to 1; 1 with a single teacher.
    """
    count, teachers = scores.shape
    if teachers == 1:
        return np.ones((count, 1))
    wanted = np.broadcast_to(np.arange(teachers), scores.shape) if choices is None else choices.astype(np.int64)
    rates = np.empty(wanted.shape)
    for start in range(0, count, _CHUNK):
        rows = scores[start : start + _CHUNK].astype(np.float64)
        own = np.take_along_axis(rows, wanted[start : start + _CHUNK], axis=1)
        odds = np.tanh((own[:, :, None] - rows[:, None, :]) / 2).sum(axis=2)  # tanh(0) = 0 for the teacher itself
        rates[start : start + _CHUNK] = 0.5 + odds / (2 * (teachers - 1))
    return rates


def keep_best(scored: Dataset, by: str = columns.REWARD) -> Dataset:
    """Keeps the best answer of every prompt.

    Args:
        scored (`Dataset`): Answers of several teachers or samples, with `prompt_id` and the column `by`.
        by (`str`, defaults to `"reward"`): Column to compare; larger is better. An answer without a value loses to
            every answer with one; of equals, the earlier row is kept.

    Returns:
        `Dataset`: One row per prompt, in the order of first appearance. A prompt without any value keeps its first
            row, with its `error`, so that it is counted.

    Raises:
        MissingColumnError: If a column is absent.

    Example:
        >>> from datasets import Dataset
        >>> rows = {"prompt_id": ["p", "p", "q"], "teacher": ["a", "b", "a"], "reward": [0.1, 0.7, None]}
        >>> keep_best(Dataset.from_dict(rows))["teacher"][:]
        ['b', 'a']
    """
    columns.require_columns(scored.column_names, [columns.PROMPT_ID, by], "keep_best")
    best: dict[str, tuple[int, float]] = {}
    for row, (identity, value) in enumerate(zip(scored[columns.PROMPT_ID][:], scored[by][:], strict=True)):
        worth = -math.inf if value is None or math.isnan(value) else float(value)
        if identity not in best or worth > best[identity][1]:
            best[identity] = (row, worth)
    return scored.select([row for row, _ in best.values()])
