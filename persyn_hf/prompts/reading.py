"""Reads prompts from a file, a saved dataset or the Hub into the table that all stages share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.tables import read_table

if TYPE_CHECKING:
    from datasets import Dataset


def load_prompts(prompts: Prompts, where: str = "prompts") -> Dataset:
    """Loads and checks the prompts of a run.

    Args:
        prompts (`Prompts`): Source, column names and limit.
        where (`str`, defaults to `"prompts"`): Names the section in errors ("run.yaml: prompts").

    Returns:
        `Dataset`: `prompt_id`, `prompt` and, where an answer column is named, `answer`.

    Raises:
        ConfigError: If the source cannot be read or a column is not there.
        DataError: If a prompt is empty or stands twice; the message names the row.
    """
    data = read_table(
        prompts.source, f"{where}.source", config=prompts.config, split=prompts.split, revision=prompts.revision
    )
    for key, name in (("column", prompts.column), ("answer_column", prompts.answer_column)):
        if name is not None and name not in data.column_names:
            raise ConfigError(
                f"{where}.{key}: there is no column `{name}` in {prompts.source}; "
                f"it has {', '.join(data.column_names)}."
            )
    if prompts.limit is not None:
        data = data.select(range(min(prompts.limit, len(data))))
    if len(data) == 0:
        raise DataError(f"{where}.source: {prompts.source} holds no prompts.")
    named = {columns.PROMPT: data[prompts.column][:]}
    if prompts.answer_column is not None:
        named[columns.ANSWER] = data[prompts.answer_column][:]
    return with_ids(named, features=data.features, prompts=prompts)


def with_ids(named: dict[str, list[Any]], features: Any, prompts: Prompts) -> Dataset:
    """Adds `prompt_id` to columns of prompts, and refuses empty and repeated prompts."""
    from datasets import Dataset, Features, Value

    ids = []
    for index, prompt in enumerate(named[columns.PROMPT]):
        try:
            ids.append(columns.prompt_id(prompt))
        except DataError as error:
            raise DataError(f"{prompts.source}, row {index}: {error}") from error
    columns.require_unique(ids, prompts.source)
    kept = {columns.PROMPT_ID: Value("string"), columns.PROMPT: features[prompts.column]}
    if columns.ANSWER in named:
        kept[columns.ANSWER] = features[prompts.answer_column]
    return Dataset.from_dict({columns.PROMPT_ID: ids, **named}, features=Features(kept))


def random_probe(prompts: Dataset, size: int, seed: int, where: str = "probe") -> Dataset:
    """Draws the probe: a seeded random subset of the prompts, in their order.

    Raises:
        ConfigError: If there are fewer prompts than the probe is to have.
    """
    import numpy as np

    if size > len(prompts):
        raise ConfigError(f"{where}.size: must be at most the number of prompts, {len(prompts)}, got {size}.")
    chosen = np.random.default_rng(seed).choice(len(prompts), size=size, replace=False)
    return prompts.select(sorted(chosen.tolist()))
