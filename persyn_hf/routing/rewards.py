"""The scored table as a matrix: one row per prompt, one column per teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persyn_hf import columns
from persyn_hf.errors import DataError
from persyn_hf.routing.heads import Array, teacher_means


@dataclass(frozen=True)
class RewardTable:
    """Scored answers, one row per prompt.

    Args:
        prompts (`list`): Strings or lists of chat messages.
        ids (`list[str]`): `prompt_id` of each.
        teachers (`list[str]`): Best mean reward first.
        rewards (`ndarray` of shape `(prompts, teachers)`): NaN where there is none.
        quality, learnability (`ndarray` of shape `(prompts, teachers)`, *optional*): Raw, NaN where missing.
        student, student_revision (`str`, *optional*): Where the table names one student only.
    """

    prompts: list[Any]
    ids: list[str]
    teachers: list[str]
    rewards: Array
    quality: Array | None = None
    learnability: Array | None = None
    student: str | None = None
    student_revision: str | None = None

    @property
    def means(self) -> Array:
        """Mean reward per teacher, shape `(teachers,)`."""
        return teacher_means(self.rewards)

    def mean_scores(self) -> dict[str, dict[str, float]]:
        """Mean `reward` of each teacher, and its mean `quality` and `learnability` where the table has them."""
        known = {"reward": self.rewards, "quality": self.quality, "learnability": self.learnability}
        return {
            name: dict(zip(self.teachers, map(float, teacher_means(values)), strict=True))
            for name, values in known.items()
            if values is not None and not np.isnan(values).all()
        }

    def reordered(self, teachers: Sequence[str]) -> RewardTable:
        """The same table with the teachers' columns in another order; a teacher that is not there is all NaN."""
        take = [self.teachers.index(name) if name in self.teachers else -1 for name in teachers]

        def pick(values: Array | None) -> Array | None:
            if values is None:
                return None
            padded = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)
            picked: Array = padded[:, take]
            return picked

        rewards = pick(self.rewards)
        assert rewards is not None
        return RewardTable(
            self.prompts,
            self.ids,
            list(teachers),
            rewards,
            pick(self.quality),
            pick(self.learnability),
            self.student,
            self.student_revision,
        )

    def subset(self, rows: Sequence[int] | np.ndarray[Any, Any]) -> RewardTable:
        """The same table with only some prompts."""
        index = np.asarray(rows, dtype=int)
        return RewardTable(
            [self.prompts[row] for row in index],
            [self.ids[row] for row in index],
            self.teachers,
            self.rewards[index],
            None if self.quality is None else self.quality[index],
            None if self.learnability is None else self.learnability[index],
            self.student,
            self.student_revision,
        )


def read_rewards(scored: Any, stage: str = "train_router") -> RewardTable:
    """Reads a scored table, in which a row is one answer, into a matrix.

    Where a teacher has several answers to a prompt, told apart by `turn`, `sample` or `attempt`, the mean of those
    that have a value counts, so that a prompt is one row however often it was asked and no fold of a cross-validation
    sees a prompt that another one was fitted on. Prompts on which fewer than two teachers have a reward say nothing
    about who is better and are left out.

    Args:
        scored (`Dataset`, or an iterable of rows): With `prompt_id`, `prompt`, `teacher` and `reward`.
        stage (`str`): Who asks, for messages.

    Returns:
        `RewardTable`: Prompts in order of first appearance, teachers with the best mean reward first.

    Raises:
        MissingColumnError: If a column is absent.
        DataError: If two rows have the same key, or fewer than two teachers or prompts have rewards.
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
        return _cell_means(values, rows, teachers, (len(ids), len(names)))

    rewards = matrix(columns.REWARD)
    assert rewards is not None
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
    ).reordered([names[column] for column in order if not np.isnan(rewards[:, column]).all()])
    table = table.subset(np.flatnonzero((~np.isnan(table.rewards)).sum(axis=1) >= 2))
    if len(table.teachers) < 2 or len(table.prompts) < 2:
        raise DataError(
            f"{stage} needs at least two prompts on which at least two teachers have a reward; "
            f"got {len(table.prompts)} such prompts and {len(table.teachers)} teachers with rewards."
        )
    return table


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
    """Mean value of each prompt's answers by each teacher, `shape`; NaN where none has a value."""
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
        "repeated rows, or number them in the column `sample` where they are answers of their own."
    )
