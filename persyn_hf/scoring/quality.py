"""`persyn_quality`: the quality of answers by verifiers, reward models and judges, as a `datasets.map` function."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from persyn_hf.columns import (
    ANSWER,
    COMPLETION,
    EXTRA_BODY,
    PROMPT,
    QUALITY,
    QUALITY_ERROR,
    RESPONSE_FORMAT,
    TOOLS,
    require_columns,
)
from persyn_hf.config import Quality, merged, require_known
from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.errors import ConfigError
from persyn_hf.ledger.ledger import LedgerLike, open_ledger
from persyn_hf.models.device import worker_device
from persyn_hf.packages import require
from persyn_hf.scoring.json_schema import schema_of_row
from persyn_hf.scoring.judge import judge_answers
from persyn_hf.scoring.mixing import WITHIN_PROMPT, Source, Sources, function_source, read_sources, weighted_mean
from persyn_hf.scoring.paid import Account
from persyn_hf.scoring.rows import answered, as_batch, row_names
from persyn_hf.scoring.verification import ScorableAnswers, verified
from persyn_hf.scoring.verifiers import Verifier, find_verifier
from persyn_hf.tables import require_batch
from persyn_hf.version import __version__

logger = logging.getLogger(__name__)


def persyn_quality(
    batch_or_row: Mapping[str, Any],
    rank: int | None = None,
    *,
    verifier: str | Verifier | None = None,
    prompt_column: str = PROMPT,
    answer_column: str = ANSWER,
    version: str | None = None,
    ledger: LedgerLike = None,
    **options: Any,
) -> dict[str, Any]:
    """Adds `quality` to a row or a batch, by exactly one of a verifier, a reward model, a judge and `sources`.

    Args:
        batch_or_row (`Mapping`): The prompt column, `completion` and, if the verifier needs it, the reference.
        rank (`int`, *optional*): Worker number from `with_rank=True`; it selects the GPU.
        verifier (`str` or `Callable`, *optional*): `"math"`, `"exact"`, `"reasoning-gym"`, `"json-schema"`, an entry
            point's name, `"package.module:function"`, or a function `(prompt, completion, answer)` that returns a
            finite number.
        prompt_column, answer_column (`str`): Names of the columns.
        version (`str`, *optional*): Part of the cache key only; `pin_quality` sets it.
        ledger (`Ledger`, path or `None`): Ledger that stores a judge's replies; stored replies are not requested
            again. The keyword `max_cost` limits the cost of all its answers, in USD, if the judge has prices.
        options: Keys of [`Quality`]: `reward_model` and its `revision`, `judge` (the fields of [`Judge`]), `sources`
            (each with the fields of [`QualitySource`]) and `normalize`; only `score` supports `minmax`, `zscore` and
            `rank`, which need all rows of a prompt. Keys of [`ScorerOptions`] (`dtype`, `device`, `token_budget`)
            apply to reward models.

    Returns:
        `dict`: `quality` (float), a list for a batch, a scalar for a row; null for a row with `error` or without
        completion. With `sources`, `quality_<name>` is on each source's own scale, and `quality` is their weighted
        mean. With a judge or a reward model, `quality_error` says why an answer has no score: it quotes a judge's
        reply that is not a score, or says that the reward model's score is not finite.

    Raises:
        ConfigError: If not exactly one is given, a verifier is not found, or sources have different scales and
            `normalize` is not set.
        MissingColumnError: If a column is absent.
        ScoringError: If a verifier returns no finite number or cannot read references (the message names the rows), if
            no score of a reward model is finite, or if a judge cannot be reached.

    Example:
        >>> persyn_quality({"prompt": "1+1?", "completion": "A: 2", "answer": "2"}, verifier="math")
        {'quality': 1.0}
    """
    require_batch(batch_or_row, "persyn_quality")
    require_columns(batch_or_row.keys(), (prompt_column, COMPLETION), "persyn_quality")
    running = {name: value for name, value in options.items() if name in ScorerOptions.model_fields}
    max_cost = options.pop("max_cost", None)
    asked = {name: value for name, value in options.items() if name not in running}
    require_known(Quality, asked, "persyn_quality", [*Quality.model_fields, *ScorerOptions.model_fields])
    how = merged(ScorerOptions, None, running, "persyn_quality")
    if callable(verifier):
        if any(asked.get(name) is not None for name in ("reward_model", "judge", "sources")):
            raise ConfigError("Give exactly one of `verifier`, `reward_model`, `judge` and `sources`.")
        wanted = function_source(verifier)
    else:
        asked |= {"verifier": verifier}
        wanted = read_sources({key: value for key, value in asked.items() if value is not None})
    if wanted.normalize in WITHIN_PROMPT:
        raise ConfigError(
            f"`normalize: {wanted.normalize}` needs all answers to a prompt, which a map function does not have. Use "
            '`persyn_hf.score`, or set `normalize` to "range".'
        )
    batch, single = as_batch(batch_or_row)
    how = how.model_copy(update={"device": worker_device(how.device, rank)})
    with open_ledger(ledger) as book:
        values, errors = source_values(wanted, batch, how, Account(book, max_cost), prompt_column, answer_column)
    columns: dict[str, list[Any]] = {QUALITY: weighted_mean(wanted, values)}
    if wanted.several:
        columns |= {part.column: values[part.name] for part in wanted.parts}
    if wanted.judged:
        columns[QUALITY_ERROR] = errors
    return {name: column[0] if single else column for name, column in columns.items()}


def pin_quality(**settings: Any) -> dict[str, Any]:
    """Arguments of `persyn_quality` that make the cache of `datasets` safe: reward models by commit or digest.

    Args:
        settings: Arguments of `persyn_quality`.

    Returns:
        `dict[str, Any]`: For `fn_kwargs`.
    """
    from persyn_hf.models.loading import identity

    def pinned(source: Mapping[str, Any]) -> dict[str, Any]:
        name = source.get("reward_model")
        return dict(source) | ({} if name is None else {"revision": identity(name, source.get("revision"))})

    settings = pinned(settings)
    if settings.get("sources") is not None:
        settings["sources"] = [pinned(source) for source in settings["sources"]]
    return settings | {"version": __version__}


def source_values(
    sources: Sources,
    batch: Mapping[str, Sequence[Any]],
    how: ScorerOptions,
    account: Account,
    prompt_column: str = PROMPT,
    answer_column: str = ANSWER,
) -> tuple[dict[str, list[float | None]], list[str | None]]:
    """Scores every row of a batch by every source, each on its own scale.

    Returns:
        `tuple[dict, list]`: Source name → column of scores, and a column of errors.
    """
    rows = answered(batch)
    references = batch.get(answer_column) or [None] * len(batch[COMPLETION])
    nothing = [None] * len(batch[COMPLETION])
    forms, bodies = batch.get(RESPONSE_FORMAT) or nothing, batch.get(EXTRA_BODY) or nothing
    answers = ScorableAnswers(
        [batch[prompt_column][row] for row in rows],
        [batch[COMPLETION][row] for row in rows],
        [references[row] for row in rows],
        row_names(batch, rows),
        answer_column in batch,
        [schema_of_row(None, forms[row], bodies[row]) for row in rows],
        [batch[TOOLS][row] for row in rows] if TOOLS in batch else None,
    )
    columns: dict[str, list[float | None]] = {}
    errors: list[str | None] = [None] * len(batch[COMPLETION])
    for part in sources.parts:
        column = columns[part.name] = [None] * len(batch[COMPLETION])
        for row, value in zip(rows, _values(part, answers, how, account), strict=True):
            if not isinstance(value, str):
                column[row] = value
            elif sources.several:
                errors[row] = "; ".join(filter(None, (errors[row], f"{part.name}: {value}")))
            else:
                errors[row] = value
    failed = sum(error is not None for error in errors)
    if failed:
        logger.warning("%d of %d answers got no score; see the column `%s`.", failed, len(rows), QUALITY_ERROR)
    return columns, errors


def warn_of_zeros(sources: Sources, values: Mapping[str, Sequence[float | None]]) -> None:
    """Warns of a verifier that gives every answer 0, which usually means that it misreads the references.

    Args:
        sources (`Sources`): The sources of quality.
        values (`Mapping`): Source name → column of values.
    """
    for part in sources.parts:
        known = [value for value in values[part.name] if value is not None]
        if part.verifier is not None and known and not any(known):
            name = part.verifier if isinstance(part.verifier, str) else part.name
            logger.warning(
                "The verifier `%s` gives all %d answers 0. If some of them are correct, it misreads them or their "
                "references: check some rows, and the format of `answer` that it expects.",
                name,
                len(known),
            )


def _values(part: Source, answers: ScorableAnswers, how: ScorerOptions, account: Account) -> Sequence[float | str]:
    if part.judge is not None:
        return judge_answers(part.judge, answers.prompts, answers.completions, answers.references, account)
    if part.reward_model is not None:
        require("score with a reward model", "torch", "transformers")
        from persyn_hf.scoring.reward_model import load_reward_model, reward_scores

        model = load_reward_model(part.reward_model, part.revision, how.dtype, how.device)
        return reward_scores(
            model, answers.prompts, answers.completions, answers.names, how.token_budget, tools=answers.tools
        )
    assert part.verifier is not None
    if part.verifier == "json-schema":
        answers = replace(answers, references=list(map(schema_of_row, answers.references, answers.forms)))
    verifier = part.verifier
    if isinstance(verifier, str):
        verifier = find_verifier(verifier, part.trust_verifier)
    return verified(verifier, part.range, answers)
