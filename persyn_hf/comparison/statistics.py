"""Statistics of trained students: intervals over seeds and prompts, and paired tests.

Every number is the mean of a matrix of scores `(seeds, prompts)`. Seeds and held-out prompts are both random samples,
so the bootstrap resamples both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_hf.errors import DataError
from persyn_hf.packages import require
from persyn_hf.routing.intervals import DRAWS, Array, Interval, interval

_PERMUTATIONS = 9999


@dataclass(frozen=True)
class Outcome:
    """Scores of one trained student in one evaluation.

    Args:
        student (`str`), policy (`str`), seed (`int`): Student, policy and seed of the training.
        evaluation (`str`): Name of the evaluation: `greedy`, `nll`, `gsm8k` …
        scores (`tuple[float, ...]`): Score of each held-out prompt or document.
        ids (`tuple[str, ...]`): Ids of these prompts or documents.
        higher_is_better (`bool`, defaults to `True`): Whether higher scores are better.
    """

    student: str
    policy: str
    seed: int
    evaluation: str
    scores: tuple[float, ...]
    ids: tuple[str, ...]
    higher_is_better: bool = True

    @property
    def mean(self) -> float:
        """Mean score over the prompts."""
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class PolicyMean:
    """Mean score of one policy in one evaluation of one student.

    Args:
        student, evaluation, policy (`str`): Names.
        value (`Interval`): Mean over seeds and prompts.
        by_seed (`tuple[float, ...]`): Mean score of each seed's student.
    """

    student: str
    evaluation: str
    policy: str
    value: Interval
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Difference of the reference policy to another, paired by seed and prompt.

    Args:
        student, evaluation, policy (`str`): Names; `policy` is the other policy.
        value (`Interval`): Mean difference over seeds and prompts.
        p_seeds (`float`, *optional*): p-value of the paired t-test over the seeds' means; `None` with one seed.
        p_prompts (`float`): p-value of the sign-flip permutation test over the prompts' means.
        p_holm (`float`): `p_prompts` with Holm's correction for the number of compared policies.
    """

    student: str
    evaluation: str
    policy: str
    value: Interval
    p_seeds: float | None
    p_prompts: float
    p_holm: float


@dataclass(frozen=True)
class Summary:
    """Statistics of all outcomes: `cells` in the order of the outcomes, and `differences` to the `reference`."""

    reference: str
    cells: tuple[PolicyMean, ...]
    differences: tuple[Difference, ...]


def summarise(outcomes: Sequence[Outcome], reference: str = "persyn", seed: int = 0) -> Summary:
    """Computes intervals of every policy and paired differences to a reference.

    Args:
        outcomes (`Sequence[Outcome]`): Outcomes of all trainings, with the same seeds and prompts for each policy of a
            student.
        reference (`str`, defaults to `"persyn"`): Policy from which the others are subtracted. There are no
            differences if it was not run.
        seed (`int`, defaults to 0): Random seed of the resampling.

    Raises:
        DataError: If two policies were not evaluated with the same seeds on the same prompts.
    """
    groups: dict[tuple[str, str], dict[str, list[Outcome]]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.student, outcome.evaluation), {}).setdefault(outcome.policy, []).append(outcome)
    cells, differences = [], []
    for (student, evaluation), policies in groups.items():
        matrices = _matrices(policies, f"{student}, {evaluation}")
        for policy, scores in matrices.items():
            by_seed = tuple(float(mean) for mean in scores.mean(axis=1))
            cells.append(PolicyMean(student, evaluation, policy, mean_interval(scores, seed), by_seed))
        if reference not in matrices:
            continue
        others = [policy for policy in matrices if policy != reference]
        found = [paired(matrices[reference], matrices[policy], seed) for policy in others]
        corrected = holm([p for _, _, p in found])
        for policy, (value, p_seeds, p_prompts), p_holm in zip(others, found, corrected, strict=True):
            differences.append(Difference(student, evaluation, policy, value, p_seeds, p_prompts, p_holm))
    return Summary(reference, tuple(cells), tuple(differences))


def mean_interval(scores: Array, seed: int = 0) -> Interval:
    """Computes the mean of a matrix `(seeds, prompts)` with a 95% interval; both are resampled independently."""
    random = np.random.default_rng(seed)
    seeds, prompts = (
        random.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count for count in scores.shape
    )
    draws = np.einsum("dp,dp->d", seeds @ scores, prompts)
    return interval(scores.mean(), draws)


def paired(reference: Array, other: Array, seed: int = 0) -> tuple[Interval, float | None, float]:
    """Computes the difference of two matrices `(seeds, prompts)`, and the p-values over seeds and over prompts.

    Args:
        reference, other (`ndarray` of shape `(seeds, prompts)`): Scores with the same seeds and prompts.
        seed (`int`, defaults to 0): Random seed of the resampling.

    Returns:
        `tuple[Interval, float | None, float]`: `reference − other`; the paired t-test's p over seeds; the
        permutation test's p over prompts.
    """
    require("test a difference", "scipy")
    from scipy import stats

    difference = reference - other
    by_seed, by_prompt = difference.mean(axis=1), difference.mean(axis=0)
    if not difference.any():
        return mean_interval(difference, seed), 1.0 if len(by_seed) > 1 else None, 1.0
    p_seeds = None
    if len(by_seed) > 1:
        # Without variance over the seeds the t statistic is infinite, or the mean difference is zero.
        spread = float(by_seed.std()) > 1e-12
        p_seeds = float(stats.ttest_1samp(by_seed, 0.0).pvalue) if spread else float(abs(by_seed.mean()) < 1e-12)
    p_prompts = stats.permutation_test(
        (by_prompt,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_PERMUTATIONS,
        rng=np.random.default_rng(seed),
    ).pvalue
    return mean_interval(difference, seed), p_seeds, float(p_prompts)


def holm(p_values: Sequence[float]) -> list[float]:
    """Applies Holm's step-down correction to p-values.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _mean(values: Array, axis: int) -> Any:
    return values.mean(axis=axis)


def _matrices(policies: dict[str, list[Outcome]], where: str) -> dict[str, Array]:
    """Returns scores `(seeds, prompts)` by policy, all with the same seeds and prompts in the same order."""
    matrices: dict[str, Array] = {}
    expected: tuple[list[int], tuple[str, ...]] | None = None
    for policy, outcomes in policies.items():
        ordered = sorted(outcomes, key=lambda outcome: outcome.seed)
        found = ([outcome.seed for outcome in ordered], ordered[0].ids)
        if any(outcome.ids != ordered[0].ids for outcome in ordered) or (expected or found) != found:
            raise DataError(
                f"{where}: all policies must be evaluated with the same seeds and prompts; `{policy}` is not."
            )
        expected = found
        matrices[policy] = np.array([outcome.scores for outcome in ordered], dtype=np.float64)
    return matrices
