"""From what a server says to a `Completion`: finish reasons by one name, no empty answers, honest counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from persyn_hf.config import Sampling
from persyn_hf.errors import RetryableError, RowError
from persyn_hf.ledger.completion import Completion

#: What servers call the end of an answer → `columns.FINISH_REASONS`; whatever is not here is `stop`.
_FINISH_REASONS = {
    "length": "length",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
}
#: The server gave up in the middle: what it sent is no answer.
_BROKEN_OFF = frozenset({"abort", "aborted", "error", "cancelled"})


def read_answer(
    text: object,
    reason: object,
    sampling: Sampling,
    prompt_tokens: object,
    completion_tokens: object,
    reasoning: object = None,
    clean: Callable[[str], str] = str,
) -> Completion:
    """Makes a `Completion` of a server's words, or says why they are none.

    Args:
        text, reason, prompt_tokens, completion_tokens, reasoning (`object`): As the server gave them, or `None`.
        sampling (`Sampling`): What was asked for.
        clean (callable): Makes the server's own words fit for an error.

    Raises:
        RetryableError: If the answer is empty or was broken off.
        RowError: If asking again cannot help: it was filtered, or thinking took all of `max_tokens`.
    """
    named = str(reason).lower() if reason is not None else ""
    made = count(completion_tokens) or None  # nobody makes an answer of no tokens
    asked = count(prompt_tokens) or None
    finish = _FINISH_REASONS.get(named, "stop")
    if reason is None and made is not None and made >= sampling.max_tokens:
        finish = "length"
    shown = clean(repr(reason))
    if named in _BROKEN_OFF:
        raise RetryableError(f"the server broke the answer off (finish reason {shown})", attempts=2)
    whole = text if isinstance(text, str) else ""
    answer, thoughts = split_reasoning(whole, reasoning if isinstance(reasoning, str) else None)
    if finish == "stop":
        answer = _without_stop(answer, sampling)
    if not answer.strip():
        if thoughts and finish == "length":
            raise RowError(f"all of `max_tokens` ({sampling.max_tokens}) went into reasoning; raise it")
        if finish == "content_filter":
            raise RowError("the server's content filter left nothing of the answer")
        what = "no content" if text is None else "an empty completion"
        raise RetryableError(f"the teacher answered with {what} (finish reason {shown})", attempts=2)
    source = "server" if made is not None and asked is not None else None
    return Completion(answer, finish, asked, made, thoughts, source)


def count(value: Any) -> int | None:
    """A token count that can be believed and stored."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _without_stop(text: str, sampling: Sampling) -> str:
    """Cuts a stop string off the end: TGI leaves it there, other servers do not."""
    return next((text.removesuffix(stop) for stop in sampling.stop if stop and text.endswith(stop)), text)


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
