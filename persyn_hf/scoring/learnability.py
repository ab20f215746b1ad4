"""`persyn_learnability`: how likely the student finds each answer, as a `datasets.map` function."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from persyn_hf.columns import (
    COMPLETION,
    FINISH_REASON,
    LEARNABILITY_METRIC,
    LEARNABILITY_TRUNCATED,
    PROMPT,
    STUDENT,
    STUDENT_REVISION,
    TEACHER,
    TOOL_CALLS,
    TOOLS,
    Prompt,
    canonical_messages,
    require_columns,
)
from persyn_hf.config import Reward, Student, StudentEndpoint, default_of, merged, read_settings
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.messages import answer_message
from persyn_hf.models.device import worker_device
from persyn_hf.models.loading import identity
from persyn_hf.models.rendering import fit_context, render_answers
from persyn_hf.packages import require
from persyn_hf.prompts.sending import joined_system
from persyn_hf.scoring.paid import Account
from persyn_hf.scoring.processes import SpreadStudent, chosen_devices, load_spread_student
from persyn_hf.scoring.remote import RemoteStudent, load_remote_student, score_remotely
from persyn_hf.scoring.reward import COLUMN_OF, AnswerScore, require_metrics
from persyn_hf.scoring.rows import answered, as_batch, row_names
from persyn_hf.tables import require_batch
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from persyn_hf.scoring.engine import Progress
    from persyn_hf.scoring.student import StudentModel

    #: A student in this process, in several, or behind a server.
    Scorer = StudentModel | SpreadStudent | RemoteStudent

logger = logging.getLogger(__name__)


def persyn_learnability(
    batch_or_row: Mapping[str, Any],
    rank: int | None = None,
    *,
    student: str,
    system_prompts: Mapping[str, str] | None = None,
    prompt_column: str = PROMPT,
    suffix: str = "",
    progress: bool = False,
    version: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Adds the student's view of an answer: `r_l = (1/T) Σ_t log p_student(y_t | x, y_<t)` (arXiv 2510.10925, eq. 1).

    Works on one row and on a batch. Answers of one prompt share the prompt's computation when they stand in one
    batch, so sort by `prompt_id` and take a large `batch_size`. In a `map` worker torch runs on one thread.

    Args:
        batch_or_row (`Mapping`): With the prompt column and `completion`; `finish_reason` and `error` are read where
            they are there.
        rank (`int`, *optional*): From `with_rank=True`: the worker's number picks the GPU.
        student (`str`): Hub repository id or local folder.
        system_prompts (`Mapping[str, str]`, *optional*): Teacher → system prompt, to score answers under the prompt
            that they were written under. Without it no teacher's system prompt reaches the student.
        prompt_column (`str`, defaults to `"prompt"`): Strings or chat messages.
        suffix (`str`, defaults to `""`): Put behind the new columns' names, so that a second student's scores stand
            beside the first's.
        progress (`bool`, defaults to `False`): Show a bar for every batch, in tokens per second.
        version (`str`, *optional*): Part of the cache key only; `pin_student` fills it in.
        options: Keys of [`Student`]. `revision` is for a folder its digest, which `pin_student` fills in. Of
            `metrics` the first is written to `learnability_metric`, `"mean-logprob"` where none is given;
            `learnability` is always the mean log-probability. With `too_long="truncate"` cut answers are counted in a
            warning and marked in `learnability_truncated`. The `endpoint` is called `student_endpoint`: a base URL,
            or the fields of [`StudentEndpoint`]; `student` and `revision` then say whose tokenizer and template the
            server runs.

    Returns:
        `dict`: `learnability` (nats/token, ≤ 0), `student`, `student_revision`, `learnability_metric` and on request
        `rsr`, `perplexity`, `student_completion_tokens` (the student's own count): lists for a batch, scalars for a
        row. A row with `error` or without completion has null scores.

    Raises:
        MissingColumnError: If a column is absent.
        DataError: If a prompt is empty, or the row holds the scores of another student or revision.
        PromptTooLongError: If an answer does not fit the student's context.
        ScoringError: If a completion cannot be found in what the student's template renders.

    Example:
        >>> scored = answers.map(
        ...     persyn_learnability, batched=True, fn_kwargs=pin_student("org/student")
        ... )  # doctest: +SKIP
    """
    require_batch(batch_or_row, "persyn_learnability")
    require_columns(batch_or_row.keys(), (prompt_column, COMPLETION), "persyn_learnability")
    asked = read_student(student, options, "persyn_learnability")
    _refuse_ignored(asked)
    metrics: tuple[str, ...] = asked.metrics or (default_of(Reward, "learnability_metric"),)
    require_metrics(metrics)
    batch, single = as_batch(batch_or_row)
    model = load_scorer(asked, rank)
    refuse_other_student(batch, model.name, model.revision, suffix)
    with tqdm(desc="learnability", unit="tok", unit_scale=True, leave=False, disable=not progress) as bar:
        scores = score_batch(model, batch, asked, metrics, prompt_column, system_prompts, progress=bar.update)
    warn_of_missing(scores)
    cut = sum(score is not None and score.truncated for score in scores)
    if cut:
        logger.warning("%d of %d answers were cut to the student's %s tokens.", cut, len(scores), model.context)
    columns = score_columns(scores, model, metrics, asked.too_long)
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
    pinned = {"student": student, "revision": identity(student, revision), "version": __version__}
    return {**pinned, **settings}


def parse_endpoint(endpoint: str | Mapping[str, Any] | StudentEndpoint) -> StudentEndpoint:
    """A server from its URL or its fields.

    Raises:
        ConfigError: If a field is wrong.
    """
    if isinstance(endpoint, StudentEndpoint):
        return endpoint
    fields = {"url": endpoint} if isinstance(endpoint, str) else endpoint
    return read_settings(StudentEndpoint, fields, "student_endpoint")


def require_packages(student: Student) -> None:
    """Refuses to score where a package is absent: behind a server, a student needs its tokenizer only.

    Raises:
        MissingPackageError: Names what is missing.
    """
    if student.endpoint is None:
        require("score with a student in this process", "torch", "transformers")
    else:
        require("tokenize what a student behind a server scores", "transformers")


#: Keywords for fields of the student, where a function has an argument for the student's name.
STUDENT_OPTIONS = {
    "revision": "revision",
    "student_endpoint": "endpoint",
    **{
        name: name
        for name in Student.model_fields
        if name not in ("model", "revision", "endpoint", "teacher_system_prompts")
    },
}


#: Fields that a student behind a server does not read.
_IN_PROCESS = ("dtype", "device", "devices", "attn_implementation", "token_budget")


def read_student(
    name: str, options: Mapping[str, Any], source: str, keywords: Mapping[str, str] = STUDENT_OPTIONS
) -> Student:
    """The student of one call, from its name and its options.

    Args:
        name (`str`): Hub repository id or local folder.
        options (`Mapping[str, Any]`): As the caller wrote them.
        source (`str`): Names the function in errors.
        keywords (`Mapping[str, str]`): The field that each keyword is for.

    Raises:
        ConfigError: If an option is unknown or out of range.
    """
    if options.get("student_endpoint") is not None:
        options = {**options, "student_endpoint": parse_endpoint(options["student_endpoint"])}
    return merged(Student, {"model": name}, options, source, keywords)


def _refuse_ignored(student: Student) -> None:
    """Refuses what a student behind a server does not read.

    Raises:
        ConfigError: Names the option.
    """
    given = [name for name in _IN_PROCESS if getattr(student, name) != default_of(Student, name)]
    if student.endpoint is not None and given:
        raise ConfigError(
            f"persyn_learnability: `{given[0]}` cannot be set for a student behind a server: it is for one in this "
            "process."
        )


def load_scorer(student: Student, rank: int | None = None) -> Scorer:
    """Loads the student of a configuration, in this process or behind its server.

    Args:
        student (`Student`): Which one, and how it is run.
        rank (`int`, *optional*): The number of a worker, which picks its GPU.
    """
    if student.endpoint is not None:
        return load_remote_student(student.model, student.revision, student.endpoint)
    if student.devices is not None and rank is not None:
        raise ConfigError("`devices` starts processes of its own: give it, or `with_rank=True`, not both.")
    device = worker_device(student.device, rank)
    require("score with a student in this process", "torch", "transformers")
    from persyn_hf.scoring.student import load_student

    devices = chosen_devices(student.devices)
    if len(devices) > 1:
        return load_spread_student(student, devices)
    device = devices[0] if devices else device
    return load_student(student.model, student.revision, student.dtype, device, student.attn_implementation)


def score_batch(
    model: Scorer,
    batch: Mapping[str, Sequence[Any]],
    student: Student,
    metrics: Sequence[str],
    prompt_column: str = PROMPT,
    system_prompts: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    account: Account | None = None,
) -> list[AnswerScore | None]:
    """Scores the rows of a batch as the student's section says; `None` where there is no completion to score.

    What a server says is kept in the ledger of `account`, where one is given.
    """
    rows = answered(batch)
    names = row_names(batch, rows)
    nothing = [None] * len(batch[COMPLETION])
    reasons, calls = batch.get(FINISH_REASON) or nothing, batch.get(TOOL_CALLS) or nothing
    rendered = render_answers(
        model.tokenizer,
        _prompts(batch, rows, prompt_column, system_prompts),
        [answer_message(batch[COMPLETION][row], calls[row]) if calls[row] else batch[COMPLETION][row] for row in rows],
        [reasons[row] for row in rows],
        names,
        [batch[TOOLS][row] for row in rows] if TOOLS in batch else None,
    )
    empty = [row for row, answer in zip(rows, rendered, strict=True) if not answer.completion_ids]
    kept = [place for place, answer in enumerate(rendered) if answer.completion_ids]
    rows, names = [rows[place] for place in kept], [names[place] for place in kept]
    rendered, cut = fit_context([rendered[place] for place in kept], model.context, student.too_long, names)
    if isinstance(model, SpreadStudent):
        found = model.score(rendered, "rsr" in metrics, student.token_budget, progress)
    elif isinstance(model, RemoteStudent):
        found = score_remotely(model, rendered, names, "rsr" in metrics, progress, account)
    else:
        from persyn_hf.scoring.engine import score_rendered

        found = score_rendered(model, rendered, "rsr" in metrics, student.token_budget, progress)
    scores: list[AnswerScore | None] = [None] * len(batch[COMPLETION])
    for row in empty:
        scores[row] = AnswerScore(math.nan, 0, error="it was cut before its first token")
    for row, score, truncated in zip(rows, found, cut, strict=True):
        scores[row] = replace(score, truncated=truncated)
    return scores


def warn_of_missing(scores: Sequence[AnswerScore | None]) -> list[str | None]:
    """The reasons of answers that have no learnability, which are counted in a warning."""
    reasons = [None if score is None else score.error for score in scores]
    given = [reason for reason in reasons if reason is not None]
    if given:
        logger.warning(
            "%d of %d answers have no learnability: %s.", len(given), len(scores), "; ".join(sorted(set(given)))
        )
    return reasons


def score_columns(
    scores: Sequence[AnswerScore | None], model: Scorer, metrics: Sequence[str], too_long: str = "error"
) -> dict[str, list[Any]]:
    """The columns of a batch's scores; `learnability_truncated` where answers may have been cut."""
    wanted = dict.fromkeys(("mean-logprob", *metrics))
    columns: dict[str, list[Any]] = {
        COLUMN_OF[metric]: [None if score is None else score.value(metric) for score in scores] for metric in wanted
    }
    if too_long == "truncate":
        columns[LEARNABILITY_TRUNCATED] = [None if score is None else score.truncated for score in scores]
    for name, value in ((STUDENT, model.name), (STUDENT_REVISION, model.revision), (LEARNABILITY_METRIC, metrics[0])):
        columns[name] = [value] * len(scores)
    return columns


def refuse_other_student(batch: Mapping[str, Sequence[Any]], student: str, revision: str, suffix: str = "") -> None:
    """Refuses to write over the scores of another student, or of another revision of this one.

    Raises:
        DataError: Naming whose scores are there.
    """
    students = batch.get(STUDENT + suffix) or ()
    revisions = batch.get(STUDENT_REVISION + suffix) or [None] * len(students)
    others = {
        f"{name} ({its_revision})"
        for name, its_revision in zip(students, revisions, strict=True)
        if name is not None and (name, its_revision or revision) != (student, revision)
    }
    if others:
        raise DataError(
            f'These rows already hold the scores of {", ".join(sorted(others))}. Pass `suffix` (such as "_2") to put '
            f"those of {student} ({revision}) beside them, or remove the columns."
        )


def _prompts(
    batch: Mapping[str, Sequence[Any]], rows: Sequence[int], column: str, system_prompts: Mapping[str, str] | None
) -> list[Prompt]:
    """The prompts as they reach the student: a teacher's system prompt stands before them only where it was asked."""
    prompts = [batch[column][row] for row in rows]
    if not system_prompts:
        return prompts
    require_columns(batch.keys(), (TEACHER,), "persyn_learnability with `system_prompts`")
    said = [system_prompts.get(batch[TEACHER][row]) for row in rows]
    return [
        prompt if text is None else joined_system([{"role": "system", "content": text}, *canonical_messages(prompt)])
        for prompt, text in zip(prompts, said, strict=True)
    ]
