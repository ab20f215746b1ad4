"""`score`: the scoring stage, from answers to rewards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from persyn_hf.columns import (
    COMPLETION,
    LEARNABILITY_ERROR,
    LEARNABILITY_METRIC,
    LEARNABILITY_TRUNCATED,
    PROMPT,
    PROMPT_ID,
    QUALITY,
    QUALITY_ERROR,
    REWARD,
    STUDENT,
    STUDENT_COMPLETION_TOKENS,
    STUDENT_REVISION,
    TEACHER,
    require_columns,
)
from persyn_hf.config import Quality, Reward, Student, merged, require_known
from persyn_hf.config.run import ScoreOptions
from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.endpoints.keys import require_keys
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.ledger.ledger import LedgerLike, open_ledger
from persyn_hf.models.loading import identity
from persyn_hf.scoring.learnability import (
    STUDENT_OPTIONS,
    load_scorer,
    read_student,
    refuse_other_student,
    require_packages,
    score_batch,
    score_columns,
    warn_of_missing,
)
from persyn_hf.scoring.mixing import WITHIN_PROMPT, Sources, function_source, read_sources, weighted_mean
from persyn_hf.scoring.paid import Account
from persyn_hf.scoring.quality import source_values, warn_of_zeros
from persyn_hf.scoring.reward import (
    COLUMN_OF,
    HIGHER_IS_BETTER,
    AnswerScore,
    add_rewards,
    add_weighted_quality,
    require_metrics,
)
from persyn_hf.tables import require_table, set_column

logger = logging.getLogger(__name__)

QualityLike = Quality | Mapping[str, Any] | str | Callable[[Any, str, Any], float]


def score(
    answers: Dataset,
    student: str | Student,
    quality: QualityLike | None,
    *,
    ledger: LedgerLike = None,
    settings: Reward | Mapping[str, Any] | None = None,
    system_prompts: Mapping[str, str] | None = None,
    suffix: str = "",
    progress: bool = True,
    **options: Any,
) -> Dataset:
    """Scores answers: quality, learnability and the reward `(1 − alpha) · n(quality) + alpha · n(learnability)`.

    Args:
        answers (`Dataset`): The columns `prompt_id`, `prompt`, `teacher` and `completion`; `error`, `finish_reason`
            and `answer` are read if present.
        student (`str` or `Student`): Hub repository id or local folder; or the section `student` of a configuration,
            in which case the student's options cannot be passed as keywords.
        quality (`Quality`, mapping, `str`, `Callable`, *optional*): The configuration's section or its keys, a
            verifier's name, or a function `(prompt, completion, answer) -> float`. `None` uses the existing column
            `quality`.
        ledger (`Ledger`, path or `None`): Ledger that stores the replies of a judge and of a student behind a server
            as they arrive; stored replies are not requested again. It may be the ledger of the answers.
        settings (`Reward` or `Mapping`, *optional*): The section `reward` of a configuration, or its keys.
        system_prompts (`Mapping[str, str]`, *optional*): Teacher → system prompt, to score each answer with the system
            prompt it was generated with.
        suffix (`str`, defaults to `""`): Suffix of the names of the student's columns and of `reward`, to store the
            scores of a second student.
        progress (`bool`, defaults to `True`): Show progress, in tokens per second.
        options: Keys of [`Reward`] (`alpha`, `normalization`, `learnability_metric`), which replace those of
            `settings`; `max_cost` and `batch_size` of [`ScoreOptions`]; and, if `student` is a name, keys of
            [`Student`] (`metrics`, `dtype`, `device`, `attn_implementation`, `token_budget`, `too_long`), with its
            `revision` and `endpoint` named `student_revision` and `student_endpoint`.

    Returns:
        `Dataset`: The same rows in the same order with the columns `quality`, `learnability`, `student`,
        `student_revision`, `learnability_metric` and `reward` added. A row without completion has null scores. If an
        answer cannot be scored, `learnability_error` says why.

    Raises:
        ConfigError: If a setting is wrong.
        MissingColumnError: If a column is absent.
        DataError: If a prompt is empty, an answer is too long, or scores would be overwritten.
        ScoringError: If a score cannot be computed; the message names the prompt and the teacher.
        MissingPackageError: If a package that the student needs is missing; checked before quality is computed.

    Example:
        >>> scored = score(answers, "org/student", quality="math", alpha=0.4)  # doctest: +SKIP
        >>> both = score(scored, "org/other", quality=None, suffix="_other")  # doctest: +SKIP
    """
    require_table(answers, "score", "answers")
    require_columns(answers.column_names, (PROMPT_ID, PROMPT, TEACHER, COMPLETION), "score")
    how = merged(ScoreOptions, None, {name: options.pop(name) for name in _OF_THE_PASS & options.keys()}, "score")
    reward, student = _settings(student, settings, options)
    if student.teacher_system_prompts and system_prompts is None:
        raise ConfigError(
            "score: `teacher_system_prompts` of the student needs `system_prompts`: pass a mapping from teachers' "
            "names to their system prompts."
        )
    metric = reward.learnability_metric
    require_metrics((metric, *student.metrics))
    require_keys([("student", student), ("quality", quality)], "score")  # before a judge is paid
    present = {STUDENT + suffix, STUDENT_REVISION + suffix} & set(answers.column_names)
    if present:  # before quality is computed, which may cost money
        revision = identity(student.model, student.revision)
        refuse_other_student({name: answers[name][:] for name in present}, student.model, revision, suffix)
    require_packages(student)
    sources = None if quality is None else _sources(quality)
    _require_prices(how, student, sources)
    with open_ledger(ledger) as book:
        turn = _Pass(_by_prompt(answers), how.batch_size, progress, Account(book, how.max_cost))
        scored = _add_quality(answers, sources, student, turn)
        scored = _add_learnability(scored, student, metric, turn, system_prompts, suffix)
    return add_rewards(
        scored,
        reward.alpha,
        reward.normalization,
        COLUMN_OF[metric] + suffix,
        HIGHER_IS_BETTER[metric],
        REWARD + suffix,
    )


@dataclass(frozen=True)
class _Pass:
    """Settings of one pass over the rows: their order, the batch size, the progress bar and the account."""

    order: list[int]
    batch_size: int
    progress: bool
    account: Account

    def windows(self) -> Iterator[list[int]]:
        for start in range(0, len(self.order), self.batch_size):
            yield self.order[start : start + self.batch_size]


#: Keywords of [`score`] that belong to [`ScoreOptions`].
_OF_THE_PASS = ScoreOptions.model_fields.keys()


def _require_prices(how: ScoreOptions, student: Student, sources: Sources | None) -> None:
    asked = [part.judge for part in sources.parts] if sources is not None else []
    if how.max_cost is not None and not any(one is not None and one.has_price for one in (*asked, student.endpoint)):
        raise ConfigError(
            "score: `max_cost` needs prices: set `price_per_million_prompt_tokens` and "
            "`price_per_million_completion_tokens` of the judge or of the student's endpoint."
        )


#: Keywords of [`score`] → fields of the student.
_OF_THE_STUDENT = {f"student_{name}" if name == "revision" else name: field for name, field in STUDENT_OPTIONS.items()}


def _settings(
    student: str | Student, settings: Reward | Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Reward, Student]:
    """Reads the reward's and the student's settings of one call; every keyword is used or refused."""
    own = {name: value for name, value in options.items() if name in _OF_THE_STUDENT}
    mixing = {name: value for name, value in options.items() if name not in own}
    require_known(Reward, mixing, "score", [*Reward.model_fields, *_OF_THE_STUDENT, *_OF_THE_PASS])
    reward = merged(Reward, settings, mixing, "score")
    if isinstance(student, str):
        asked = read_student(student, own, "score", _OF_THE_STUDENT)
        void = sorted({"dtype", "attn_implementation"} & own.keys()) if asked.endpoint is not None else []
        if void:
            raise ConfigError(
                f"score: {', '.join(f'`{name}`' for name in void)} cannot be set for a student behind a server: the "
                "server decides it. Remove it, or remove `student_endpoint`."
            )
        return reward, asked
    if own:
        raise ConfigError(
            f"score: {', '.join(f'`{name}`' for name in sorted(own))} must be set in the section passed as `student`, "
            "not as a keyword. Set it in the section, or pass the student's name as `student`."
        )
    return reward, student


def _sources(quality: QualityLike) -> Sources:
    if isinstance(quality, Quality | Mapping):
        return read_sources(quality)
    return read_sources({"verifier": quality}) if isinstance(quality, str) else function_source(quality)


def _by_prompt(answers: Dataset) -> list[int]:
    """Row numbers with the answers to a prompt next to each other, prompts in the order of their first row."""
    first: dict[str, int] = {}
    ids = answers[PROMPT_ID][:]
    for row, prompt in enumerate(ids):
        first.setdefault(prompt, row)
    return sorted(range(len(ids)), key=lambda row: (first[ids[row]], row))


def _add_quality(answers: Dataset, sources: Sources | None, student: Student, turn: _Pass) -> Dataset:
    if sources is None:
        require_columns(answers.column_names, (QUALITY,), "score without `quality`")
        return answers
    if QUALITY in answers.column_names:
        raise DataError(
            "The answers already have the column `quality`: pass `quality=None` to use it, or remove the column."
        )
    values: dict[str, list[float | None]] = {part.name: [None] * len(answers) for part in sources.parts}
    errors: list[str | None] = [None] * len(answers)
    how = ScorerOptions(device=student.device, token_budget=student.token_budget)
    with tqdm(total=len(answers), desc="quality", unit="row", disable=not turn.progress) as bar:
        for rows in turn.windows():
            found, failed = source_values(sources, answers[rows], how, turn.account)
            for place, row in enumerate(rows):
                errors[row] = failed[place]
                for name, column in found.items():
                    values[name][row] = column[place]
            bar.update(len(rows))
    warn_of_zeros(sources, values)
    for part in sources.parts if sources.several else ():
        answers = set_column(answers, part.column, values[part.name], "float64")
    if sources.judged:
        answers = set_column(answers, QUALITY_ERROR, errors, "string")
    if sources.normalize not in WITHIN_PROMPT:
        return set_column(answers, QUALITY, weighted_mean(sources, values), "float64")
    columns, weights = [part.column for part in sources.parts], [part.weight for part in sources.parts]
    return add_weighted_quality(answers, columns, weights, str(sources.normalize))


#: Types of the student's columns other than float64.
_TYPES = {STUDENT_COMPLETION_TOKENS: "int64", LEARNABILITY_TRUNCATED: "bool"} | dict.fromkeys(
    (STUDENT, STUDENT_REVISION, LEARNABILITY_METRIC), "string"
)


#: Estimate of the characters per token, used until the student has tokenized a batch.
_CHARACTERS_PER_TOKEN = 4


def _expected_tokens(answers: Dataset) -> int:
    """A rough number of tokens that the student will read, so that the bar shows the time left from the start."""
    characters = sum(len(text) for text in answers[COMPLETION] if text is not None)
    prompts = dict(zip(answers[PROMPT_ID], answers[PROMPT], strict=True))
    return (characters + sum(len(str(prompt)) for prompt in prompts.values())) // _CHARACTERS_PER_TOKEN


def _add_learnability(
    answers: Dataset, student: Student, metric: str, turn: _Pass, system_prompts: Mapping[str, str] | None, suffix: str
) -> Dataset:
    metrics = (metric, *student.metrics)
    model = load_scorer(student)
    scores: list[AnswerScore | None] = [None] * len(answers)
    total = _expected_tokens(answers)
    with tqdm(desc="learnability", total=total, unit="tok", unit_scale=True, disable=not turn.progress) as bar:
        done = 0
        for rows in turn.windows():
            found = score_batch(
                model,
                answers[rows],
                student,
                metrics,
                system_prompts=system_prompts,
                progress=bar.update,
                account=turn.account,
            )
            for row, one in zip(rows, found, strict=True):
                scores[row] = one
            done += len(rows)
            bar.total = round(bar.n * len(answers) / done)  # extrapolated from the batches so far
            bar.refresh()
    reasons = warn_of_missing(scores)
    if any(reasons):
        answers = set_column(answers, LEARNABILITY_ERROR + suffix, reasons, "string")
    cut = sum(one is not None and one.truncated for one in scores)
    if cut:
        logger.warning(
            "%d of %d answers were truncated to the student's context of %s tokens.", cut, len(answers), model.context
        )
    for name, values in score_columns(scores, model, metrics, student.too_long).items():
        answers = set_column(answers, name + suffix, values, _TYPES.get(name, "float64"))
    return answers
