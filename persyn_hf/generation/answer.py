"""Conversion of a server's answer to a `Completion`: finish reasons, reasoning, and errors for empty answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from persyn_hf.config import Teacher
from persyn_hf.errors import RetryableError, RowError, TeacherError
from persyn_hf.generation.client import Request
from persyn_hf.generation.finish import BROKEN_OFF, Finish, read_finish
from persyn_hf.generation.reasoning import CLOSE, OPEN, split_marked
from persyn_hf.generation.special_tokens import Stripped, without_leaks
from persyn_hf.generation.usage import Usage
from persyn_hf.ledger.completion import Completion


@dataclass(frozen=True)
class Said:
    """The raw fields of a server's answer; `None` for a field that the server did not send.

    Args:
        text (`object`): Text of the answer.
        finish (`object`): Finish reason.
        reasoning (`object`): Reasoning before the answer, if the server separates it.
        refusal (`object`): Message instead of an answer (OpenAI's `refusal`).
        calls (`object`): Tool calls.
        stopped_by (`object`): Stop string that ended the answer (vLLM's `stop_reason`).
        usage (`Usage`): Token counts.
    """

    text: object
    finish: object = None
    reasoning: object = None
    refusal: object = None
    calls: object = None
    stopped_by: object = None
    usage: Usage = field(default_factory=Usage)


def read_answer(said: Said, request: Request, clean: Callable[[str], str] = str) -> Completion:
    """Converts a server's answer to a `Completion`.

    Args:
        said (`Said`): Fields of the server's answer.
        request (`Request`): Request that was answered.
        clean (`Callable[[str], str]`): Function that makes a server's text safe for an error.

    Raises:
        RetryableError: If the answer is empty or was interrupted.
        RowError: If a retry cannot help: the answer was filtered or refused, it is a tool call, reasoning used all of
            `max_tokens`, or the same request always gives the same answer.
    """
    sampling, usage = request.sampling, said.usage
    whole = said.text if isinstance(said.text, str) else ""
    size = len(whole.encode("utf-8", "replace"))
    finish = read_finish(said.finish, usage.completion, sampling.max_tokens, size, clean)
    if finish.reason == BROKEN_OFF:
        raise RetryableError(f"the server interrupted the answer (finish reason {finish.given!r})", attempts=2)
    answer, thoughts = split_reasoning(whole, said.reasoning if isinstance(said.reasoning, str) else None)
    if finish.reason == "stop":
        answer = _without_stop(answer, sampling.stop)
    if not without_leaks(answer, request.messages).text.strip():
        raise _no_answer(said, finish, thoughts, answer, request, clean)
    counted = usage.completion is not None and usage.prompt is not None
    return Completion(
        answer,
        finish.reason,
        usage.prompt,
        usage.completion,
        thoughts,
        "server" if counted else None,
        usage.cached,
        usage.reasoning,
    )


def _no_answer(
    said: Said, finish: Finish, thoughts: str | None, left: str, request: Request, clean: Callable[[str], str]
) -> TeacherError:
    """Returns the error of an empty answer; it is retryable if the same request may have an answer."""
    sampling = request.sampling
    if thoughts and finish.reason == "length":
        return RowError(f"reasoning used all of `max_tokens` ({sampling.max_tokens}); raise it")
    if finish.reason == "content_filter":
        return RowError("the server's content filter removed the whole answer")
    if isinstance(said.refusal, str) and said.refusal.strip():
        return RowError(f"the model refused to answer: {clean(said.refusal)}")
    if said.calls and finish.reason == "length":
        called = _called(said.calls, clean)
        return RowError(f"`max_tokens` ({sampling.max_tokens}) cut the answer in a call of a tool{called}; raise it")
    if said.calls or finish.reason == "tool_calls":
        return RowError(f"the teacher called a tool and wrote no text{_called(said.calls, clean)}")
    same = sampling.temperature == 0 or request.seed is not None
    told: Callable[..., TeacherError] = RowError if same else _once_more
    if thoughts:
        return told(
            f"the server put the whole answer ({len(thoughts):,} characters) into `reasoning` (finish reason "
            f"{finish.given!r}): its reasoning parser found no end of the reasoning. Start the server without a "
            "reasoning parser, or with the one of this model, or turn reasoning off"
        )
    if left.strip():
        return told(f"the answer contains only special tokens ({clean(repr(left.strip()))})")
    if finish.reason == "stop" and said.text is not None and (which := _stopped_at_once(said, sampling.stop)):
        return told(f"the answer is empty: {clean(which)} came first (finish reason {finish.given!r}); change `stop`")
    what = "no content" if said.text is None else "an empty completion"
    return _once_more(f"the teacher answered with {what} (finish reason {finish.given!r})")


def _stopped_at_once(said: Said, stops: Sequence[str]) -> str | None:
    """Finds the stop string at the start of an empty answer: the one that the server names, or any that is as long."""
    if isinstance(said.stopped_by, str) and said.stopped_by in stops:
        return f"the stop string {said.stopped_by!r}"
    made, longest = said.usage.completion, max((len(stop.encode("utf-8", "replace")) for stop in stops), default=0)
    return "one of the `stop` strings" if made is not None and made <= longest else None


def _once_more(words: str) -> TeacherError:
    return RetryableError(words, attempts=2)


def _called(calls: object, clean: Callable[[str], str]) -> str:
    first = calls[0] if isinstance(calls, list) and calls else calls
    function = first.get("function", first) if isinstance(first, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return f" (`{clean(name)}`)" if isinstance(name, str) else ""


def _without_stop(text: str, stops: Sequence[str]) -> str:
    """Removes a trailing stop string, which TGI leaves in the answer and other servers do not."""
    return next((text.removesuffix(stop) for stop in stops if stop and text.endswith(stop)), text)


def split_reasoning(text: str, given: str | None = None) -> tuple[str, str | None]:
    """Splits a text into the answer and the reasoning before it.

    Thoughts are what a server reports as such, or what stands between marks at the start ([`split_marked`]). Some
    servers do both: the copy in the text is no part of the answer.

    Args:
        text (`str`): Text of the model.
        given (`str`, *optional*): The server's `reasoning_content`.

    Returns:
        `tuple[str, str | None]`: The answer, unchanged if there is no reasoning, and the reasoning.

    Example:
        >>> split_reasoning("<think>2 and 2</think>\\n\\n4")
        ('4', '2 and 2')
        >>> split_reasoning("4")
        ('4', None)
    """
    told = (given or "").strip()
    answer, thoughts = split_marked(text, told_apart=bool(told)) or (text, None)
    return answer, told or thoughts


def presented(completion: Completion, mode: str) -> tuple[str, str | None]:
    """Formats the completion and the reasoning for the table, by a teacher's `reasoning` setting.

    Args:
        completion (`Completion`): Answer from a client or the ledger, with its reasoning split off.
        mode (`str`): `separate`, `keep` (in the completion, between `<think>` tags) or `drop`.

    Example:
        >>> presented(Completion("4", "stop", 1, 1, reasoning="2 and 2"), "keep")
        ('<think>\\n2 and 2\\n</think>\\n\\n4', None)
    """
    if mode == "keep" and completion.reasoning:
        return f"{OPEN}\n{completion.reasoning}\n{CLOSE}\n\n{completion.text}", None
    return completion.text, completion.reasoning if mode == "separate" else None


def cleaned(completion: Completion, request: Request, teacher: Teacher) -> Stripped:
    """Removes leaked tokens and invented turns from an answer, by a teacher's `leaks` setting."""
    return without_leaks(completion.text, request.messages, teacher.leaks)
