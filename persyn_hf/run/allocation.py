"""The stage between routing and generation: from the router's scores to routes for the whole set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import RunConfig
from persyn_hf.run.folder import RunFolder
from persyn_hf.tables import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset


def allocate_stage(
    config: RunConfig,
    folder: RunFolder,
    routed: Dataset,
    names: Sequence[str],
    probe: Dataset | None,
    scored: Dataset | None,
) -> Dataset:
    """Routes for the whole set, under the limits of the configuration; `allocation.json` says what they came to.

    Args:
        config (`RunConfig`), folder (`RunFolder`): The run.
        routed (`Dataset`): The table of the stage `route`.
        names (`Sequence[str]`): The router's teachers, in the order of `route_scores`.
        probe, scored (`Dataset`, *optional*): The tables of these stages: how long answers are, and how good.
    """
    from persyn_hf.routing.allocation.allocate import allocate, answer_costs, answer_rates

    settings = config.allocation
    by_name = {teacher.name: teacher for teacher in config.teachers}
    teachers = [by_name[name] for name in names]
    answers = _mean_tokens(probe, columns.COMPLETION_TOKENS)
    prompts = _mean_tokens(probe, columns.PROMPT_TOKENS)
    expected = settings.expected_tokens
    if not isinstance(expected, float):
        expected = {t.name: answers.get(t.name, float(t.sampling.max_tokens)) for t in teachers} | (expected or {})
    asked: Any = settings.prompt_tokens
    if asked is None:
        texts = [columns.prompt_text(prompt) for prompt in routed[columns.PROMPT]]
        mean = sum(map(len, texts)) / len(texts) / 4
        asked = {t.name: prompts.get(t.name, mean) for t in teachers}
    inputs = {
        "routed": folder.digest("route"),
        "scored": folder.digest("score") if scored is not None else None,
        "allocation": settings.model_dump(mode="json"),
        "teachers": [t.model_dump(mode="json") for t in teachers],
        "tokens": [expected, asked],
        "seed": config.seed,
    }

    def make() -> Dataset:
        made = allocate(
            routed,
            teachers,
            cost=answer_costs(teachers, expected, asked),
            throughput=answer_rates(teachers, expected, settings.tokens_per_second),
            probe=scored,
            seed=config.seed,
            **settings.model_dump(exclude={"expected_tokens", "prompt_tokens", "tokens_per_second"}),
        )
        write_atomically(folder.path / "allocation.json", json.dumps(made.summary(), indent=2) + "\n")
        return made.apply(routed)

    return folder.table("allocate", inputs, make)


def _mean_tokens(answers: Dataset | None, column: str) -> dict[str, float]:
    """Mean tokens of each teacher's answers, of those whose count is known and not 0."""
    counts: dict[str, list[int]] = {}
    if answers is not None:
        for name, count in zip(answers[columns.TEACHER][:], answers[column][:], strict=True):
            if count:
                counts.setdefault(name, []).append(count)
    return {name: sum(own) / len(own) for name, own in counts.items()}
