"""Limits of an allocation as bounds on each teacher's number of prompts, and errors if they cannot be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf.config import merged
from persyn_hf.config.allocation import AllocationOptions
from persyn_hf.errors import AllocationError, ConfigError

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
PerTeacher = float | Mapping[str, float] | None

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Limits:
    """Bounds on each teacher's number of prompts, and the budget.

    Args:
        lower, upper (`ndarray` of shape `(teachers,)`): Minimum and maximum number of prompts of each teacher.
        cost (`ndarray` of shape `(teachers,)`): USD per answer.
        budget (`float`): USD for all answers; infinite without a budget.
        top_k (`int`): Number of different teachers per prompt.
    """

    lower: Counts
    upper: Counts
    cost: Array
    budget: float
    top_k: int

    def met_by(self, counts: Counts) -> bool:
        """Returns true if these numbers of prompts are within the limits."""
        within = bool((counts >= self.lower).all() and (counts <= self.upper).all())
        return within and self.within_budget(float(counts @ self.cost))

    def within_budget(self, cost: float) -> bool:
        """Returns true if a cost in USD is within the budget, up to rounding."""
        return cost <= self.budget + _ROUNDING * max(1.0, abs(self.budget))


def make_limits(
    teachers: Sequence[str],
    prompts: int,
    top_k: int,
    *,
    cost: Mapping[str, float] | None = None,
    throughput: Mapping[str, float] | None = None,
    settings: AllocationOptions | None = None,
    **options: Any,
) -> Limits:
    """Converts share, budget and time limits to bounds on each teacher's number of prompts.

    Args:
        teachers (`Sequence[str]`): Names of the teachers.
        prompts (`int`): Number of prompts.
        top_k (`int`): Number of teachers per prompt.
        cost (mapping, *optional*): USD per answer of each teacher.
        throughput (mapping, *optional*): Answers per second of each teacher.
        settings (`AllocationOptions`, *optional*): Shares, budget and makespan.
        options: Single keys of [`AllocationOptions`]: `max_share`, `min_share`, `budget`, `makespan`.

    Raises:
        ConfigError: If a setting is out of range, or names an unknown teacher.
        AllocationError: If no allocation meets all limits; it names them and the amount.
    """
    asked = merged(AllocationOptions, settings, options, "allocate", ("max_share", "min_share", "budget", "makespan"))
    budget, makespan = asked.budget, asked.makespan
    if not 1 <= top_k <= len(teachers):
        raise ConfigError(f"`top_k` must be between 1 and the number of teachers, {len(teachers)}, got {top_k}.")
    highest = _shares(teachers, asked.max_share, 1.0, "max_share")
    lowest = _shares(teachers, asked.min_share, 0.0, "min_share")
    upper = np.floor(highest * prompts + _ROUNDING * prompts).astype(np.int64)
    lower = np.ceil(lowest * prompts - _ROUNDING * prompts).astype(np.int64)
    price = np.zeros(len(teachers)) if cost is None else _positive(teachers, cost, "cost", zero=True)
    if budget is not None and cost is None:
        raise ConfigError("`budget` needs `cost`: USD per answer of each teacher (see `answer_costs`).")
    if budget is not None and not 0 <= budget < np.inf:
        raise ConfigError(f"`budget` must be a finite number of USD, at least 0, got {budget}.")
    limits = Limits(lower, upper, price, np.inf if budget is None else float(budget), top_k)
    _explain_shares(teachers, limits, prompts)
    _explain_budget(teachers, limits, prompts)
    if makespan is not None:
        if throughput is None:
            raise ConfigError(
                "`makespan` needs `throughput`: answers per second of each teacher (see `answer_rates`)."
            )
        rate = _positive(teachers, throughput, "throughput", zero=False)
        limits = _within_time(teachers, limits, prompts, makespan, rate)
    return limits


def cheapest_counts(limits: Limits, prompts: int) -> Counts:
    """Returns each teacher's number of prompts in the cheapest allocation within the bounds."""
    counts = limits.lower.copy()
    left = prompts * limits.top_k - int(counts.sum())
    for teacher in np.argsort(limits.cost, kind="stable"):
        more = min(left, int(limits.upper[teacher] - counts[teacher]))
        counts[teacher] += more
        left -= more
    return counts


def shortest_makespan(limits: Limits, prompts: int, rate: Array) -> float:
    """Returns the shortest time, in seconds, to answer all prompts within the other limits."""
    finish = np.concatenate([limits.lower / rate, [0.0]])
    low, high = float(finish.max()), float((limits.upper / rate).max())
    if _possible(limits, prompts, low, rate):
        return low
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if _possible(limits, prompts, middle, rate) else (middle, high)
    counts = _caps(limits, high, rate)
    return float((counts / rate).max())  # the time at which the slowest teacher finishes


def _caps(limits: Limits, seconds: float, rate: Array) -> Counts:
    caps: Counts = np.minimum(limits.upper, np.floor(seconds * rate * (1 + 1e-12) + _ROUNDING).astype(np.int64))
    return caps


def _possible(limits: Limits, prompts: int, seconds: float, rate: Array) -> bool:
    capped = Limits(limits.lower, _caps(limits, seconds, rate), limits.cost, limits.budget, limits.top_k)
    if (capped.lower > capped.upper).any() or capped.upper.sum() < prompts * capped.top_k:
        return False
    return capped.within_budget(float(cheapest_counts(capped, prompts) @ capped.cost))


def _within_time(teachers: Sequence[str], limits: Limits, prompts: int, makespan: float | str, rate: Array) -> Limits:
    shortest = shortest_makespan(limits, prompts, rate)
    if isinstance(makespan, str):
        if makespan != "shortest":
            raise ConfigError(f"`makespan` must be a number of seconds or 'shortest', got {makespan!r}.")
        seconds = shortest
    else:
        seconds = float(makespan)
        if not seconds > 0:
            raise ConfigError(f"`makespan` must be a positive number of seconds, got {makespan}.")
    caps = _caps(limits, seconds, rate)
    if not _possible(limits, prompts, seconds, rate):
        late = [
            f"{t} {low / r:.6g} s"
            for t, low, r, cap in zip(teachers, limits.lower, rate, caps, strict=True)
            if low > cap
        ]
        why = (
            f"`min_share` alone takes {', '.join(late)}"
            if late
            else f"the teachers can give only {int(caps.sum())} of the {prompts * limits.top_k} answers in that time"
            if caps.sum() < prompts * limits.top_k
            else "the teachers that are fast enough are too expensive for the `budget`"
        )
        raise AllocationError(
            f"`makespan` of {seconds:.6g} s cannot be met: {why}. The shortest within the other limits is "
            f"{shortest:.6g} s, {shortest - seconds:.6g} s more."
        )
    return Limits(limits.lower, caps, limits.cost, limits.budget, limits.top_k)


def _explain_shares(teachers: Sequence[str], limits: Limits, prompts: int) -> None:
    answers = prompts * limits.top_k
    for name, low, high in zip(teachers, limits.lower, limits.upper, strict=True):
        if low > high:
            raise AllocationError(
                f"{name}: `min_share` requires {low} of the {prompts} prompts, but `max_share` allows {high}, "
                f"{low - high} too few."
            )
    if limits.lower.sum() > answers:
        raise AllocationError(
            f"`min_share` requires {int(limits.lower.sum())} answers in total, but {prompts} prompts with "
            f"`top_k` {limits.top_k} have {answers}: {int(limits.lower.sum()) - answers} too many. Lower it by "
            f"{(limits.lower.sum() - answers) / prompts:.6g} of the prompts in total."
        )
    if limits.upper.sum() < answers:
        raise AllocationError(
            f"`max_share` allows {int(limits.upper.sum())} answers in total, but {prompts} prompts with "
            f"`top_k` {limits.top_k} need {answers}: {answers - int(limits.upper.sum())} too few. Raise it by "
            f"{(answers - limits.upper.sum()) / prompts:.6g} of the prompts in total."
        )


def _explain_budget(teachers: Sequence[str], limits: Limits, prompts: int) -> None:
    counts = cheapest_counts(limits, prompts)
    least = float(counts @ limits.cost)
    if limits.within_budget(least):
        return
    who = ", ".join(f"{name} {count}" for name, count in zip(teachers, counts, strict=True) if count)
    raise AllocationError(
        f"`budget` of {limits.budget:.6g} USD is {least - limits.budget:.6g} USD too little: the cheapest allocation "
        f"within the shares costs {least:.6g} USD ({who})."
    )


def _shares(teachers: Sequence[str], given: PerTeacher, default: float, name: str) -> Array:
    if given is None:
        return np.full(len(teachers), default)
    if isinstance(given, Mapping):
        _known(teachers, given, name)
        values = np.array([float(given.get(teacher, default)) for teacher in teachers])
    else:
        values = np.full(len(teachers), float(given))
    for teacher, value in zip(teachers, values, strict=True):
        if not 0 <= value <= 1:
            raise ConfigError(f"`{name}` must be between 0 and 1, got {value:g} for {teacher}.")
    return values


def _positive(teachers: Sequence[str], given: Mapping[str, float], name: str, zero: bool) -> Array:
    _known(teachers, given, name)
    absent = [teacher for teacher in teachers if teacher not in given]
    if absent:
        raise ConfigError(f"`{name}` lacks {', '.join(absent)}.")
    values = np.array([float(given[teacher]) for teacher in teachers])
    for teacher, value in zip(teachers, values, strict=True):
        if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
            raise ConfigError(f"`{name}` must be {'at least 0' if zero else 'positive'}, got {value:g} for {teacher}.")
    return values


def _known(teachers: Sequence[str], given: Mapping[str, float], name: str) -> None:
    unknown = [str(key) for key in given if key not in teachers]
    if unknown:
        raise ConfigError(f"`{name}` names {', '.join(unknown)}; the teachers are {', '.join(teachers)}.")
