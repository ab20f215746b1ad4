"""One answer of a model, as the ledger keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One answer.

    Args:
        text (`str`): The answer, without reasoning; never empty.
        finish_reason (`str`): One of `columns.FINISH_REASONS`, or what the server said where none of them is meant.
        prompt_tokens, completion_tokens (`int`, *optional*): Usage, with reasoning among the completion's; `None`
            where nobody could count.
        reasoning (`str`, *optional*): What the model thought before it answered.
        usage_source (`str`, *optional*): One of `columns.USAGE_SOURCES`: who counted the tokens.
        cached_tokens (`int`, *optional*): Tokens of the prompt that the server read from its cache.
        reasoning_tokens (`int`, *optional*): Tokens of the completion that went into reasoning.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str | None = None
    usage_source: str | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
