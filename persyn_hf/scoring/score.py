"""`score`: the scoring stage, from answers to rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from persyn_hf.columns import (
    COMPLETION,
    LEARNABILITY,
    LEARNABILITY_METRIC,
    PROMPT,
    PROMPT_ID,
    QUALITY,
    STUDENT,
    STUDENT_REVISION,
    TEACHER,
    require_columns,
)
from persyn_hf.config import Quality, Student
from persyn_hf.errors import ConfigError
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.reward import add_rewards, set_column

QualityLike = Quality | Mapping[str, Any] | str | Callable[[Any, str, Any], float]


def score(
    answers: Dataset,
    student: str | Student,
    quality: QualityLike,
    alpha: float = 0.4,
    normalization: str = "minmax",
    learnability_metric: str = "mean-logprob",
    student_revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    token_budget: int = 8192,
    batch_size: int = 512,
    too_long: str = "error",
    progress: bool = True,
) -> Dataset:
    """Scores answers: quality, learnability and the reward `(1 − alpha) · n(quality) + alpha · n(learnability)`.

    Args:
        answers (`Dataset`): With `prompt_id`, `prompt`, `teacher`, `completion`; `error`, `finish_reason` and `answer`
            are read where they are there.
        student (`str` or `Student`): Hub repository id, local folder, or the configuration's section, whose
            revision, dtype, device and token budget then count.
        quality (`Quality`, mapping, `str` or `Callable`): The configuration's section or its keys, a verifier's name,
            or a function `(prompt, completion, answer) -> float`.
        alpha (`float`, defaults to 0.4): The share of learnability, 0 to 1.
        normalization (`"minmax"`, `"zscore"` or `"rank"`): Within the prompt, over its teachers.
        learnability_metric (`"mean-logprob"` or `"rsr"`): What the reward reads. `rsr` is a column of its own and its
            negative enters the reward.
        student_revision (`str`, *optional*), dtype (`str`, defaults to `"auto"`), device (`str`, *optional*),
            token_budget (`int`, defaults to 8192): Of a student given by name.
        batch_size (`int`, defaults to 512): Rows rendered at a time; memory only.
        too_long (`"error"` or `"truncate"`): For answers beyond the student's context.
        progress (`bool`, defaults to `True`): Show progress, in tokens per second.

    Returns:
        `Dataset`: The same rows in the same order with `quality`, `learnability`, `student`, `student_revision`,
        `learnability_metric`, `reward` added. A row without completion has null scores.

    Raises:
        ConfigError: If a setting is wrong.
        MissingColumnError: If a column is absent.
        DataError: If a prompt is empty or an answer too long.
        ScoringError: If a score cannot be computed; the message names prompt and teacher.

    Example:
        >>> scored = score(answers, "org/student", quality="math", alpha=0.4)  # doctest: +SKIP
    """
    require_columns(answers.column_names, (PROMPT_ID, PROMPT, TEACHER, COMPLETION), "score")
    if learnability_metric not in ("mean-logprob", "rsr"):
        raise ConfigError(f"`learnability_metric` must be mean-logprob or rsr, got {learnability_metric!r}.")
    if not 0 <= alpha <= 1:
        raise ConfigError(f"`alpha` must be between 0 and 1, got {alpha}.")
    if isinstance(student, str):
        student = Student(
            model=student, revision=student_revision, dtype=dtype, device=device, token_budget=token_budget
        )
    order = _by_prompt(answers)
    scored = _add_quality(answers, _quality_settings(quality), order, batch_size, progress)
    scored = _add_learnability(scored, student, learnability_metric, order, batch_size, too_long, progress)
    if learnability_metric == "rsr":
        return add_rewards(scored, alpha, normalization, "rsr", higher_is_better=False)
    return add_rewards(scored, alpha, normalization)


def _quality_settings(quality: QualityLike) -> dict[str, Any]:
    if isinstance(quality, Quality):
        return quality.model_dump(exclude_none=True)
    if isinstance(quality, Mapping):
        return Quality.model_validate(dict(quality)).model_dump(exclude_none=True)
    return {"verifier": quality}


def _by_prompt(answers: Dataset) -> list[int]:
    """Row numbers with the answers of a prompt beside each other, prompts in the order of their first row."""
    first: dict[str, int] = {}
    ids = answers[PROMPT_ID][:]
    for row, identity in enumerate(ids):
        first.setdefault(identity, row)
    return sorted(range(len(ids)), key=lambda row: (first[ids[row]], row))


def _windows(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _add_quality(
    answers: Dataset, settings: dict[str, Any], order: list[int], batch_size: int, progress: bool
) -> Dataset:
    values: list[float | None] = [None] * len(answers)
    with tqdm(total=len(answers), desc="quality", unit="row", disable=not progress) as bar:
        for rows in _windows(order, batch_size):
            found = persyn_quality(answers[rows], **settings)[QUALITY]
            for row, value in zip(rows, found, strict=True):
                values[row] = value
            bar.update(len(rows))
    return set_column(answers, QUALITY, values, "float64")


def _add_learnability(
    answers: Dataset,
    student: Student,
    metric: str,
    order: list[int],
    batch_size: int,
    too_long: str,
    progress: bool,
) -> Dataset:
    from persyn_hf.scoring.learnability import RSR, score_batch
    from persyn_hf.scoring.student import load_student

    model = load_student(student.model, student.revision, student.dtype, student.device)
    means: list[float | None] = [None] * len(answers)
    ratios: list[float | None] = [None] * len(answers)
    with tqdm(desc="learnability", unit="tok", unit_scale=True, disable=not progress) as bar:
        done = 0
        for rows in _windows(order, batch_size):
            batch = answers[rows]
            found = score_batch(model, batch, (metric,), student.token_budget, too_long, progress=bar.update)
            for row, one in zip(rows, found, strict=True):
                means[row], ratios[row] = (None, None) if one is None else (one.learnability, one.rsr)
            done += len(rows)
            bar.total = round(bar.n * len(answers) / done)  # the tokens of the rest are not known yet
            bar.refresh()
    answers = set_column(answers, LEARNABILITY, means, "float64")
    if metric == "rsr":
        answers = set_column(answers, RSR, ratios, "float64")
    for name, value in ((STUDENT, model.name), (STUDENT_REVISION, model.revision), (LEARNABILITY_METRIC, metric)):
        answers = set_column(answers, name, [value] * len(answers), "string")
    return answers
