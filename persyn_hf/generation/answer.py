"""From what a server says to a `Completion`: finish reasons by one name, no empty answers, honest counts."""

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
    """What a server says of one answer, as it gave it; `None` where it gave nothing.

    Args:
        text (`object`): What the model wrote.
        finish (`object`): The finish reason.
        reasoning (`object`): What the model thought before, where the server told it apart.
        refusal (`object`): What the model said instead of an answer (OpenAI's `refusal`).
        calls (`object`): Tools that it called.
        stopped_by (`object`): The stop string that ended it (vLLM's `stop_reason`).
        usage (`Usage`): The tokens.
    """

    text: object
    finish: object = None
    reasoning: object = None
    refusal: object = None
    calls: object = None
    stopped_by: object = None
    usage: Usage = field(default_factory=Usage)


def read_answer(said: Said, request: Request, clean: Callable[[str], str] = str) -> Completion:
    """Makes a `Completion` of a server's words, or says why they are none.

    Args:
        said (`Said`): The server's words.
        request (`Request`): What was asked for.
        clean (callable): Makes the server's own words fit for an error.

    Raises:
        RetryableError: If the answer is empty or was broken off.
        RowError: If asking again cannot help: it was filtered or refused, it is a call of a tool, thinking took all
            of `max_tokens`, or the same request can only have the same answer.
    """
    sampling, usage = request.sampling, said.usage
    whole = said.text if isinstance(said.text, str) else ""
    size = len(whole.encode("utf-8", "replace"))
    finish = read_finish(said.finish, usage.completion, sampling.max_tokens, size, clean)
    if finish.reason == BROKEN_OFF:
        raise RetryableError(f"the server broke the answer off (finish reason {finish.given!r})", attempts=2)
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
    """Why there is no answer, and whether the same request can have one."""
    sampling = request.sampling
    if thoughts and finish.reason == "length":
        return RowError(f"all of `max_tokens` ({sampling.max_tokens}) went into reasoning; raise it")
    if finish.reason == "content_filter":
        return RowError("the server's content filter left nothing of the answer")
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
            f"the server put the whole answer ({len(thoughts):,} characters) into `reasoning` and left none of it as "
            f"the answer (finish reason {finish.given!r}): its reasoning parser found no end of the thoughts. Start "
            "the server without a reasoning parser, or with the one of this model, or switch its thinking off"
        )
    if left.strip():
        return told(f"the answer holds nothing but special tokens ({clean(repr(left.strip()))})")
    if finish.reason == "stop" and said.text is not None and (which := _stopped_at_once(said, sampling.stop)):
        return told(f"the answer is empty: {clean(which)} came first (finish reason {finish.given!r}); change `stop`")
    what = "no content" if said.text is None else "an empty completion"
    return _once_more(f"the teacher answered with {what} (finish reason {finish.given!r})")


def _stopped_at_once(said: Said, stops: Sequence[str]) -> str | None:
    """The stop string that an empty answer began with: one that the server names, or one with so many tokens."""
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
    """Cuts a stop string off the end: TGI leaves it there, other servers do not."""
    return next((text.removesuffix(stop) for stop in stops if stop and text.endswith(stop)), text)


def split_reasoning(text: str, given: str | None = None) -> tuple[str, str | None]:
    """Splits an answer from the thoughts before it.

    Thoughts are what a server reports as such, or what stands between marks at the start ([`split_marked`]). Some
    servers do both: the copy in the text is no part of the answer.

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
    told = (given or "").strip()
    answer, thoughts = split_marked(text, told_apart=bool(told)) or (text, None)
    return answer, told or thoughts


def presented(completion: Completion, mode: str) -> tuple[str, str | None]:
    """The completion and the reasoning as a teacher's `reasoning` setting wants them in the table.

    Args:
        completion (`Completion`): From a client or the ledger, split.
        mode (`str`): `separate`, `keep` (back into the completion, between `<think>` tags) or `drop`.

    Example:
        >>> presented(Completion("4", "stop", 1, 1, reasoning="2 and 2"), "keep")
        ('<think>\n2 and 2\n</think>\n\n4', None)
    """
    if mode == "keep" and completion.reasoning:
        return f"{OPEN}\n{completion.reasoning}\n{CLOSE}\n\n{completion.text}", None
    return completion.text, completion.reasoning if mode == "separate" else None


def cleaned(completion: Completion, request: Request, teacher: Teacher) -> Stripped:
    """The answer without leaked tokens and invented turns, as a teacher's `leaks` setting wants it in the table."""
    return without_leaks(completion.text, request.messages, teacher.leaks)
