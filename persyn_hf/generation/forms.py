"""Checks of the column `response_format`, before any request is sent."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.prompts.sending import canonical_format


def require_forms(table: Dataset) -> None:
    """Checks the column `response_format`, if there is one.

    Raises:
        DataError: If a value is not a valid format; the message names the row.
    """
    if columns.RESPONSE_FORMAT not in table.column_names:
        return
    for row, value in enumerate(table[columns.RESPONSE_FORMAT]):
        try:
            canonical_format(value)
        except DataError as error:
            raise DataError(f"Row {row}: {error}") from None


def require_forms_understood(table: Dataset, teachers: Sequence[Teacher]) -> None:
    """Checks that every teacher supports the response formats of the prompts.

    Raises:
        ConfigError: If a prompt has a `response_format` and a teacher runs in this process.
    """
    local = [teacher.name for teacher in teachers if teacher.backend == "local"]
    if not local or columns.RESPONSE_FORMAT not in table.column_names:
        return
    if any(canonical_format(value) is not None for value in table[columns.RESPONSE_FORMAT]):
        raise ConfigError(
            f"teacher `{local[0]}`: generation in this process does not support `response_format`, which some prompts "
            "have; serve the model with a server, or drop the column."
        )
