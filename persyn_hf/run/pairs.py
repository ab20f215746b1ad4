"""Preference pairs from a run's scored probe, in the format of TRL's `DPOTrainer`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import Publish, merged
from persyn_hf.config.routing import PairOptions
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.personalize import personalize
from persyn_hf.publishing.checks import require_names, require_no_leaks
from persyn_hf.publishing.leaks import find_in_tables

if TYPE_CHECKING:
    from datasets import Dataset

#: Default dataset configuration for pairs.
PAIRS_CONFIG = "pairs"


@dataclass(frozen=True)
class _Answer:
    """One scored answer: its row, teacher, value and text."""

    row: int
    teacher: str
    value: float
    text: str


def preference_pairs(
    scored: Dataset, settings: PairOptions | Mapping[str, object] | None = None, **options: object
) -> Dataset:
    """Builds preference pairs from scored answers: the better of two answers to a prompt is chosen.

    Failed and empty answers, answers that were cut at `max_tokens`, and pairs with equal texts or equal values are
    left out.

    Args:
        scored (`Dataset`): Scored answers with `prompt_id`, `prompt`, `teacher`, `completion`, `finish_reason` and
            `reward`: a run's `stages/score.parquet`, or the result of [`score`].
        settings (`PairOptions` or `Mapping`, *optional*): Options of the pairs.
        options: Single keys of [`PairOptions`]: `which`, `by`, `min_margin` and `keep_truncated`.

    Returns:
        `Dataset`: `prompt`, `chosen` and `rejected` as message lists (TRL's conversational form), with `prompt_id`,
        `chosen_teacher`, `rejected_teacher`, `chosen_reward`, `rejected_reward` (the compared values) and their
        difference, `margin`.

    Raises:
        ConfigError: If an option is unknown or invalid.
        MissingColumnError: If a column is missing.
        DataError: If no two answers form a pair.

    Example:
        >>> pairs = preference_pairs(scored, min_margin=0.2)  # doctest: +SKIP
        >>> DPOTrainer("org/student", train_dataset=pairs).train()  # doctest: +SKIP
    """
    asked = merged(PairOptions, settings, options, "preference_pairs")
    made = [pair for answers in _answers(scored, asked) for pair in _paired(answers, asked)]
    if not made:
        raise DataError(
            f"There are no preference pairs: no two answers to one prompt differ in `{asked.by}` by "
            f"{asked.min_margin:g} or more. Lower `min_margin`, or check the columns `error` and `finish_reason`."
        )
    chosen = _messages(scored, [better.row for better, _ in made], asked)
    rejected = _messages(scored, [worse.row for _, worse in made], asked)
    pairs = chosen.select_columns([columns.PROMPT_ID, columns.PROMPT, columns.COMPLETION])
    pairs = pairs.rename_column(columns.COMPLETION, "chosen")
    pairs = _beside(pairs, rejected.select_columns([columns.COMPLETION]).rename_column(columns.COMPLETION, "rejected"))
    return _beside(pairs, _facts(made))


def push_pairs(
    pairs: Dataset,
    settings: Publish | Mapping[str, object] | None = None,
    *,
    config_name: str = PAIRS_CONFIG,
    token: str | None = None,
    **options: object,
) -> str:
    """Pushes preference pairs as a separate configuration. Other configurations and the card are unchanged.

    Args:
        pairs (`Dataset`): Result of [`preference_pairs`].
        settings (`Publish` or `Mapping`, *optional*): Section `publish` of a configuration, or its keys.
        config_name (`str`, defaults to `"pairs"`): Name of the dataset's configuration.
        token (`str`, *optional*): Hub token. Default: the token stored by `hf auth login`.
        options: Single keys of [`Publish`]: `dataset_repo_id`, `private`, `revision`, `create_pr`, `commit_message`
            and `allow_secrets`.

    Returns:
        `str`: URL of the commit.

    Raises:
        ConfigError: If no repository is given.
        PublishError: If a text looks like a secret, or a name is invalid.
    """
    asked = merged(Publish, settings, options, "push_pairs", _PUSHED)
    if asked.dataset_repo_id is None:
        raise ConfigError("push_pairs: `dataset_repo_id` is required: the dataset's repository, such as `me/my-data`.")
    require_names(asked.dataset_repo_id, None, config_name)
    if not asked.allow_secrets:
        require_no_leaks(find_in_tables({"train": pairs}))
    done = pairs.push_to_hub(
        asked.dataset_repo_id,
        config_name,
        private=asked.private,
        token=token,
        revision=asked.revision,
        create_pr=asked.create_pr,
        commit_message=asked.commit_message,
    )
    return str(done)


_PUSHED = ("dataset_repo_id", "private", "revision", "create_pr", "commit_message", "allow_secrets")


def _answers(scored: Dataset, asked: PairOptions) -> Iterator[list[_Answer]]:
    """Yields the usable answers of each prompt and turn, best first."""
    needed = (columns.PROMPT_ID, columns.PROMPT, columns.TEACHER, columns.COMPLETION, columns.FINISH_REASON, asked.by)
    columns.require_columns(scored.column_names, needed, "preference_pairs")
    failed = scored[columns.ERROR][:] if columns.ERROR in scored.column_names else [None] * len(scored)
    names = (columns.TEACHER, columns.COMPLETION, columns.FINISH_REASON, asked.by)
    found: dict[tuple[str, int], list[_Answer]] = {}
    keys = columns.row_keys(scored)
    for row, (key, teacher, text, reason, value, error) in enumerate(
        zip(keys, *(scored[name][:] for name in names), failed, strict=True)
    ):
        usable = error is None and text is not None and text.strip() and value is not None
        if usable and (asked.keep_truncated or reason != "length"):
            found.setdefault((key[0], key[2]), []).append(_Answer(row, teacher, float(value), text))
    for answers in found.values():
        yield sorted(answers, key=lambda answer: -answer.value)


def _paired(answers: Sequence[_Answer], asked: PairOptions) -> Iterator[tuple[_Answer, _Answer]]:
    """Yields the pairs of one prompt, the better answer first."""
    if asked.which == "best-worst":
        candidates: Iterator[tuple[_Answer, _Answer]] = iter([(answers[0], answers[-1])])
    else:
        candidates = pairwise(answers) if asked.which == "adjacent" else combinations(answers, 2)
    for better, worse in candidates:
        margin = better.value - worse.value
        if margin > 0 and margin >= asked.min_margin and better.text != worse.text:
            yield better, worse


def _messages(scored: Dataset, rows: Sequence[int], asked: PairOptions) -> Dataset:
    """Converts rows to training data: prompt and completion as messages."""
    chosen = scored.select(rows)
    made = personalize(chosen, asked.keep_truncated)
    if len(made) != len(chosen):
        raise DataError(f"All {len(chosen)} paired answers must be usable for training, but only {len(made)} are.")
    return made


def _facts(made: Sequence[tuple[_Answer, _Answer]]) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "chosen_teacher": [better.teacher for better, _ in made],
            "rejected_teacher": [worse.teacher for _, worse in made],
            "chosen_reward": [better.value for better, _ in made],
            "rejected_reward": [worse.value for _, worse in made],
            "margin": [better.value - worse.value for better, worse in made],
        }
    )


def _beside(left: Dataset, right: Dataset) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets([left, right], axis=1)
