"""One answer of a model, as stored in the ledger."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One answer of a model.

    Args:
        text (`str`): Answer without reasoning; never empty.
        finish_reason (`str`): One of `columns.FINISH_REASONS`, or the server's own reason if it is none of them.
        prompt_tokens, completion_tokens (`int`, *optional*): Token counts, reasoning included in the completion's;
            `None` if they are not known.
        reasoning (`str`, *optional*): Reasoning before the answer.
        usage_source (`str`, *optional*): Source of the token counts, one of `columns.USAGE_SOURCES`.
        cached_tokens (`int`, *optional*): Prompt tokens that the server read from its cache.
        reasoning_tokens (`int`, *optional*): Completion tokens used for reasoning.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str | None = None
    usage_source: str | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
