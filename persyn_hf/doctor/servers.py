"""The servers of a run, asked what costs nothing: teachers and judges what they serve, the student for one score."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Judge, Reward, RunConfig, Student, Teacher
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.doctor.grading import quality_parts
from persyn_hf.errors import ConfigError, PersynError

if TYPE_CHECKING:
    from persyn_hf.generation.preflight import Survey

#: Seconds for which a student's server is waited for that refuses for load.
_PATIENCE = 5.0
#: An answer for the student's server to score before there is one.
_SOME_ANSWER = "Yes."


def check_endpoints(teachers: Sequence[Teacher], patience: float = 5.0) -> list[Finding]:
    """Asks every endpoint what it serves, teacher by teacher; no answer is generated.

    Args:
        teachers (`Sequence[Teacher]`): Those with `backend: local` are left out.
        patience (`float`, defaults to 5): Seconds to wait for a silent endpoint.
    """
    asked = [
        teacher.model_copy(update={"preflight": True, "on_teacher_down": "error"})
        for teacher in teachers
        if teacher.backend == "endpoint"
    ]
    keys = {teacher.name: f"teachers[{place}].endpoint" for place, teacher in enumerate(teachers)}
    return list(_of_teachers(asked, keys, survey_teachers(asked, patience)))


def survey_teachers(teachers: Sequence[Teacher], patience: float) -> Survey:
    """Asks the endpoints of teachers what they serve.

    Args:
        teachers (`Sequence[Teacher]`): Those with `backend: local` or `preflight: false` are left out.
        patience (`float`): Seconds to wait for a silent endpoint.
    """
    from persyn_hf.endpoints.event_loop import run_to_end
    from persyn_hf.generation.preflight import survey_endpoints

    return run_to_end(lambda interrupt: survey_endpoints(teachers, patience))


def check_survey(config: RunConfig, survey: Survey) -> Iterator[Finding]:
    """What a survey of a run's teachers found, those that were asked."""
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
    """Asks the servers that score: a judge what it serves, the student's for the score of a made-up answer.

    Args:
        config (`RunConfig`): The run.
        prompt (`str` or list of chat messages): The prompt that the made-up answer is of.
        patience (`float`, defaults to 5): Seconds to wait for a silent judge.
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
    """Lets the student's server score one answer, as it will score all.

    Raises:
        PersynError: If it cannot.
    """
    from persyn_hf.scoring.learnability import load_scorer, score_batch

    asked = student.model_copy(update={"endpoint": _impatient(student)})
    row: dict[str, list[Any]] = {
        columns.PROMPT: [prompt],
        columns.COMPLETION: [_SOME_ANSWER],
        columns.PROMPT_ID: [columns.prompt_id(prompt)],
        columns.TEACHER: ["a made-up answer"],
        columns.FINISH_REASON: ["stop"],
    }
    score_batch(load_scorer(asked), row, asked, (reward.learnability_metric, *student.metrics))


def _impatient(student: Student) -> object:
    """The student's server, tried fewer times: what it cannot do now stops the run before it begins."""
    assert student.endpoint is not None
    server = student.endpoint
    few = {"attempts": min(server.attempts, 3), "down_after": min(server.down_after or _PATIENCE, _PATIENCE)}
    return server.model_copy(update=few)
