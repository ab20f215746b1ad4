"""Input of generation: checks the prompts and builds the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from datasets import Dataset, Value

from persyn_hf import columns
from persyn_hf.errors import DataError
from persyn_hf.generation.forms import require_forms
from persyn_hf.generation.jobs import CHUNK
from persyn_hf.generation.table import GENERATED_FEATURES
from persyn_hf.prompts.formats import rows_table
from persyn_hf.prompts.reading import prompt_feature
from persyn_hf.tables import require_table


def prompt_table(prompts: Dataset | Iterable[Mapping[str, object] | str], stage: str) -> Dataset:
    """Checks prompts and returns them as a table with `prompt_id`.

    A prompt may occur several times if `turn`, `sample` and `attempt` distinguish its rows.

    Raises:
        DataError: If there is no column `prompt`, a prompt is empty or not valid (the row is named) or occurs twice,
            one of `turn`, `sample` and `attempt` is not an integer, or the table already has columns that generation
            would add.
    """
    require_table(prompts, stage, "routed" if stage == "generate_routed" else "prompts", rows=True)
    table = _as_table(prompts).with_format(None)
    columns.require_columns(table.column_names, [columns.PROMPT], stage)
    taken = [
        name for name in (*GENERATED_FEATURES, columns.EXTRA_BODY, columns.TOOL_CALLS) if name in table.column_names
    ]
    if taken:
        raise DataError(
            f"{stage} adds the column {', '.join(f'`{name}`' for name in taken)}, which the table already has; "
            "rename or remove it first."
        )
    ids = []
    only = table.select_columns([name for name in (columns.PROMPT, columns.TOOLS) if name in table.column_names])
    for start in range(0, len(table), CHUNK):
        batch = only[start : start + CHUNK]
        tools = batch.get(columns.TOOLS) or [None] * len(batch[columns.PROMPT])
        for offset, (prompt, offered) in enumerate(zip(batch[columns.PROMPT], tools, strict=True)):
            try:
                ids.append(columns.prompt_id(prompt, offered))
            except DataError as error:
                raise DataError(f"Row {start + offset}: {error}") from error
    require_forms(table)
    table, numbers = _numbered(table)
    columns.require_unique(
        (identity + columns.numbered(own) for identity, own in zip(ids, numbers, strict=True)),
        stage,
        also=", or number them in the column `sample` to have each answered separately",
    )
    if columns.PROMPT_ID not in table.column_names:
        # As an array, which is fingerprinted at once; in a list, every string would be pickled.
        table = table.add_column(columns.PROMPT_ID, np.array(ids, dtype=np.str_), feature=Value("string"))
        names = [name for name in table.column_names if name != columns.PROMPT_ID]
        table = table.select_columns([columns.PROMPT_ID, *names])
    elif table[columns.PROMPT_ID][:] != ids:
        first = next(i for i, (a, b) in enumerate(zip(table[columns.PROMPT_ID], ids, strict=True)) if a != b)
        raise DataError(f"Row {first}: `prompt_id` does not match its prompt ({ids[first]}); drop the column.")
    return table


def _as_table(prompts: Dataset | Iterable[Mapping[str, object] | str]) -> Dataset:
    if isinstance(prompts, Dataset):
        return prompts
    rows = [_as_row(row, index) for index, row in enumerate(prompts)]
    if not rows:
        return Dataset.from_dict({columns.PROMPT: []})
    return rows_table(rows, types={columns.PROMPT: prompt_feature})


def _as_row(row: object, index: int) -> dict[str, object]:
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, str | list):  # a plain prompt
        return {columns.PROMPT: row}
    raise DataError(f"Row {index}: expected a mapping with `{columns.PROMPT}`, or a prompt, got {type(row).__name__}.")


def _numbered(table: Dataset) -> tuple[Dataset, list[columns.RowNumbers]]:
    """Converts the columns `turn`, `sample` and `attempt` to int64; returns the table and the numbers of its rows."""
    numbers = columns.row_numbers(table)
    names = table.column_names
    for name in columns.ROW_NUMBERS:
        if name in names and table.features[name] != Value("int64"):
            values = [None if value is None else int(value) for value in table[name]]
            table = table.remove_columns(name).add_column(name, values, feature=Value("int64")).select_columns(names)
    return table, numbers
