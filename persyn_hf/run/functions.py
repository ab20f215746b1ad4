"""What the stages of a run do: functions from a table to a table, with plain arguments and nothing around them."""

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
        probe (`Probe`), seed (`int`): How many, and how they are drawn.
        backbone (`Checkpoint`, *optional*), max_length (`int`, *optional*): Whose embeddings `method: cover` looks
            at, and how many tokens of a prompt it reads.
        device (`str`, *optional*): Where it is run.
        where (`str`): Names the section in errors.
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
    """Lets every teacher answer every prompt; `how` as in [`generate_parallel`]."""
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
    metadata: Mapping[str, Any],
    answers: str,
    **how: Any,
) -> None:
    """Trains the router on the scored probe, for the teachers that answered.

    Args:
        scored (`Dataset`): The scored probe.
        router (`Router`), student (`Student`), reward (`Reward`): The run's.
        teachers (`Sequence[Teacher]`): What the router's block says of them.
        metadata (`Mapping[str, Any]`): Further facts for that block.
        answers (`str`): Where the answers are, for an error.
        how: `seed`, `output_dir` and `progress`, as in [`train_router`].

    Raises:
        DataError: If fewer than two teachers answered.
    """
    from persyn_hf.routing.training import train_router

    answers_of = zip(scored[columns.TEACHER][:], scored[columns.REWARD][:], strict=True)
    answering = {name for name, reward in answers_of if reward is not None}
    if len(answering) < 2:
        raise DataError(
            f"A router needs answers of at least two teachers; on the probe only {', '.join(answering) or 'none'} "
            f"got a reward. {_reasons(scored)}Columns `error` and `quality_error` of {answers} have every reason."
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
    """Routes every prompt by the scores of a router: a folder, or a published one."""
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
    """Routes for the whole set, under the limits of the configuration.

    Args:
        routed (`Dataset`): With the router's scores.
        probe, scored (`Dataset`, *optional*): The probe's answers and scores: how long answers are, and how good.
        teachers (`Sequence[Teacher]`): The router's, in the order of its scores.
        allocation (`Allocation`), seed (`int`): The limits.
        summary (`Path`): The file that says what they came to.
    """
    from persyn_hf.routing.allocation.allocate import allocate, answer_costs, answer_rates

    answers = _mean_tokens(probe, columns.COMPLETION_TOKENS)
    prompts = _mean_tokens(probe, columns.PROMPT_TOKENS)
    expected = allocation.expected_tokens
    if not isinstance(expected, float):
        expected = {t.name: answers.get(t.name, float(t.sampling.max_tokens)) for t in teachers} | (expected or {})
    asked: Any = allocation.prompt_tokens
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
    """Lets each prompt be answered by the teacher that its `route` names, or by all that its `routes` name.

    Args:
        routed (`Dataset`): With `route`, and `routes` where a prompt has several teachers.
        teachers (`Sequence[Teacher]`), seed (`int`): The run's.
        score_names (`Sequence[str]`, *optional*): The teachers in the order of `route_scores`, for those that hand
            their rows on when down.
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
    """The best of each prompt's answers, by the run's reward."""
    from persyn_hf.routing.allocation.result import keep_best

    return keep_best(scored)


def judge_cleanliness(answers: Dataset, *, hygiene: Hygiene) -> Dataset:
    """Says of every answer why `hygiene` leaves it out, in `left_out`; null for one that stays."""
    from persyn_hf.hygiene.answers import reasons

    found = [reason for batch in answers.iter(1000) for reason in reasons(batch, hygiene)]
    return set_column(answers, columns.LEFT_OUT, found, "string")


def _reasons(scored: Dataset) -> str:
    """The commonest reasons why rows have no reward, as a sentence; empty where none is known."""
    names = [name for name in (columns.ERROR, columns.QUALITY_ERROR) if name in scored.column_names]
    counts = Counter(reason for name in names for reason in scored[name] if reason is not None)
    said = "; ".join(f"{count} × {tame(reason, 300)}" for reason, count in counts.most_common(3))
    return f"Most often: {said}. " if said else ""


def _described(teacher: Teacher) -> dict[str, Any]:
    """What a published router says of a teacher; no endpoint, no key."""
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
        answers (`Dataset`, *optional*): Of the probe.
        column (`str`): What is counted.
        whole (`str`, *optional*): The count that it is part of, by default all of it.
    """
    counts: dict[str, list[int]] = {}
    if answers is not None and column in answers.column_names:
        known = zip(answers[columns.TEACHER][:], answers[column][:], answers[whole or column][:], strict=True)
        for name, count, of in known:
            if of:
                counts.setdefault(name, []).append(count or 0)
    return {name: sum(own) / len(own) for name, own in counts.items()}
