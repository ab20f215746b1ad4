"""`persyn_learnability`: how likely the student finds each answer, as a `datasets.map` function."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import persyn_hf
from persyn_hf.columns import (
    COMPLETION,
    ERROR,
    FINISH_REASON,
    LEARNABILITY,
    LEARNABILITY_METRIC,
    PROMPT,
    PROMPT_ID,
    STUDENT,
    STUDENT_REVISION,
    TEACHER,
    require_columns,
)
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.scoring.engine import AnswerScore, Progress, fit_context, require_metrics, score_answers
from persyn_hf.scoring.rendering import render_answers
from persyn_hf.scoring.student import StudentModel, identity, load_student

logger = logging.getLogger(__name__)

#: Columns of the metrics that are there on request.
RSR = "rsr"
PERPLEXITY = "perplexity"


def persyn_learnability(
    batch_or_row: Mapping[str, Any],
    rank: int | None = None,
    *,
    student: str,
    revision: str | None = None,
    metrics: Sequence[str] = ("mean-logprob",),
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
    token_budget: int = 8192,
    too_long: str = "error",
    prompt_column: str = PROMPT,
    suffix: str = "",
    version: str | None = None,
) -> dict[str, Any]:
    """Adds the student's view of an answer: `r_l = (1/T) Σ_t log p_student(y_t | x, y_<t)` (arXiv 2510.10925, eq. 1).

    Works on one row and on a batch. Answers of one prompt share the prompt's computation when they stand in one
    batch, so sort by `prompt_id` and take a large `batch_size`. In a `map` worker torch runs on one thread.

    Args:
        batch_or_row (`Mapping`): With the prompt column and `completion`; `finish_reason` and `error` are read where
            they are there.
        rank (`int`, *optional*): From `with_rank=True`: the worker's number picks the GPU.
        student (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch; for a folder its digest. `pin_student` fills it in.
        metrics (`Sequence[str]`): Of `"mean-logprob"`, `"rsr"`, `"perplexity"`. The first is written to
            `learnability_metric`; `learnability` is always the mean log-probability.
        dtype (`str`, defaults to `"auto"`): Of the weights; sums are float64, log-softmax float32.
        device (`str`, *optional*): Defaults to CUDA where there is one, else the CPU.
        attn_implementation (`str`, *optional*): One of transformers'; turns sharing off.
        token_budget (`int`, defaults to 8192): Tokens of one forward pass.
        too_long (`"error"` or `"truncate"`): What to do with an answer beyond the student's context; cut answers are
            counted in a warning.
        prompt_column (`str`, defaults to `"prompt"`): Strings or chat messages.
        suffix (`str`, defaults to `""`): Put behind the new columns' names, so that a second student's scores stand
            beside the first's.
        version (`str`, *optional*): Part of the cache key only; `pin_student` fills it in.

    Returns:
        `dict`: `learnability` (nats/token, ≤ 0), `student`, `student_revision`, `learnability_metric` and on request
        `rsr`, `perplexity`: lists for a batch, scalars for a row. A row with `error` or without completion has null
        scores.

    Raises:
        MissingColumnError: If a column is absent.
        DataError: If a prompt is empty, or the row holds another student's scores.
        PromptTooLongError: If an answer does not fit the student's context.
        ScoringError: If a completion cannot be found in what the student's template renders.

    Example:
        >>> scored = answers.map(
        ...     persyn_learnability, batched=True, fn_kwargs=pin_student("org/student")
        ... )  # doctest: +SKIP
    """
    require_columns(batch_or_row.keys(), (prompt_column, COMPLETION), "persyn_learnability")
    require_metrics(metrics)
    single = not isinstance(batch_or_row[COMPLETION], list)
    batch = {key: [batch_or_row[key]] if single else batch_or_row[key] for key in batch_or_row}
    if rank is not None and device is None:
        device = _device_of(rank)
    model = load_student(student, revision, dtype, device, attn_implementation)
    _refuse_other_student(batch.get(STUDENT + suffix), student)
    scores = score_batch(model, batch, metrics, token_budget, too_long, prompt_column)
    columns = _columns(scores, model, metrics)
    return {name + suffix: values[0] if single else values for name, values in columns.items()}


def pin_student(student: str, revision: str | None = None, **settings: Any) -> dict[str, Any]:
    """Arguments of `persyn_learnability` under which a cached result is a fresh one.

    `datasets` caches by the arguments. A name does not change when the weights behind it do, so the resolved commit,
    or a folder's digest, and the library's version stand among them.

    Args:
        student (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
        settings: Further arguments of `persyn_learnability`.

    Returns:
        `dict[str, Any]`: For `fn_kwargs`.
    """
    pinned = {"student": student, "revision": identity(student, revision), "version": persyn_hf.__version__}
    return {**pinned, **settings}


def score_batch(
    model: StudentModel,
    batch: Mapping[str, Sequence[Any]],
    metrics: Sequence[str],
    token_budget: int,
    too_long: str = "error",
    prompt_column: str = PROMPT,
    progress: Progress | None = None,
) -> list[AnswerScore | None]:
    """Scores the rows of a batch; `None` where there is no completion to score."""
    errors = batch.get(ERROR) or [None] * len(batch[COMPLETION])
    rows = [row for row, text in enumerate(batch[COMPLETION]) if text is not None and errors[row] is None]
    names = [row_name(batch, row) for row in rows]
    reasons = batch.get(FINISH_REASON) or [None] * len(errors)
    rendered = render_answers(
        model.tokenizer,
        [batch[prompt_column][row] for row in rows],
        [batch[COMPLETION][row] for row in rows],
        [reasons[row] for row in rows],
        names,
    )
    rendered, cut = fit_context(rendered, model.context, too_long, names)
    if cut:
        logger.warning("%d of %d answers were cut to the student's %s tokens.", cut, len(rows), model.context)
    found = score_answers(model, rendered, "rsr" in metrics, token_budget, progress)
    scores: list[AnswerScore | None] = [None] * len(errors)
    for row, score in zip(rows, found, strict=True):
        scores[row] = score
    return scores


def row_name(batch: Mapping[str, Sequence[Any]], row: int) -> str:
    """How errors name a row: by prompt and teacher where these are known."""
    parts = [
        f"{label} {batch[key][row]}" for key, label in ((PROMPT_ID, "prompt"), (TEACHER, "teacher")) if key in batch
    ]
    return ", ".join(parts) or f"row {row} of the batch"


def _columns(
    scores: Sequence[AnswerScore | None], model: StudentModel, metrics: Sequence[str]
) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        LEARNABILITY: [None if score is None else score.learnability for score in scores],
        STUDENT: [model.name] * len(scores),
        STUDENT_REVISION: [model.revision] * len(scores),
        LEARNABILITY_METRIC: [metrics[0]] * len(scores),
    }
    if "rsr" in metrics:
        columns[RSR] = [None if score is None else score.rsr for score in scores]
    if "perplexity" in metrics:
        columns[PERPLEXITY] = [None if score is None else score.perplexity for score in scores]
    return columns


def _refuse_other_student(present: Sequence[str | None] | None, student: str) -> None:
    others = {name for name in present or () if name is not None} - {student}
    if others:
        raise DataError(
            f'These rows already hold the scores of {", ".join(sorted(others))}. Pass `suffix` (such as "_2") to put '
            f"those of {student} beside them, or remove the columns."
        )


def _device_of(rank: int) -> str | None:
    import torch

    if not isinstance(rank, int):
        raise ConfigError(f"`rank` must be a worker's number, got {rank!r}; pass the student by name: student=….")
    return f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else None
