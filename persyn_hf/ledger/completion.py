"""One answer of a model, as the ledger keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One answer.

    Args:
        text (`str`): The answer, without reasoning; never empty.
        finish_reason (`str`): One of `columns.FINISH_REASONS`.
        prompt_tokens, completion_tokens (`int`, *optional*): Usage; `None` where nobody could count.
        reasoning (`str`, *optional*): What the model thought before it answered.
        usage_source (`str`, *optional*): One of `columns.USAGE_SOURCES`: who counted the tokens.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str | None = None
    usage_source: str | None = None
