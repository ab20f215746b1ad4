"""From routed answers to the table that a student is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

CARRIED = (
    columns.PROMPT_ID,
    columns.TEACHER,
    columns.ROUTE_SCORES,
    columns.FINISH_REASON,
    columns.PROMPT_TOKENS,
    columns.COMPLETION_TOKENS,
)


@dataclass(frozen=True)
class Kept:
    """How many answers became training rows, and what happened to the others.

    Args:
        rows (`int`): Training rows.
        failed (`int`): Answers with `error` set; never trained on.
        truncated (`int`): Answers cut by `max_tokens` and left out.
        empty (`int`): Answers without text and left out.
    """

    rows: int
    failed: int
    truncated: int
    empty: int

    @property
    def share(self) -> float:
        """Training rows per answer asked for, 0 to 1."""
        asked = self.rows + self.failed + self.truncated + self.empty
        return self.rows / asked if asked else 0.0


def personalize(answers: Dataset, keep_truncated: bool = False) -> Dataset:
    """Makes the personalised set: TRL's conversational prompt–completion form.

    Args:
        answers (`Dataset`): The routed answers of [`generate_routed`].
        keep_truncated (`bool`, defaults to `False`): Keep completions that were cut by `max_tokens`; TRL would teach
            the student to end its turn there.

    Returns:
        `Dataset`: `prompt` and `completion` as message lists, with `prompt_id`, `teacher`, `route_scores`,
        `finish_reason` and the token counts where the answers had them. Failed and empty answers are left out.

    Raises:
        MissingColumnError: If the table is not one of answers.
        DataError: If nothing is left to train on.
    """
    columns.require_columns(
        answers.column_names,
        (columns.PROMPT, columns.COMPLETION, columns.TEACHER, columns.FINISH_REASON),
        "personalize",
    )
    keep = [index for index, fate in enumerate(_fates(answers, keep_truncated)) if fate == "kept"]
    if not keep:
        raise DataError(
            f"No answer is left to train on: of {len(answers)}, all failed, were empty or were cut by `max_tokens`. "
            "Look at the `error` and `finish_reason` columns; raise `max_tokens`, or set `keep_truncated`."
        )
    kept = answers.select(keep)
    carried = [name for name in CARRIED if name in kept.column_names]
    return kept.map(
        _conversation,
        remove_columns=[name for name in kept.column_names if name not in carried],
        features=_features(kept, carried),
        desc="personalize",
    )


def count_kept(answers: Dataset, keep_truncated: bool = False) -> Kept:
    """Counts what [`personalize`] keeps and why it leaves the rest."""
    fates = _fates(answers, keep_truncated)
    return Kept(fates.count("kept"), fates.count("failed"), fates.count("truncated"), fates.count("empty"))


def _fates(answers: Dataset, keep_truncated: bool) -> list[str]:
    def fate(completion: str | None, finish_reason: str | None, error: str | None) -> str:
        if error is not None or completion is None:
            return "failed"
        if not completion.strip():
            return "empty"
        return "truncated" if finish_reason == "length" and not keep_truncated else "kept"

    errors = answers[columns.ERROR] if columns.ERROR in answers.column_names else [None] * len(answers)
    return [
        fate(*row) for row in zip(answers[columns.COMPLETION], answers[columns.FINISH_REASON], errors, strict=True)
    ]


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        columns.PROMPT: columns.canonical_messages(row[columns.PROMPT]),
        columns.COMPLETION: [{"role": "assistant", "content": row[columns.COMPLETION]}],
    }


def _features(answers: Dataset, carried: list[str]) -> Any:
    from datasets import Features, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    prompt = answers.features[columns.PROMPT]
    messages = List(message) if getattr(prompt, "dtype", None) == "string" else prompt
    return Features(
        {columns.PROMPT: messages, columns.COMPLETION: List(message)}
        | {name: answers.features[name] for name in carried}
    )
