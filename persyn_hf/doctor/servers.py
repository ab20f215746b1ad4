"""Free checks of a run's servers: the models that teachers and judges serve, and one score of the student's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import Judge, Reward, RunConfig, Student, Teacher
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.doctor.grading import quality_parts
from persyn_hf.doctor.readers import SOME_ANSWER
from persyn_hf.errors import ConfigError, PersynError

if TYPE_CHECKING:
    from persyn_hf.generation.preflight import Survey

#: Seconds for which a student's server is waited for that refuses for load.
_PATIENCE = 5.0


def check_endpoints(teachers: Sequence[Teacher], patience: float = 5.0) -> list[Finding]:
    """Checks that every endpoint is reachable and serves its model, without generating an answer.

    Args:
        teachers (`Sequence[Teacher]`): Teachers to check; those with `backend: local` are skipped.
        patience (`float`, defaults to 5): Time to wait for a silent endpoint, in seconds.
    """
    asked = [
        teacher.model_copy(update={"preflight": True, "on_teacher_down": "error"})
        for teacher in teachers
        if teacher.backend == "endpoint"
    ]
    keys = {teacher.name: f"teachers[{place}].endpoint" for place, teacher in enumerate(teachers)}
    return list(_of_teachers(asked, keys, survey_teachers(asked, patience)))


def survey_teachers(teachers: Sequence[Teacher], patience: float) -> Survey:
    """Surveys the endpoints of teachers: reachability, served models and limits.

    Args:
        teachers (`Sequence[Teacher]`): Teachers to survey; those with `backend: local` or `preflight: false` are
            skipped.
        patience (`float`): Time to wait for a silent endpoint, in seconds.
    """
    from persyn_hf.endpoints.event_loop import run_to_end
    from persyn_hf.generation.preflight import survey_endpoints

    return run_to_end(lambda interrupt: survey_endpoints(teachers, patience))


def check_survey(config: RunConfig, survey: Survey) -> Iterator[Finding]:
    """Yields the findings of a survey of a run's teachers."""
    asked = [teacher for teacher in config.teachers if teacher.backend == "endpoint" and teacher.preflight]
    keys = {teacher.name: f"teachers[{place}].endpoint" for place, teacher in enumerate(config.teachers)}
    yield from _of_teachers(asked, keys, survey)


def _of_teachers(teachers: Sequence[Teacher], keys: dict[str, str], survey: Survey) -> Iterator[Finding]:
    from persyn_hf.generation.preflight import prompt_room

    for teacher in teachers:
        topic, key = f"endpoint {teacher.name}", keys[teacher.name]
        own = survey.of(teacher)
        problems = [f"teacher `{teacher.name}`: {problem}" for problem in survey.problems.get(teacher.name, ())]
        try:
            prompt_room(teacher, own)
        except PersynError as error:
            problems.append(str(error))
        silent = len(teacher.endpoints) - len(own)
        if problems:
            yield from (Finding(topic, "fail", problem, key) for problem in problems)
        elif silent:
            yield Finding(topic, "note", f"{silent} of {len(teacher.endpoints)} addresses do not answer", key)
        else:
            yield Finding(topic, "ok", f"{teacher.model} at {', '.join(teacher.endpoints)}", key)


def check_services(config: RunConfig, prompt: columns.Prompt, patience: float = 5.0) -> Findings:
    """Checks the servers that score: that a judge serves its model, and that the student's server scores an answer.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompt (`str` or list of chat messages): Prompt of the sample answer.
        patience (`float`, defaults to 5): Time to wait for a silent judge, in seconds.
    """
    found = Findings()
    for key, part in quality_parts(config.quality) if config.quality is not None else ():
        if part.judge is not None:
            with found.failing("judge", f"{key}.judge.url"):
                if part.judge.preflight:
                    _look_at_judge(part.judge, f"{key}.judge", patience)
                    found.append(Finding("judge", "ok", f"{part.judge.model} at {part.judge.url}"))
                else:
                    found.append(Finding("judge", "note", "not asked what it serves (`preflight: false`)"))
    if config.student is not None and config.student.endpoint is not None:
        with found.failing("student's server", "student.endpoint"):
            _score_once(config.student, config.reward, prompt)
            found.append(Finding("student's server", "ok", f"scores at {config.student.endpoint.url}"))
    return found


def _look_at_judge(judge: Judge, key: str, patience: float) -> None:
    from persyn_hf.generation.describe import describe_judge

    try:
        asyncio.run(describe_judge(judge, patience))
    except ConfigError as error:
        way_out = f"Where it answers as `{judge.model}` all the same, set `preflight: false` of the judge."
        raise ConfigError(f"the judge `{judge.model}` (`{key}`): {error} {way_out}") from error
    except PersynError as error:
        raise ConfigError(f"the judge `{judge.model}` (`{key}`): {error}") from error


def _score_once(student: Student, reward: Reward, prompt: columns.Prompt) -> None:
    """Scores one answer with the student's server, like the run will.

    Raises:
        PersynError: If the server cannot score it.
    """
    from persyn_hf.scoring.learnability import load_scorer, score_batch

    asked = student.model_copy(update={"endpoint": _impatient(student)})
    row: dict[str, list[object]] = {
        columns.PROMPT: [prompt],
        columns.COMPLETION: [SOME_ANSWER],
        columns.PROMPT_ID: [columns.prompt_id(prompt)],
        columns.TEACHER: ["sample answer"],
        columns.FINISH_REASON: ["stop"],
    }
    score_batch(load_scorer(asked), row, asked, (reward.learnability_metric, *student.metrics))


def _impatient(student: Student) -> object:
    """Returns the student's server with fewer attempts, so that the check fails early."""
    assert student.endpoint is not None
    server = student.endpoint
    few = {"attempts": min(server.attempts, 3), "down_after": min(server.down_after or _PATIENCE, _PATIENCE)}
    return server.model_copy(update=few)
