"""What verifiers compare: the answer behind a completion's thoughts, and the reference, which must be there."""

from __future__ import annotations

from typing import Any

from persyn_hf.errors import ScoringError

#: The tag that ends a model's thoughts.
_END = "</think>"


def without_thoughts(completion: str) -> str:
    """What stands after the last `</think>`; the whole text where nothing does.

    Example:
        >>> without_thoughts("<think>2 and 2.</think>\\n\\n4")
        '4'
    """
    _, found, answer = completion.rpartition(_END)
    return answer.strip() if found and answer.strip() else completion


def require_answer(answer: Any) -> Any:
    """Refuses a missing reference answer."""
    if answer is None:
        raise ScoringError("This verifier needs a reference: give the column `answer` (`prompts.answer_column`).")
    return answer
