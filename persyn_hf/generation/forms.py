"""The forms that prompts ask their answers to have, looked at before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.prompts.sending import canonical_format


def require_forms(table: Dataset) -> None:
    """Reads the column `response_format`, where there is one.

    Raises:
        DataError: If a row's is none; the row is named.
    """
    if columns.RESPONSE_FORMAT not in table.column_names:
        return
    for row, value in enumerate(table[columns.RESPONSE_FORMAT]):
        try:
            canonical_format(value)
        except DataError as error:
            raise DataError(f"Row {row}: {error}") from None


def require_forms_understood(table: Dataset, teachers: Sequence[Teacher]) -> None:
    """Checks that every teacher can be held to the forms that prompts ask for.

    Raises:
        ConfigError: If a prompt has a `response_format` and a teacher runs in this process.
    """
    local = [teacher.name for teacher in teachers if teacher.backend == "local"]
    if not local or columns.RESPONSE_FORMAT not in table.column_names:
        return
    if any(canonical_format(value) is not None for value in table[columns.RESPONSE_FORMAT]):
        raise ConfigError(
            f"teacher `{local[0]}`: generation in this process cannot hold an answer to a `response_format`, which "
            "some prompts have; ask the model through a server, or drop the column."
        )
