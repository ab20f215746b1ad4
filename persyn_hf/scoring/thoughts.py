"""The two texts that a verifier compares: the answer after a completion's thoughts, and the reference."""

from __future__ import annotations

from typing import Any

from persyn_hf.errors import ScoringError

#: The tag that ends a model's thoughts.
_END = "</think>"


def without_thoughts(completion: str) -> str:
    """The text after the last `</think>`; the whole text if nothing follows it or there is no such tag.

    Example:
        >>> without_thoughts("<think>2 and 2.</think>\\n\\n4")
        '4'
    """
    _, found, answer = completion.rpartition(_END)
    return answer.strip() if found and answer.strip() else completion


def require_answer(answer: Any) -> Any:
    """Refuses a missing reference answer."""
    if answer is None:
        raise ScoringError(
            "This verifier needs a reference: add the column `answer`, or name yours in `prompts.answer_column`."
        )
    return answer
