"""What a router must beat: routes that need no router. All answer with teacher indices, one per prompt.

The arguments named `probe` are the prompts that choices are made on; routes are given for other prompts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from persyn_hf.errors import DataError
from persyn_hf.routing.crossval import nearest_rewards
from persyn_hf.routing.heads import Array, teacher_means
from persyn_hf.routing.rewards import RewardTable

Routes = NDArray[np.int64]

#: CAR's weight of the student's loss (arXiv 2411.07133).
CAR_BETA = 3.0
#: Mix's share of answers from the strong teacher: 1:1.
MIX_STRONG_SHARE = 0.5


def best_single(probe: RewardTable, prompts: int) -> Routes:
    """Every prompt to the teacher with the highest mean reward on the probe."""
    return np.full(prompts, int(probe.means.argmax()))


def strong(probe: RewardTable, prompts: int) -> Routes:
    """Every prompt to the strongest teacher: the highest mean quality on the probe.

    Raises:
        DataError: If the table has no `quality`.
    """
    return np.full(prompts, int(mean_quality(probe).argmax()))


def mix(probe: RewardTable, prompts: int, seed: int = 0, strong_share: float = MIX_STRONG_SHARE) -> Routes:
    """A random mixture of a strong and a weak teacher (arXiv 2502.12143).

    Args:
        probe (`RewardTable`), prompts (`int`), seed (`int`, defaults to 0)
        strong_share (`float`, defaults to 0.5): Share of prompts for the strong teacher.

    Raises:
        DataError: If the table has no `quality`.
    """
    chosen = np.random.default_rng(seed).random(prompts) < strong_share
    return np.where(chosen, int(mean_quality(probe).argmax()), weak_teacher(probe))


def weak_teacher(probe: RewardTable) -> int:
    """The weak teacher of [`mix`]: of all but the strongest, the one whose answers the student finds most likely.

    The highest mean learnability decides, or the lowest mean quality where no learnability is known.
    """
    quality = mean_quality(probe)
    weakness = -quality if probe.learnability is None else teacher_means(probe.learnability).copy()
    weakness[int(quality.argmax())] = -np.inf
    return int(weakness.argmax())


def family_strong(
    probe: RewardTable, prompts: int, families: Mapping[str, str | None], family: str | None
) -> Routes | None:
    """Every prompt to the strongest teacher of the student's family; `None` where no teacher is of it.

    Args:
        probe (`RewardTable`), prompts (`int`)
        families (`Mapping[str, str | None]`): Family of each teacher.
        family (`str`, *optional*): The student's.
    """
    members = [index for index, name in enumerate(probe.teachers) if family and families.get(name) == family]
    if not members:
        return None
    quality = mean_quality(probe)
    return np.full(prompts, max(members, key=lambda index: quality[index]))


def car(probe: RewardTable, prompts: int, beta: float = CAR_BETA) -> Routes:
    """One teacher for all by Compatibility-Adjusted Reward; see [`car_values`]."""
    return np.full(prompts, int(car_values(probe, beta).argmax()))


def car_values(probe: RewardTable, beta: float = CAR_BETA) -> Array:
    """Compatibility-Adjusted Reward of each teacher: `mean quality / (1 + beta · mean student loss)`.

    The student's loss is the negated learnability, nats/token (arXiv 2411.07133).

    Raises:
        DataError: If the table has no `quality` or no `learnability`.
    """
    if probe.learnability is None:
        raise DataError("CAR needs the column `learnability`; score the answers with a student first.")
    values: Array = mean_quality(probe) / (1.0 - beta * teacher_means(probe.learnability))
    return values


def random(probe: RewardTable, prompts: int, seed: int = 0) -> Routes:
    """Every prompt to a teacher drawn at random."""
    return np.random.default_rng(seed).integers(len(probe.teachers), size=prompts)


def oracle(table: RewardTable) -> Routes:
    """Every prompt to the teacher whose answer earned most: what no router can exceed."""
    routes: Routes = np.where(np.isnan(table.rewards), -np.inf, table.rewards).argmax(axis=1)
    return routes


def knn(probe: RewardTable, known: Array, asked: Array, neighbours: int = 20) -> Routes:
    """The teacher that earned most on the nearest probe prompts.

    Args:
        probe (`RewardTable`)
        known (`ndarray` of shape `(probe prompts, hidden)`): Embeddings of the probe.
        asked (`ndarray` of shape `(prompts, hidden)`): Embeddings of the prompts to route.
        neighbours (`int`, defaults to 20)
    """
    center = known.mean(axis=0)
    routes: Routes = nearest_rewards(known - center, probe.rewards, asked - center, neighbours).argmax(axis=1)
    return routes


def mean_quality(probe: RewardTable) -> Array:
    """Mean quality of each teacher, by which the strongest is chosen.

    Raises:
        DataError: If the table has no `quality`.
    """
    if probe.quality is None:
        raise DataError("The strongest teacher is chosen by the column `quality`, which the table does not have.")
    return teacher_means(probe.quality)
