"""Reads prompts of any format into the table that all stages share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Prompts
from persyn_hf.errors import ConfigError, DataError, DuplicatePromptError
from persyn_hf.messages import ASSISTANT, Message, said
from persyn_hf.prompts.formats import feature_of
from persyn_hf.prompts.shapes import Shape, find_shape, reader_of
from persyn_hf.prompts.sources import Located, locate

if TYPE_CHECKING:
    from datasets import Dataset

_log = logging.getLogger(__name__)
#: Maximum number of rows listed in an error.
_NAMED = 5
#: Prefix of a source column whose name persyn_hf uses itself.
_RENAMED = "source_"


@dataclass
class _Made:
    """Prompts read from the rows of a table.

    Args:
        kind (`str`): Description of the cells.
        prompts (`list`): Prompts, as strings or messages.
        ids (`list[str]`): Ids of the prompts.
        references (`list`): Answers from the end of conversations.
        tools (`list`): Canonical tool definitions, or `None`.
        wrong (`list[tuple[int, str]]`): Indices of rows without a prompt, each with the reason.
    """

    kind: str
    prompts: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    references: list[str | None] = field(default_factory=list)
    tools: list[list[Message] | None] = field(default_factory=list)
    wrong: list[tuple[int, str]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Number of prompts whose answer was removed."""
        return sum(reference is not None for reference in self.references)


@dataclass(frozen=True)
class Loaded:
    """Prompts, and the counts of dropped rows.

    Args:
        table (`Dataset`): Table of prompts, as returned by [`load_prompts`].
        dropped (`Mapping[str, int]`): Counts of rows that `on_bad_prompt: drop` dropped, by reason.
    """

    table: Dataset
    dropped: Mapping[str, int]


def load_prompts(prompts: Prompts, where: str = "prompts", unique: bool = True) -> Dataset:
    """Loads and checks the prompts of a run.

    The source's other columns are kept. A column whose name persyn_hf uses (`teacher`, `reward` …) is renamed with the
    prefix `source_`. A detected format, renamed columns and removed answers are logged.

    Args:
        prompts (`Prompts`): Source, format and columns of the prompts.
        where (`str`, defaults to `"prompts"`): Name of the section in errors ("run.yaml: prompts").
        unique (`bool`, defaults to `True`): Whether to raise an error for a repeated prompt.

    Returns:
        `Dataset`: `prompt_id`, `prompt` (all strings, or all messages), `answer` and `tools` if there are any, and the
        other columns.

    Raises:
        ConfigError: If the source cannot be read, a column is missing, or several columns may hold the prompts.
        DataError: If a row holds no prompt or repeats one. The error names file and row.

    Example:
        >>> load_prompts(Prompts(source="talks.jsonl", format="sharegpt"))  # doctest: +SKIP
    """
    return read_prompts(prompts, where, unique).table


def read_prompts(prompts: Prompts, where: str = "prompts", unique: bool = True) -> Loaded:
    """Loads the prompts of a run like [`load_prompts`], and counts the dropped rows.

    Args:
        prompts (`Prompts`): Source, format and columns of the prompts.
        where (`str`, defaults to `"prompts"`): Name of the section in errors.
        unique (`bool`, defaults to `True`): Whether to treat a repeated prompt as a bad one.

    Raises:
        ConfigError, DataError: As in [`load_prompts`]. With `on_bad_prompt: drop`, rows that hold no prompt or repeat
            one are dropped instead.
    """
    located = locate(
        prompts.source, f"{where}.source", config=prompts.config, split=prompts.split, revision=prompts.revision
    )
    table = located.table
    if prompts.limit is not None:
        table = table.select(range(min(prompts.limit, len(table))))
    if len(table) == 0:
        raise DataError(f"{where}.source: {prompts.location} holds no prompts.")
    shape = find_shape(table.column_names, prompts, where)
    tools = _tools_column(table, prompts)
    made = _made(table, shape, prompts, tools)
    dropped: Mapping[str, int] = {}
    if prompts.on_bad_prompt == "drop":
        rows, dropped = _drop_bad(made, len(table), unique)
        table = table.select(rows)
        if not rows:
            raise DataError(f"{where}.source: {prompts.location} holds no prompts that can be read.")
    _require_sound(made, located, unique)
    beside = _beside(table, shape, prompts, tools, where)
    plain = made.kind in ("text", "messages", "a template")
    lines = [f"read as {shape.said(made.kind)}"] if shape.found or not plain else []
    lines += [f"the answer at the end of {made.answered} conversations was {_FATES[prompts.last_assistant]}"] * bool(
        made.answered
    )
    lines += [
        f"the column `{old}` was renamed to `{new}`, since persyn_hf uses `{old}`"
        for old, new in beside.items()
        if old != new
    ]
    for line in lines:
        _log.warning("%s: %s.", prompts.location, line)
    return Loaded(_table(made, table, prompts, beside), dropped)


_FATES = {"drop": "dropped", "reference": "kept as the reference `answer`"}


def _made(table: Dataset, shape: Shape, prompts: Prompts, tools: str | None) -> _Made:
    names = [*shape.reads, *(name for name in (shape.system, tools) if name is not None)]
    cells = table.select_columns(list(dict.fromkeys(names))).with_format(None)[:]
    rows = [dict(zip(cells, values, strict=True)) for values in zip(*cells.values(), strict=True)]
    reader = reader_of(shape, rows)
    made = _Made(reader.kind)
    for index, row in enumerate(rows):
        try:
            prompt, reference = _without_answer(reader.read(row), prompts.last_assistant)
            offered = None if tools is None else columns.canonical_tools(row[tools])
            made.ids.append(columns.prompt_id(prompt, offered))
        except DataError as error:
            made.wrong.append((index, str(error)))
            continue
        made.prompts.append(prompt)
        made.references.append(reference)
        made.tools.append(offered)
    return made


def _without_answer(prompt: Any, fate: str) -> tuple[Any, str | None]:
    """Splits a prompt from the answer at its end and returns both, the answer as text."""
    if isinstance(prompt, str) or fate == "error" or not prompt or prompt[-1]["role"] != ASSISTANT:
        return prompt, None
    kept = list(prompt)
    while kept and kept[-1]["role"] == ASSISTANT:
        kept.pop()
    if not kept:
        raise DataError("A prompt is empty: the conversation holds only an answer.")
    return kept, said(prompt[-1])


def _drop_bad(made: _Made, count: int, unique: bool) -> tuple[list[int], dict[str, int]]:
    """Removes rows that hold no prompt or repeat one. Returns the indices that remain, and counts by reason."""
    counts = Counter(reason for _, reason in made.wrong)
    wrong = {index for index, _ in made.wrong}
    rows = [index for index in range(count) if index not in wrong]
    first: dict[str, int] = {}
    kept = [place for place, key in enumerate(made.ids) if not unique or first.setdefault(key, place) == place]
    if len(kept) < len(rows):
        counts["it repeats an earlier prompt"] = len(rows) - len(kept)
    for name in ("prompts", "ids", "references", "tools"):
        values = getattr(made, name)
        setattr(made, name, [values[place] for place in kept])
    made.wrong = []
    return [rows[place] for place in kept], dict(counts.most_common())


def _require_sound(made: _Made, located: Located, unique: bool) -> None:
    if made.wrong:
        (first, why), *others = made.wrong
        more = ", ".join(located.row(index) for index, _ in others[: _NAMED - 1])
        open_end = " …" if len(others) >= _NAMED else ""
        also = f" {len(others)} more rows are wrong: {more}{open_end}." if more else ""
        raise DataError(f"{located.row(first)}: {why}{also}")
    if not unique:
        return
    seen: dict[str, int] = {}
    repeated = [(index, seen[key]) for index, key in enumerate(made.ids) if seen.setdefault(key, index) != index]
    if repeated:
        (again, before), names = repeated[0], ", ".join(dict(located.parts))
        raise DuplicatePromptError(
            f"{names} must hold every prompt once, but {len(repeated)} rows repeat an earlier prompt; the first is "
            f"{located.row(again)}, which repeats {located.row(before)}. Remove the duplicates."
        )


def _tools_column(table: Dataset, prompts: Prompts) -> str | None:
    """Returns the column of tools: the configured one, or `tools` if every cell holds functions or nothing."""
    if prompts.tools_column is not None:
        return prompts.tools_column
    if columns.TOOLS not in table.column_names or columns.TOOLS in (prompts.column, prompts.answer_column):
        return None
    found = 0
    for value in table.with_format(None)[columns.TOOLS]:
        try:
            tools = columns.canonical_tools(value) or []
        except DataError:
            return None
        if not all("function" in tool or "type" in tool for tool in tools):
            return None
        found += bool(tools)
    return columns.TOOLS if found else None


def _beside(table: Dataset, shape: Shape, prompts: Prompts, tools: str | None, where: str) -> dict[str, str]:
    """Maps the names of the other columns to keep to their names in the table of prompts."""
    taken = {*shape.reads, shape.system, tools, prompts.answer_column}
    if shape.format == "preference":
        taken |= {"chosen", "rejected"}
    names = [name for name in table.column_names if name not in taken]
    if prompts.keep_columns is not None:
        unknown = [name for name in prompts.keep_columns if name not in table.column_names]
        if unknown:
            raise ConfigError(
                f"{where}.keep_columns: there is no column `{unknown[0]}` in {prompts.location}; it has "
                f"{', '.join(table.column_names)}."
            )
        names = [name for name in names if name in prompts.keep_columns]
    beside: dict[str, str] = {}
    referenced = prompts.answer_column is not None or prompts.last_assistant == "reference"
    free = {columns.RESPONSE_FORMAT} if referenced else {columns.RESPONSE_FORMAT, columns.ANSWER}
    for name in names:
        new = name
        while (columns.is_own(new) and new not in free) or (
            new != name and (new in table.column_names or new in beside.values())
        ):
            new = f"{_RENAMED}{new}"
        beside[name] = new
    return beside


def _table(made: _Made, table: Dataset, prompts: Prompts, beside: dict[str, str]) -> Dataset:
    """Builds the table of prompts, with the other columns to keep."""
    from datasets import Dataset, Features, Json, List, Value, concatenate_datasets

    values: dict[str, Sequence[Any]] = {columns.PROMPT_ID: made.ids, columns.PROMPT: made.prompts}
    features = {columns.PROMPT_ID: Value("string"), columns.PROMPT: prompt_feature(made.prompts)}
    if prompts.answer_column is not None:
        values[columns.ANSWER] = list(table[prompts.answer_column])
        features[columns.ANSWER] = table.features[prompts.answer_column]
    elif prompts.last_assistant == "reference":
        values[columns.ANSWER], features[columns.ANSWER] = made.references, Value("string")
    if any(made.tools):
        values[columns.TOOLS], features[columns.TOOLS] = made.tools, List(Json())
    front = Dataset.from_dict(dict(values), features=Features(features))
    beside = {old: new for old, new in beside.items() if old != columns.PROMPT_ID or _differs(table, made.ids)}
    if not beside:
        return front
    kept = table.select_columns(list(beside)).flatten_indices()
    kept = kept.rename_columns({old: new for old, new in beside.items() if old != new})
    return concatenate_datasets([front, kept], axis=1)


def _differs(table: Dataset, ids: list[str]) -> bool:
    return list(table.with_format(None)[columns.PROMPT_ID]) != ids


def prompt_feature(prompts: Sequence[columns.Prompt]) -> Any:
    """Returns the type of a column of prompts: strings, messages of role and content, or JSON.

    Arrow adds the keys of all messages to every message. Its type for messages is therefore used only if all messages
    have the same keys.
    """
    from datasets import List, Value

    text = Value("string")
    return List({"role": text, "content": text}) if all(map(_is_simple, prompts)) else feature_of(prompts)


def _is_simple(prompt: object) -> bool:
    """Returns True if a prompt is a list of messages with role and text only."""
    return isinstance(prompt, list) and all(
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and isinstance(message["role"], str)
        and isinstance(message["content"], str)
        for message in prompt
    )


def random_probe(prompts: Dataset, size: int, seed: int, where: str = "probe") -> Dataset:
    """Draws the probe: a seeded random subset of the prompts, in their original order.

    Raises:
        ConfigError: If `size` is larger than the number of prompts.
    """
    import numpy as np

    if size > len(prompts):
        raise ConfigError(f"{where}.size: must be at most the number of prompts, {len(prompts)}, got {size}.")
    chosen = np.random.default_rng(seed).choice(len(prompts), size=size, replace=False)
    return prompts.select(sorted(chosen.tolist()))
