"""Trial before a run: one answer of every teacher, and its score."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.text import tame

if TYPE_CHECKING:
    from datasets import Dataset

#: Number of prompts to try with a teacher that does not answer, since it may refuse a single prompt for its content.
TRIED = 3
_EXCERPT = 300
_log = logging.getLogger(__name__)


def try_teachers(
    config: RunConfig,
    prompts: Dataset,
    ledger: str | os.PathLike[str],
    scoring: bool,
    teachers: Sequence[Teacher] | None = None,
) -> Findings:
    """Generates every teacher's answer to the first prompt and scores the answers like the run.

    The ledger stores the answers, so the run does not pay for them again. A teacher that does not answer is tried with
    the next prompts.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompts (`Dataset`): Prompts of the probe.
        ledger (`str` or `PathLike`): Path of the ledger.
        scoring (`bool`): Whether to score the answers.
        teachers (`Sequence[Teacher]`, *optional*): Teachers to try. Default: all except those with
            `preflight: false`.
    """
    from persyn_hf.generation.generate import generate_parallel

    found = Findings()
    wanted = list(teachers if teachers is not None else [one for one in config.teachers if one.preflight])
    places = {teacher.name: place for place, teacher in enumerate(config.teachers)}
    answers: list[Dataset] = []
    last: dict[str, str | None] = {}
    for row in range(min(TRIED, len(prompts))):
        if not wanted:
            break
        made = generate_parallel(
            prompts.select([row]), wanted, ledger, config.seed, progress=False, max_cost=_max_cost(config, wanted)
        )
        answers.append(made)
        last = dict(zip(made[columns.TEACHER], made[columns.ERROR], strict=True))
        wanted = [teacher for teacher in wanted if _counts(teacher, last[teacher.name])]
    for teacher in wanted:
        message = (
            f"teacher `{teacher.name}` gave no answer to {len(answers)} prompts: {tame(last[teacher.name], _EXCERPT)}"
        )
        found.append(Finding("first answer", "fail", message, f"teachers[{places[teacher.name]}]"))
    if scoring and not found:
        found += _try_scores(config, answers, ledger)
    return found


def _max_cost(config: RunConfig, teachers: Sequence[Teacher]) -> float | None:
    return config.max_cost if any(teacher.has_price for teacher in teachers) else None


def _counts(teacher: Teacher, error: str | None) -> bool:
    """Returns True if an error stops the run. A spent budget does not, nor a teacher that may be down."""
    if error is None or error.startswith("`max_cost`"):
        return False
    return teacher.on_teacher_down == "error" or not error.startswith("the teacher is down")


def _try_scores(config: RunConfig, answers: Sequence[Dataset], ledger: str | os.PathLike[str]) -> Findings:
    from datasets import concatenate_datasets

    from persyn_hf.run.stages import score_stage

    found = Findings()
    answered = [made.filter(lambda error: error is None, input_columns=columns.ERROR) for made in answers]
    answered = [made for made in answered if len(made)]
    if not answered:
        return found
    with found.failing("first score"):
        scored = score_stage(config, ledger=ledger).call(concatenate_datasets(answered), {})
        if columns.QUALITY_ERROR in scored.column_names:
            reasons = [reason for reason in scored[columns.QUALITY_ERROR] if reason is not None]
            if len(reasons) == len(scored):
                message = f"the first {len(scored)} answers got no score: {tame(reasons[0], _EXCERPT)}"
                found.append(Finding("first score", "fail", message, "quality"))
            elif reasons:
                _log.warning("%d of the first %d answers got no score: %s", len(reasons), len(scored), reasons[0])
    return found
