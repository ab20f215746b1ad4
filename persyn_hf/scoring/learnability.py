"""`persyn_learnability`: the student's log-likelihood of each answer, as a `datasets.map` function."""

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
    """Adds the learnability of an answer: `r_l = (1/T) Σ_t log p_student(y_t | x, y_<t)` (arXiv 2510.10925, eq. 1).

    Works on one row and on a batch. Answers to one prompt share the prompt's computation if they are in one batch, so
    sort by `prompt_id` and use a large `batch_size`. In a `map` worker, torch runs on one thread.

    Args:
        batch_or_row (`Mapping`): The prompt column and `completion`; `finish_reason` and `error` are read if present.
        rank (`int`, *optional*): Worker number from `with_rank=True`; it selects the GPU.
        student (`str`): Hub repository id or local folder.
        system_prompts (`Mapping[str, str]`, *optional*): Teacher → system prompt, to score each answer with the system
            prompt it was generated with. Without it, the student sees no teacher's system prompt.
        prompt_column (`str`, defaults to `"prompt"`): Column of the prompts: strings or chat messages.
        suffix (`str`, defaults to `""`): Suffix of the new columns' names, to store the scores of a second student.
        progress (`bool`, defaults to `False`): Show a bar for every batch, in tokens per second.
        version (`str`, *optional*): Part of the cache key only; `pin_student` sets it.
        options: Keys of [`Student`]. For a folder, `revision` is its digest, which `pin_student` sets. The first of
            `metrics` (defaults to `"mean-logprob"`) is written to `learnability_metric`; `learnability` is always the
            mean log-probability. With `too_long="truncate"`, truncated answers are counted in a warning and marked in
            `learnability_truncated`. The key `endpoint` is named `student_endpoint`: a base URL or the fields of
            [`StudentEndpoint`]; `student` and `revision` then name the tokenizer and template that the server uses.

    Returns:
        `dict`: `learnability` (nats/token, ≤ 0), `student`, `student_revision`, `learnability_metric` and, if
        requested, `rsr`, `perplexity`, `student_completion_tokens` (the student's own count): lists for a batch,
        scalars for a row. A row with `error` or without completion has null scores.

    Raises:
        MissingColumnError: If a column is absent.
        DataError: If a prompt is empty, or the row holds the scores of another student or revision.
        PromptTooLongError: If an answer does not fit the student's context.
        ScoringError: If a completion cannot be found in the text that the student's template renders.

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
        logger.warning(
            "%d of %d answers were truncated to the student's context of %s tokens.", cut, len(scores), model.context
        )
    columns = score_columns(scores, model, metrics, asked.too_long)
    return {name + suffix: values[0] if single else values for name, values in columns.items()}


def pin_student(student: str, revision: str | None = None, **settings: Any) -> dict[str, Any]:
    """Arguments of `persyn_learnability` that make the cache of `datasets` safe to use.

    `datasets` caches by the arguments. A name stays the same when its weights change, so the arguments include the
    resolved commit, or a folder's digest, and the version of persyn_hf.

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
    """Reads a server from its URL or its fields.

    Raises:
        ConfigError: If a field is wrong.
    """
    if isinstance(endpoint, StudentEndpoint):
        return endpoint
    fields = {"url": endpoint} if isinstance(endpoint, str) else endpoint
    return read_settings(StudentEndpoint, fields, "student_endpoint")


def require_packages(student: Student) -> None:
    """Checks that the packages that a student needs are installed; behind a server, only its tokenizer is needed.

    Raises:
        MissingPackageError: If a package is missing.
    """
    if student.endpoint is None:
        require("score with a student in this process", "torch", "transformers")
    else:
        require("tokenize for a student behind a server", "transformers")


#: Keyword → field of the student, for functions that take the student's name as an argument.
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
    """Reads the student of one call from its name and its options.

    Args:
        name (`str`): Hub repository id or local folder.
        options (`Mapping[str, Any]`): The caller's keywords.
        source (`str`): Name of the function in errors.
        keywords (`Mapping[str, str]`): Keyword → field of [`Student`].

    Raises:
        ConfigError: If an option is unknown or out of range.
    """
    if options.get("student_endpoint") is not None:
        options = {**options, "student_endpoint": parse_endpoint(options["student_endpoint"])}
    return merged(Student, {"model": name}, options, source, keywords)


def _refuse_ignored(student: Student) -> None:
    """Refuses options that have no effect on a student behind a server.

    Raises:
        ConfigError: If one is set.
    """
    given = [name for name in _IN_PROCESS if getattr(student, name) != default_of(Student, name)]
    if student.endpoint is not None and given:
        raise ConfigError(
            f"persyn_learnability: `{given[0]}` cannot be set for a student behind a server: it applies to a student "
            "in this process. Remove it, or remove `student_endpoint`."
        )


def load_scorer(student: Student, rank: int | None = None) -> Scorer:
    """Loads the student of a configuration, in this process or behind its server.

    Args:
        student (`Student`): The student's section.
        rank (`int`, *optional*): Worker number; it selects the GPU.
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
    """Scores the rows of a batch with the student's settings; `None` for a row without completion.

    A server's replies are stored in the ledger of `account`, if given.
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
    """Warns of answers that have no learnability, and returns the reason per answer."""
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
    """The columns of a batch's scores, with `learnability_truncated` if `too_long` is `"truncate"`."""
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
    """Refuses to overwrite the scores of another student, or of another revision of this one.

    Raises:
        DataError: If there are such scores.
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
            f'These rows already hold the scores of {", ".join(sorted(others))}. Pass `suffix` (such as "_2") to add '
            f"the scores of {student} ({revision}) in columns of their own, or remove the columns."
        )


def _prompts(
    batch: Mapping[str, Sequence[Any]], rows: Sequence[int], column: str, system_prompts: Mapping[str, str] | None
) -> list[Prompt]:
    """The prompts as the student sees them, each after its teacher's system prompt if `system_prompts` has one."""
    prompts = [batch[column][row] for row in rows]
    if not system_prompts:
        return prompts
    require_columns(batch.keys(), (TEACHER,), "persyn_learnability with `system_prompts`")
    said = [system_prompts.get(batch[TEACHER][row]) for row in rows]
    return [
        prompt if text is None else joined_system([{"role": "system", "content": text}, *canonical_messages(prompt)])
        for prompt, text in zip(prompts, said, strict=True)
    ]
