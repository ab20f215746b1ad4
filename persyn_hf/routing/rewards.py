"""The scored table as a matrix: one row per prompt, one column per teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from persyn_hf import columns
from persyn_hf.errors import DataError
from persyn_hf.routing.heads import Array, teacher_means


@dataclass(frozen=True)
class RewardTable:
    """Scored answers as matrices, one row per prompt.

    Args:
        prompts (`list`): Strings or lists of chat messages.
        ids (`list[str]`): `prompt_id` of each prompt.
        teachers (`list[str]`): Names, best mean reward first.
        rewards (`ndarray` of shape `(prompts, teachers)`): Rewards; NaN where missing.
        quality, learnability (`ndarray` of shape `(prompts, teachers)`, *optional*): Raw scores; NaN where missing.
        student, student_revision (`str`, *optional*): Student and its revision, if the table names exactly one.
        left_out (`Mapping[str, str]`): Teachers left out because they mostly failed, each with a short explanation.
    """

    prompts: list[Any]
    ids: list[str]
    teachers: list[str]
    rewards: Array
    quality: Array | None = None
    learnability: Array | None = None
    student: str | None = None
    student_revision: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def means(self) -> Array:
        """Mean reward per teacher, shape `(teachers,)`; a missing reward counts as the lowest."""
        return teacher_means(self.rewards)

    def mean_scores(self) -> dict[str, dict[str, float]]:
        """Returns the mean `reward` of each teacher, and its mean `quality` and `learnability` if the table has them.

        A missing value counts as the lowest.
        """
        known = {"reward": self.rewards, "quality": self.quality, "learnability": self.learnability}
        return {
            name: dict(zip(self.teachers, map(float, teacher_means(values)), strict=True))
            for name, values in known.items()
            if values is not None and not np.isnan(values).all()
        }

    def reordered(self, teachers: Sequence[str]) -> RewardTable:
        """Returns the table with the teachers' columns in the given order; an unknown teacher's column is all NaN."""
        take = [self.teachers.index(name) if name in self.teachers else -1 for name in teachers]

        def pick(values: Array | None) -> Array | None:
            if values is None:
                return None
            padded = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)
            picked: Array = padded[:, take]
            return picked

        rewards = pick(self.rewards)
        assert rewards is not None
        return replace(
            self,
            teachers=list(teachers),
            rewards=rewards,
            quality=pick(self.quality),
            learnability=pick(self.learnability),
        )

    def subset(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> RewardTable:
        """Returns the table with only the given prompts."""
        index = np.asarray(rows, dtype=int)
        return replace(
            self,
            prompts=[self.prompts[row] for row in index],
            ids=[self.ids[row] for row in index],
            rewards=self.rewards[index],
            quality=None if self.quality is None else self.quality[index],
            learnability=None if self.learnability is None else self.learnability[index],
        )


def read_rewards(scored: Any, stage: str = "train_router", min_answered: float = 0.0) -> RewardTable:
    """Reads a scored table with one row per answer into matrices with one row per prompt.

    If a teacher has several answers to a prompt (they differ in `turn`, `sample` or `attempt`), the mean of those with
    a value is used. A prompt is therefore always one row, and no prompt is in two folds of a cross-validation. Prompts
    for which fewer than two teachers have a reward do not compare teachers and are left out.

    Args:
        scored (`Dataset`, or an iterable of rows): Table with `prompt_id`, `prompt`, `teacher` and `reward`.
        stage (`str`): Name of the caller, for errors.
        min_answered (`float`, defaults to 0): Minimum share of the prompts, 0 to 1, that a teacher must have answered.
            It must also have rewards for this share of the number of prompts of the teacher with most rewards. Other
            teachers are left out.

    Returns:
        `RewardTable`: Prompts in order of first appearance, teachers with the best mean reward first.

    Raises:
        MissingColumnError: If a column is absent.
        DataError: If two rows have the same key, a value is infinite, or fewer than two teachers or prompts have
            rewards.
    """
    data = _as_columns(scored)
    columns.require_columns(data, [columns.PROMPT_ID, columns.PROMPT, columns.TEACHER, columns.REWARD], stage)
    ids = list(dict.fromkeys(data[columns.PROMPT_ID]))
    names = list(dict.fromkeys(data[columns.TEACHER]))
    row_of = {identity: row for row, identity in enumerate(ids)}
    column_of = {name: column for column, name in enumerate(names)}
    rows = np.array([row_of[identity] for identity in data[columns.PROMPT_ID]], dtype=int)
    teachers = np.array([column_of[name] for name in data[columns.TEACHER]], dtype=int)
    _refuse_repeated(columns.row_keys(data), stage)

    def matrix(name: str) -> Array | None:
        if name not in data:
            return None
        values = np.array([np.nan if value is None else float(value) for value in data[name]])
        if np.isinf(values).any():
            raise DataError(f"{stage} needs finite numbers in the column `{name}`, got an infinite one.")
        return _cell_means(values, rows, teachers, (len(ids), len(names)))

    rewards = matrix(columns.REWARD)
    assert rewards is not None
    failed = _failing(data, names, rows, teachers, rewards, min_answered)
    prompts = dict(zip(data[columns.PROMPT_ID][:], data[columns.PROMPT][:], strict=True))
    order = np.argsort(-teacher_means(rewards), kind="stable")
    table = RewardTable(
        [prompts[identity] for identity in ids],
        ids,
        names,
        rewards,
        matrix(columns.QUALITY),
        matrix(columns.LEARNABILITY),
        _only(data, columns.STUDENT),
        _only(data, columns.STUDENT_REVISION),
        failed,
    ).reordered(
        [names[column] for column in order if not np.isnan(rewards[:, column]).all() and names[column] not in failed]
    )
    table = table.subset(np.flatnonzero((~np.isnan(table.rewards)).sum(axis=1) >= 2))
    if len(table.teachers) < 2 or len(table.prompts) < 2:
        raise DataError(
            f"{stage} needs at least two prompts on which at least two teachers have a reward; "
            f"got {len(table.prompts)} such prompts and {len(table.teachers)} teachers with rewards."
            + "".join(f" {line}" for line in left_out_lines(table, min_answered))
        )
    return table


def left_out_lines(table: RewardTable, min_answered: float) -> list[str]:
    """Returns one sentence per teacher that was left out, with the reason and the option that keeps it."""
    return [
        f"The teacher {name!r} is left out: it {gave}; `router.min_answered` requires a share of {min_answered:g}."
        for name, gave in table.left_out.items()
    ]


def _failing(
    data: Mapping[str, Sequence[Any]], names: Sequence[str], rows: Any, teachers: Any, rewards: Array, minimum: float
) -> dict[str, str]:
    """Returns the teachers that mostly failed, with the reason. Missing rewards are compared with other teachers'."""
    known = ~np.isnan(rewards)
    answered = known
    if columns.ERROR in data:
        answered = np.zeros_like(known)
        fine = np.array([error is None for error in data[columns.ERROR]], dtype=bool)
        answered[rows[fine], teachers[fine]] = True
    asked, counts, rewarded = len(rewards), answered.sum(axis=0), known.sum(axis=0)
    most = int(rewarded.max(initial=0))
    failing = {}
    for column, name in enumerate(names):
        if counts[column] < minimum * asked:
            failing[name] = f"answered {counts[column]} of {asked} prompts"
        elif rewarded[column] < minimum * most:
            failing[name] = f"has rewards for {rewarded[column]} prompts, and another teacher has {most}"
    return failing


def _as_columns(scored: Any) -> Mapping[str, Sequence[Any]]:
    if hasattr(scored, "column_names"):
        names = scored.column_names
        if isinstance(names, dict):
            raise DataError("Expected one table, got a DatasetDict; pass one of its splits.")
        wanted = (
            columns.PROMPT_ID,
            columns.PROMPT,
            columns.TEACHER,
            columns.REWARD,
            columns.QUALITY,
            columns.LEARNABILITY,
            columns.STUDENT,
            columns.STUDENT_REVISION,
            columns.ERROR,
            *columns.ROW_NUMBERS,
        )
        return {name: list(scored[name]) if name in wanted else [] for name in names}
    if isinstance(scored, Mapping):
        return scored
    if not isinstance(scored, Iterable):
        raise DataError(f"Expected a Dataset or rows, got {type(scored).__name__}.")
    rows = list(scored)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def _only(data: Mapping[str, Sequence[Any]], name: str) -> str | None:
    values = {value for value in data.get(name, ()) if value is not None}
    return str(values.pop()) if len(values) == 1 else None


def _cell_means(values: Array, rows: Any, teachers: Any, shape: tuple[int, int]) -> Array:
    """Returns the mean value of each prompt's answers by each teacher, of the given shape; NaN where none has one."""
    known = ~np.isnan(values)
    cells = rows[known], teachers[known]
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, cells, values[known])
    np.add.at(counts, cells, 1)
    means: Array = np.divide(sums, counts, out=np.full(shape, np.nan), where=counts > 0)
    return means


def _refuse_repeated(keys: Sequence[columns.RowKey], stage: str) -> None:
    if len(set(keys)) == len(keys):
        return
    prompt_id, teacher, *_ = next(key for key, count in Counter(keys).items() if count > 1)
    raise DataError(
        f"{stage} needs one row per prompt and teacher; prompt {prompt_id} has several of {teacher!r}. Drop the "
        "repeated rows, or number them in the column `sample` if they are different answers."
    )
