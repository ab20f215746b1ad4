"""Expected lengths of prompts and answers: counted, given, sampled, or bounded by `max_tokens`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher
from persyn_hf.errors import ConfigError
from persyn_hf.messages import said
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import identity, load_tokenizer
from persyn_hf.models.readable import apply_template
from persyn_hf.packages import absent, pip_command

if TYPE_CHECKING:
    from datasets import Dataset

#: Number of evenly spaced prompts whose tokens are counted to estimate the mean.
COUNTED = 1000

#: Counts of tokens that have prices of their own, among those of a prompt and of an answer.
_FINER = (columns.CACHED_TOKENS, columns.REASONING_TOKENS)

#: Characters of a token where no tokenizer is at hand.
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of prompts and answers.

    Args:
        prompt (`Mapping[str, float]`): By teacher, its system prompt included.
        completion (`Mapping[str, float]`): By teacher.
        student_prompt (`float`): A prompt as the student reads it, without any teacher's system prompt.
        quality (`Mapping[str, float]`): Mean quality by teacher, where a scored sample tells it; else empty.
        notes (`Sequence[str]`): Where the numbers come from, one sentence each.
        cached, reasoning (`Mapping[str, float]`): By teacher, tokens of a prompt that come from a cache and tokens of
            an answer that go into reasoning, which have prices of their own.
    """

    prompt: Mapping[str, float]
    completion: Mapping[str, float]
    student_prompt: float
    quality: Mapping[str, float]
    notes: Sequence[str]
    cached: Mapping[str, float] = field(default_factory=dict)
    reasoning: Mapping[str, float] = field(default_factory=dict)


def measure_lengths(
    config: RunConfig,
    prompts: Dataset,
    completion_tokens: float | Mapping[str, float] | None = None,
    sample: Dataset | None = None,
) -> Lengths:
    """Measures the prompts, and estimates the answers from a given length, a sample or `max_tokens`.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompts (`Dataset`): Prompts with `prompt`.
        completion_tokens (`float` or mapping by teacher, *optional*): Mean tokens of an answer.
        sample (`Dataset`, *optional*): Answers of the teachers with `teacher`, `completion_tokens` and, optionally,
            `quality`.

    Raises:
        ConfigError: If `completion_tokens` and `sample` are both given, a teacher is missing, or a length is not
            positive.
    """
    if completion_tokens is not None and sample is not None:
        raise ConfigError("Give `completion_tokens` or `sample`, not both.")
    count, note = _counter(config)
    chosen = prompts.select(range(0, len(prompts), max(1, len(prompts) // COUNTED)))
    own = [count(columns.canonical_messages(prompt)) for prompt in chosen[columns.PROMPT]]
    mean = sum(own) / len(own)
    system = {
        teacher.name: count([{"role": "system", "content": teacher.system_prompt}]) if teacher.system_prompt else 0
        for teacher in config.teachers
    }
    quality: dict[str, float] = {}
    finer: dict[str, dict[str, float]] = {}
    unknown = [teacher.name for teacher in config.teachers if len(set(teacher.prices[1::2])) > 1]
    if sample is not None:
        completion = _means(sample, columns.COMPLETION_TOKENS)
        if columns.QUALITY in sample.column_names:
            quality = _means(sample, columns.QUALITY)
        finer = {name: _shares(sample, name) for name in _FINER if name in sample.column_names}
        unknown = [name for name in unknown if columns.REASONING_TOKENS not in finer]
        source = f"Answers have the mean length of a sample of {len(sample)}."
    elif completion_tokens is None:
        completion = {teacher.name: float(teacher.sampling.max_tokens) for teacher in config.teachers}
        source = "Answers are taken to be as long as `max_tokens` allows: an upper bound. Give a length or a sample."
        finer = {columns.REASONING_TOKENS: {t.name: completion[t.name] for t in config.teachers if _thinks_dearly(t)}}
        unknown = []
    else:
        given = completion_tokens
        every = given if isinstance(given, Mapping) else {teacher.name: given for teacher in config.teachers}
        completion = {name: float(tokens) for name, tokens in every.items()}
        source = "Answers are assumed to have the given length."
    _require_all(config.teachers, completion)
    notes = [f"{note} (mean of {len(own)} prompts).", source]
    if unknown:
        notes.append(
            f"How much of an answer of {', '.join(unknown)} is reasoning, which has a price of its own, is not known: "
            "it is planned at the price of other tokens. Give a sample with `reasoning_tokens`."
        )
    return Lengths(
        prompt={name: mean + extra for name, extra in system.items()},
        completion={teacher.name: completion[teacher.name] for teacher in config.teachers},
        student_prompt=mean,
        quality=quality,
        notes=tuple(notes),
        cached=finer.get(columns.CACHED_TOKENS, {}),
        reasoning=finer.get(columns.REASONING_TOKENS, {}),
    )


def _thinks_dearly(teacher: Teacher) -> bool:
    """Returns whether a teacher's reasoning costs more than the rest of an answer."""
    return teacher.prices[3] > teacher.prices[1]


def read_sample(path: str | os.PathLike[str]) -> Dataset:
    """Reads a Parquet file of answers, such as `stages/probe.parquet` or `stages/score.parquet` of an earlier run.

    Raises:
        ConfigError: If the file cannot be read.
        MissingColumnError: If `teacher` or `completion_tokens` is missing.
    """
    import pyarrow
    import pyarrow.parquet as pq
    from datasets import Dataset

    try:
        table = pq.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ConfigError(f"The sample {os.fspath(path)} cannot be read as Parquet: {error}") from error
    needed = (columns.TEACHER, columns.COMPLETION_TOKENS)
    columns.require_columns(table.column_names, needed, f"the sample {os.fspath(path)}")
    return Dataset(
        table.select([*needed, *sorted({columns.QUALITY, columns.FINISH_REASON, *_FINER} & set(table.column_names))])
    )


def _counter(config: RunConfig) -> tuple[Callable[[list[columns.Message]], float], str]:
    """Returns a function that counts the tokens of messages, and a description of it."""
    if config.student is None:
        return _by_characters, "Prompt tokens are characters divided by 4"
    if absent("transformers"):
        why = f"since `transformers` is not installed ({pip_command('transformers')})"
        return _by_characters, f"Prompt tokens are characters divided by 4, {why}"

    name = config.student.model
    tokenizer = load_tokenizer(ModelFiles(name, identity(name, config.student.revision), "`student.model`:"))

    def count(messages: list[columns.Message]) -> int:
        text = "\n".join(said(message) for message in messages)
        if messages[0]["role"] == "system" or not tokenizer.chat_template:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])
        rendered = apply_template(tokenizer, messages, add_generation_prompt=True)
        return len(tokenizer(rendered, add_special_tokens=False)["input_ids"])

    return count, f"Prompt tokens are counted with the tokenizer of {name}"


def _by_characters(messages: list[columns.Message]) -> float:
    return sum(len(said(message)) for message in messages) / CHARACTERS_PER_TOKEN


def _means(sample: Dataset, name: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for teacher, value in zip(sample[columns.TEACHER], sample[name], strict=True):
        if value is not None:
            values.setdefault(teacher, []).append(float(value))
    return {teacher: sum(own) / len(own) for teacher, own in values.items()}


def _shares(sample: Dataset, name: str) -> dict[str, float]:
    """Mean tokens of a part of the answers whose tokens were counted; a part that was not counted is none of them."""
    counted = zip(sample[columns.TEACHER], sample[columns.COMPLETION_TOKENS], sample[name], strict=True)
    values: dict[str, list[float]] = {}
    for teacher, all_of_it, part in counted:
        if all_of_it is not None:
            values.setdefault(teacher, []).append(float(part or 0))
    return {teacher: sum(own) / len(own) for teacher, own in values.items()}


def _require_all(teachers: Sequence[Teacher], completion: Mapping[str, float]) -> None:
    for teacher in teachers:
        if teacher.name not in completion:
            known = ", ".join(completion) or "none"
            raise ConfigError(f"Every teacher needs an answer length; {teacher.name} has none. Given: {known}.")
        if not completion[teacher.name] > 0:
            raise ConfigError(
                f"The answer length of {teacher.name} must be above 0 tokens, got {completion[teacher.name]}."
            )
