"""Functions of the stages: each maps a table and plain arguments to a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from persyn_hf import columns
from persyn_hf.config import Allocation, Hygiene, Probe, Quality, Reward, Router, Student, Teacher
from persyn_hf.errors import DataError
from persyn_hf.models.identity import teacher_identity
from persyn_hf.run.fingerprints import Checkpoint
from persyn_hf.tables import set_column, write_json
from persyn_hf.text import tame

if TYPE_CHECKING:
    from datasets import Dataset


def draw_probe(
    prompts: Dataset,
    *,
    probe: Probe,
    seed: int,
    backbone: Checkpoint | None,
    max_length: int | None,
    device: str | None = None,
    where: str,
) -> Dataset:
    """Draws the prompts that every teacher answers.

    Args:
        prompts (`Dataset`): All prompts.
        probe (`Probe`), seed (`int`): Size and method of the probe, and random seed.
        backbone (`Checkpoint`, *optional*), max_length (`int`, *optional*): Model whose embeddings `method: cover`
            compares, and the number of prompt tokens that it reads.
        device (`str`, *optional*): Device of the backbone.
        where (`str`): Name of the section in errors.
    """
    if backbone is None or max_length is None:
        from persyn_hf.prompts.reading import random_probe

        return random_probe(prompts, probe.size, seed, where=where)
    from persyn_hf.routing.probe import sample_probe as sample_covering

    return sample_covering(
        prompts,
        probe.size,
        probe.method,
        seed,
        backbone=backbone.model,
        revision=backbone.revision,
        max_length=max_length,
        device=device,
        where=where,
    )


def answer_all(prompts: Dataset, *, teachers: Sequence[Teacher], seed: int, **how: Any) -> Dataset:
    """Generates every teacher's answer to every prompt; `how` as in [`generate_parallel`]."""
    from persyn_hf.generation.generate import generate_parallel

    return generate_parallel(prompts, teachers, seed=seed, **how)


def score_answers(
    answers: Dataset,
    *,
    student: Student,
    quality: Quality,
    reward: Reward,
    system_prompts: Mapping[str, str] | None,
    **how: Any,
) -> Dataset:
    """Scores answers with a run's student, quality and reward; `how` as in [`score`]."""
    from persyn_hf.scoring.score import score

    return score(answers, student, quality, settings=reward, system_prompts=system_prompts, **how)


def train_on_probe(
    scored: Dataset,
    *,
    router: Router,
    student: Student,
    reward: Reward,
    teachers: Sequence[Teacher],
    metadata: Mapping[str, object],
    answers: str,
    **how: Any,
) -> None:
    """Trains the router on the scored probe, for the teachers that answered.

    Args:
        scored (`Dataset`): The scored probe.
        router (`Router`), student (`Student`), reward (`Reward`): Sections of the run.
        teachers (`Sequence[Teacher]`): Teachers to describe in the router's `persyn` block.
        metadata (`Mapping[str, object]`): Additional entries of that block.
        answers (`str`): Path of the answers, for errors.
        how: `seed`, `output_dir` and `progress`, as in [`train_router`].

    Raises:
        DataError: If fewer than two teachers answered.
    """
    from persyn_hf.routing.training import train_router

    answers_of = zip(scored[columns.TEACHER][:], scored[columns.REWARD][:], strict=True)
    answering = {name for name, reward in answers_of if reward is not None}
    if len(answering) < 2:
        raise DataError(
            f"A router needs rewards of at least two teachers; on the probe only {', '.join(answering) or 'none'} "
            f"got a reward. {_reasons(scored)}Columns `error` and `quality_error` of {answers} list every reason."
        )
    try:
        train_router(
            scored,
            student=student.model,
            settings=router,
            teachers=[_described(teacher) for teacher in teachers if teacher.name in answering],
            reward_settings=reward.model_dump(),
            metadata=metadata,
            **how,
        )
    except DataError as error:
        raise DataError(f"{error} {_reasons(scored)}".rstrip()) from error


def route_prompts(prompts: Dataset, *, router: str | Checkpoint, device: str | None = None) -> Dataset:
    """Routes every prompt by the scores of a router in a folder or on the Hub."""
    from persyn_hf.routing.router import PersynRouter

    asked = router if isinstance(router, Checkpoint) else Checkpoint(router)
    loaded = PersynRouter.from_pretrained(asked.model, revision=asked.revision, device=device)
    return prompts.map(loaded, batched=True, batch_size=1000, load_from_cache_file=False, desc="route")


def allocate_routes(
    routed: Dataset,
    *,
    probe: Dataset | None = None,
    scored: Dataset | None = None,
    teachers: Sequence[Teacher],
    allocation: Allocation,
    seed: int,
    summary: Path,
) -> Dataset:
    """Assigns a teacher to every prompt within the limits of the configuration.

    Args:
        routed (`Dataset`): Prompts with the router's scores.
        probe, scored (`Dataset`, *optional*): Answers and scores of the probe, which provide the expected lengths and
            the baselines' scores.
        teachers (`Sequence[Teacher]`): Teachers in the order of the router's scores.
        allocation (`Allocation`), seed (`int`): Policy and limits, and random seed.
        summary (`Path`): Path of the summary file to write.
    """
    from persyn_hf.routing.allocation.allocate import allocate, answer_costs, answer_rates

    answers = _mean_tokens(probe, columns.COMPLETION_TOKENS)
    prompts = _mean_tokens(probe, columns.PROMPT_TOKENS)
    expected = allocation.expected_tokens
    if not isinstance(expected, float):
        expected = {t.name: answers.get(t.name, float(t.sampling.max_tokens)) for t in teachers} | (expected or {})
    asked: float | dict[str, float] | None = allocation.prompt_tokens
    if asked is None:
        texts = [columns.prompt_text(prompt) for prompt in routed[columns.PROMPT]]
        mean = sum(map(len, texts)) / len(texts) / 4
        asked = {t.name: prompts.get(t.name, mean) for t in teachers}
    made = allocate(
        routed,
        teachers,
        cost=answer_costs(
            teachers,
            expected,
            asked,
            _mean_tokens(probe, columns.CACHED_TOKENS, columns.PROMPT_TOKENS),
            _mean_tokens(probe, columns.REASONING_TOKENS, columns.COMPLETION_TOKENS),
        ),
        throughput=answer_rates(teachers, expected, allocation.tokens_per_second),
        probe=scored,
        seed=seed,
        settings=allocation,
    )
    write_json(summary, made.summary())
    return cast("Dataset", made.apply(routed))


def answer_routed(
    routed: Dataset, *, teachers: Sequence[Teacher], seed: int, score_names: Sequence[str] | None, **how: Any
) -> Dataset:
    """Generates the answers to routed prompts, from the teacher in `route` or all teachers in `routes`.

    Args:
        routed (`Dataset`): Prompts with `route`, and with `routes` if a prompt has several teachers.
        teachers (`Sequence[Teacher]`), seed (`int`): Teachers and random seed of the run.
        score_names (`Sequence[str]`, *optional*): Names of the teachers in the order of `route_scores`, for
            `on_teacher_down: reroute`.
        how: As in [`generate_routed`].
    """
    from datasets import concatenate_datasets

    from persyn_hf.generation.generate import generate_routed
    from persyn_hf.routing.allocation.result import split_rounds

    return concatenate_datasets(
        [
            generate_routed(each, teachers=teachers, seed=seed, score_names=score_names, **how)
            for each in split_rounds(routed)
        ]
    )


def best_answers(scored: Dataset) -> Dataset:
    """Selects the answer with the highest reward for each prompt."""
    from persyn_hf.routing.allocation.result import keep_best

    return keep_best(scored)


def judge_cleanliness(answers: Dataset, *, hygiene: Hygiene) -> Dataset:
    """Adds the column `left_out`: the reason why `hygiene` drops an answer, or null if it is kept."""
    from persyn_hf.hygiene.answers import reasons

    found = [reason for batch in answers.iter(1000) for reason in reasons(batch, hygiene)]
    return set_column(answers, columns.LEFT_OUT, found, "string")


def _reasons(scored: Dataset) -> str:
    """Returns a sentence with the most common reasons for missing rewards; empty if there are none."""
    names = [name for name in (columns.ERROR, columns.QUALITY_ERROR) if name in scored.column_names]
    counts = Counter(reason for name in names for reason in scored[name] if reason is not None)
    said = "; ".join(f"{count} × {tame(reason, 300)}" for reason, count in counts.most_common(3))
    return f"Most often: {said}. " if said else ""


def _described(teacher: Teacher) -> dict[str, object]:
    """Describes a teacher for a published router, without endpoint and key."""
    return {
        "name": teacher.name,
        "model": teacher.model,
        "revision": teacher_identity(teacher).revision or None,
        "family": teacher.family,
        "license": teacher.license,
        "system_prompt": teacher.system_prompt,
        "sampling": teacher.sampling.values,
    }


def _mean_tokens(answers: Dataset | None, column: str, whole: str | None = None) -> dict[str, float]:
    """Mean tokens of each teacher's answers, of those whose count is known and not 0.

    Args:
        answers (`Dataset`, *optional*): Answers of the probe.
        column (`str`): Column that is counted.
        whole (`str`, *optional*): The count that it is part of, by default all of it.
    """
    counts: dict[str, list[int]] = {}
    if answers is not None and column in answers.column_names:
        known = zip(answers[columns.TEACHER][:], answers[column][:], answers[whole or column][:], strict=True)
        for name, count, of in known:
            if of:
                counts.setdefault(name, []).append(count or 0)
    return {name: sum(own) / len(own) for name, own in counts.items()}
