"""Prompts in: the checks before anything is spent, and the columns that generation adds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.generation.plan import CHUNK

#: The columns that generation adds, with their types, so that a column of nulls keeps its type.
GENERATED_FEATURES = {
    columns.TEACHER: Value("string"),
    columns.COMPLETION: Value("string"),
    columns.REASONING: Value("string"),
    columns.FINISH_REASON: Value("string"),
    columns.PROMPT_TOKENS: Value("int64"),
    columns.COMPLETION_TOKENS: Value("int64"),
    columns.USAGE_SOURCE: Value("string"),
    columns.TEMPERATURE: Value("float64"),
    columns.TOP_P: Value("float64"),
    columns.MAX_TOKENS: Value("int64"),
    columns.STOP: List(Value("string")),
    columns.SEED: Value("int64"),
    columns.SYSTEM_PROMPT: Value("string"),
    columns.REROUTED_FROM: Value("string"),
    columns.ERROR: Value("string"),
}


def prompt_table(prompts: Dataset | Iterable[Mapping[str, Any] | str], stage: str) -> Dataset:
    """Checks prompts and gives them as a table with `prompt_id`.

    Raises:
        DataError: If there is no `prompt`, one is empty or not a prompt (the row is named), one stands twice, or the
            table already has columns that generation would add.
    """
    if not isinstance(prompts, Dataset):
        rows = [{columns.PROMPT: row} if isinstance(row, str) else dict(row) for row in prompts]
        prompts = Dataset.from_list(rows) if rows else Dataset.from_dict({columns.PROMPT: []})
    table = prompts.with_format(None)
    columns.require_columns(table.column_names, [columns.PROMPT], stage)
    taken = [name for name in GENERATED_FEATURES if name in table.column_names]
    if taken:
        raise DataError(
            f"{stage} adds the column {', '.join(f'`{name}`' for name in taken)}, which the table already has; "
            "rename or remove it first."
        )
    ids = []
    only = table.select_columns([columns.PROMPT])
    for start in range(0, len(table), CHUNK):
        for offset, prompt in enumerate(only[start : start + CHUNK][columns.PROMPT]):
            try:
                ids.append(columns.prompt_id(prompt))
            except DataError as error:
                raise DataError(f"Row {start + offset}: {error}") from error
    columns.require_unique(ids, stage)
    if columns.PROMPT_ID not in table.column_names:
        # As an array, which is fingerprinted at once; of a list, every string is pickled.
        table = table.add_column(columns.PROMPT_ID, np.array(ids, dtype=np.str_), feature=Value("string"))
        names = [name for name in table.column_names if name != columns.PROMPT_ID]
        table = table.select_columns([columns.PROMPT_ID, *names])
    elif table[columns.PROMPT_ID][:] != ids:
        first = next(i for i, (a, b) in enumerate(zip(table[columns.PROMPT_ID], ids, strict=True)) if a != b)
        raise DataError(f"Row {first}: `prompt_id` is not that of its prompt ({ids[first]}); drop the column.")
    return table


def require_known_routes(table: Dataset, teachers: Sequence[Teacher]) -> None:
    """Checks that every prompt is routed to one of the teachers.

    Raises:
        MissingColumnError: If there is no `route`.
        RouterMismatchError: If one names another teacher.
    """
    columns.require_columns(table.column_names, [columns.ROUTE], "generate_routed")
    names = [teacher.name for teacher in teachers]
    unknown = sorted({str(route) for route in table.unique(columns.ROUTE)} - set(names))
    if unknown:
        raise RouterMismatchError(
            f"`route` names {', '.join(unknown)}, but the teachers are {', '.join(names)}. "
            "Route with a router that was trained for these teachers, or configure those it names."
        )


def require_ranking(
    table: Dataset, teachers: Sequence[Teacher], ranking: Sequence[str] | None
) -> Sequence[str] | None:
    """The names that `route_scores` stand for, checked against the table.

    Raises:
        ConfigError: If a teacher is to be rerouted and the table has no scores, or they are not of these names.
    """
    wanted = [teacher.name for teacher in teachers if teacher.on_teacher_down == "reroute"]
    if not wanted:
        return None
    names = list(ranking) if ranking is not None else [teacher.name for teacher in teachers]
    if columns.ROUTE_SCORES not in table.column_names:
        raise ConfigError(
            f"teacher `{wanted[0]}`: `on_teacher_down: reroute` needs the column `{columns.ROUTE_SCORES}`, which "
            "routing adds; route with a router, or choose `wait` or `error`."
        )
    lengths = {len(scores) for scores in table[columns.ROUTE_SCORES][:CHUNK]} - {len(names)}
    if lengths:
        raise ConfigError(
            f"`{columns.ROUTE_SCORES}` has {lengths.pop()} scores a row for the {len(names)} teachers "
            f"{', '.join(names)}; give the router's `teachers` as `score_names`."
        )
    return names
