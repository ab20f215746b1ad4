"""Prompts of a run, read and filtered by the section `hygiene`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from persyn_hf.config import RunConfig
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.hygiene.clean import Cleaned, clean_prompts
from persyn_hf.prompts.benchmarks import load_benchmarks
from persyn_hf.prompts.reading import read_prompts


def load_clean_prompts(config: RunConfig, source: str = "configuration") -> Cleaned:
    """Reads the prompts of a run like [`read_clean_prompts`], without the dropped rows."""
    return read_clean_prompts(config, source)[0]


def read_clean_prompts(config: RunConfig, source: str = "configuration") -> tuple[Cleaned, Mapping[str, int]]:
    """Reads the prompts of a run and filters them by `hygiene`.

    Args:
        config (`RunConfig`): Configuration of the run.
        source (`str`): Name of the configuration in errors.

    Returns:
        `tuple[Cleaned, Mapping[str, int]]`: Remaining prompts, and the counts of rows that `prompts.on_bad_prompt:
        drop` dropped before the filters, by reason.

    Raises:
        ConfigError: If prompts or benchmarks cannot be read, or a length limit is set without a student.
        DataError: If no prompt is left.
    """
    hygiene = config.hygiene
    loaded = read_prompts(config.prompts, where=f"{source}: prompts", unique=hygiene.dedup is None)
    prompts = loaded.table
    benchmarks = load_benchmarks(hygiene, config.compare, f"{source}: hygiene") if hygiene.decontaminate else None
    counts = hygiene.min_tokens is not None or hygiene.max_tokens is not None
    counter = _token_counter(config, source) if counts else None
    encoder = None
    if hygiene.dedup_model is not None:
        from persyn_hf.models.loading import load_static_model

        encoder = load_static_model(hygiene.dedup_model, "`hygiene.dedup_model`")
    cleaned = clean_prompts(prompts, hygiene, benchmarks, counter, encoder)
    if not len(cleaned.prompts):
        reasons = ", ".join(f"{count} {reason}" for reason, count in cleaned.counts.items())
        raise DataError(f"{source}: hygiene: all {len(prompts)} prompts were dropped: {reasons}. Relax `hygiene`.")
    return cleaned, loaded.dropped


def _token_counter(config: RunConfig, source: str) -> Callable[[Sequence[str]], Sequence[int]]:
    """Returns a function that counts tokens with the student's tokenizer."""
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import identity, load_tokenizer

    student = config.student
    if student is None:
        raise ConfigError(
            f"{source}: `hygiene.min_tokens` and `hygiene.max_tokens` count the student's tokens; give `student`."
        )
    tokenizer = load_tokenizer(ModelFiles(student.model, identity(student.model, student.revision)))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    return count
