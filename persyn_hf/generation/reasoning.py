"""What a model thought before it answered, told apart from the answer."""

from __future__ import annotations

from persyn_hf.generation.client import Completion

_OPEN, _CLOSE = "<think>", "</think>"


def split_reasoning(text: str, given: str | None = None) -> tuple[str, str | None]:
    """Splits an answer from the thoughts before it.

    Thoughts are what a server reports as such, or what stands between `<think>` tags at the start. A template may
    have opened the tag itself, so that the text has the closing one only. A tag that is never closed leaves no answer.

    Args:
        text (`str`): What the model wrote.
        given (`str`, *optional*): The server's `reasoning_content`.

    Returns:
        `tuple[str, str | None]`: The answer, unchanged where there are no thoughts, and the thoughts.

    Example:
        >>> split_reasoning("<think>2 and 2</think>\\n\\n4")
        ('4', '2 and 2')
        >>> split_reasoning("4")
        ('4', None)
    """
    if given is not None and given.strip():
        return text, given.strip()
    opened = text.lstrip().startswith(_OPEN)
    if not opened and (_CLOSE not in text or _OPEN in text):
        return text, None
    thoughts, _, answer = text.lstrip().removeprefix(_OPEN).partition(_CLOSE)
    return answer.lstrip(), thoughts.strip() or None


def presented(completion: Completion, mode: str) -> tuple[str, str | None]:
    """The completion and the reasoning as a teacher's `reasoning` setting wants them in the table.

    Args:
        completion (`Completion`): From a client or the ledger, split.
        mode (`str`): `separate`, `keep` (back into the completion, between `<think>` tags) or `drop`.

    Example:
        >>> presented(Completion("4", "stop", 1, 1, reasoning="2 and 2"), "keep")
        ('<think>\\n2 and 2\\n</think>\\n\\n4', None)
    """
    if mode == "keep" and completion.reasoning:
        return f"{_OPEN}\n{completion.reasoning}\n{_CLOSE}\n\n{completion.text}", None
    return completion.text, completion.reasoning if mode == "separate" else None
