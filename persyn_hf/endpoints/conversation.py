"""Request bodies of the chat protocol, and the assembly of streamed answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from persyn_hf.config import Sampling
from persyn_hf.errors import RetryableError

#: Data of the last event of a stream.
_DONE = "[DONE]"
#: Keys of a delta whose values are pieces of one text.
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
#: Types of the parts of an answer's content: what was written, and what was thought.
_WRITTEN, _THINKING = ("text", "output_text"), ("thinking", "reasoning")


def chat_body(
    model: str | None,
    messages: Sequence[Mapping[str, object]],
    sampling: Sampling,
    seed: int | None,
    more: Mapping[str, object],
    *,
    stream: bool = False,
    stream_usage: bool = True,
) -> dict[str, object]:
    """Builds the body of a chat request. Settings that are `None` are omitted and left to the server.

    Args:
        model (`str`, *optional*): Name of the model at the server.
        messages (`Sequence[Mapping]`): Conversation.
        sampling (`Sampling`): Sampling parameters, and their names at the service.
        seed (`int`, *optional*): Seed of the request.
        more (`Mapping[str, object]`): Additional keys of the body.
        stream (`bool`, defaults to `False`): Whether to request a stream of events.
        stream_usage (`bool`, defaults to `True`): Whether to request token counts in the stream.
    """
    optional = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        sampling.seed_field: seed,
        "stop": list(sampling.stop) or None,
        "stream_options": {"include_usage": True} if stream and stream_usage else None,
    }
    return {
        # First, so that a router in front of the server finds it without reading the messages.
        "model": model,
        "messages": messages,
        sampling.max_tokens_field: sampling.max_tokens,
        "stream": stream,
        **{key: value for key, value in optional.items() if value is not None},
        **more,
    }


def is_stream(content: bytes) -> bool:
    """Returns whether a body is a stream of events and not JSON, independent of its content type."""
    start = content[:512].removeprefix(b"\xef\xbb\xbf").lstrip()
    return start.startswith((b"data:", b":", b"event:", b"id:", b"retry:"))


def assembled(content: bytes) -> dict[str, Any]:
    """Assembles the events of a complete stream into one answer.

    Events end at an empty line; lines end with LF, CRLF or CR; a line that starts with `:` is a comment. The body is
    decoded as a whole, so no character is cut.

    Args:
        content (`bytes`): Body of the type `text/event-stream`.

    Returns:
        `dict`: Answer as the same request would give it without `stream`, or the event that is an error.

    Raises:
        RetryableError: If the stream is incomplete: it has neither a finish reason nor an end mark, or an event in it
            is not JSON.
    """
    answer: dict[str, Any] = {"choices": []}
    message: dict[str, Any] = {"role": "assistant", "content": None}
    reason: object = None
    started = ended = False
    for data in _events(content):
        if data == _DONE:
            ended = True
            break
        event = _parsed(data)
        if event.get("error") or "error_type" in event:  # some servers send `"error": null` with every event
            return event
        answer |= {key: event[key] for key in ("id", "model", "usage") if event.get(key) is not None}
        choice = first_choice(event.get("choices"))
        if choice is None:
            continue
        if choice.get("error"):
            return {"error": choice["error"]}
        started = True
        if choice.get("finish_reason") is not None:
            reason = choice["finish_reason"]
        # Some services send the whole message in the last event.
        delta = choice.get("delta")
        _add(message, delta if isinstance(delta, dict) else choice.get("message"))
    if not (ended or reason is not None):
        raise RetryableError("the stream broke off before its end", attempts=3)
    if started:
        answer["choices"] = [{"index": 0, "finish_reason": reason, "message": message}]
    return answer


def _events(content: bytes) -> Iterator[str]:
    """Yields the `data` of every event."""
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    lines: list[str] = []
    for line in [*text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if not line:
            if lines:
                yield "\n".join(lines)
            lines = []
        elif line.startswith("data:"):
            data = line.removeprefix("data:").removeprefix(" ")
            # Some servers end events with a single line break; each of their lines is a complete event.
            if lines and (data.startswith("{") or data.strip() == _DONE):
                yield "\n".join(lines)
                lines = []
            lines.append(data if data.strip() != _DONE else _DONE)


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        raise RetryableError("the stream broke off in the middle of an event", attempts=3) from None
    return event if isinstance(event, dict) else {}


def first_choice(choices: object, any_index: bool = False) -> dict[str, Any] | None:
    """The choice with the index 0, wherever it stands; several are not asked for.

    Args:
        choices (`object`): As they stand in an answer or an event.
        any_index (`bool`, defaults to `False`): Where none has it, take the first.
    """
    found = [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []
    first = next((one for one in found if one.get("index") in (None, 0)), None)
    return first if first is not None or not any_index else next(iter(found), None)


def _add(message: dict[str, Any], delta: object) -> None:
    """Adds a piece to the message."""
    if not isinstance(delta, dict):
        return
    for key, value in delta.items():
        if key in _TEXTS:
            text, thoughts = content_texts(value)
            for name, piece in ((key, text), ("reasoning_content", thoughts)):
                if piece is not None:
                    message[name] = (message.get(name) or "") + piece
        elif key == "tool_calls" and isinstance(value, list):
            for place, call in enumerate(value):
                _add_call(message.setdefault("tool_calls", []), call, place)
        elif value is not None:
            message[key] = value


def content_texts(content: object) -> tuple[str | None, str | None]:
    """The text and the thoughts of a message's content, which some servers give in parts.

    Args:
        content (`object`): A string, or a list of strings and parts: `text` and `output_text`, and thoughts as
            Mistral's `thinking` or `reasoning`. Parts of other types are left out.

    Returns:
        `tuple[str | None, str | None]`: `None` where there is none of it.

    Example:
        >>> content_texts([{"type": "thinking", "thinking": [{"type": "text", "text": "2 and 2"}]}, "4"])
        ('4', '2 and 2')
    """
    if isinstance(content, str):
        return content, None
    if not isinstance(content, list):
        return None, None
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind in _THINKING:
            thoughts.append(_of_part(next((part[key] for key in (*_THINKING, "text") if part.get(key)), "")))
        elif kind in _WRITTEN:
            texts.append(_of_part(part))
    return "".join(texts), "".join(thoughts) or None


def _of_part(part: object) -> str:
    """The text of a part, or of the parts in it."""
    if isinstance(part, dict):
        part = part.get("text")
    elif isinstance(part, list):
        return "".join(map(_of_part, part))
    return part if isinstance(part, str) else ""


def _add_call(calls: list[dict[str, Any]], piece: object, place: int) -> None:
    """Adds a piece of a tool call: its name arrives once, its arguments in parts that share the call's index."""
    if not isinstance(piece, dict):
        return
    index = piece.get("index", place)
    known = next((call for call in calls if call["index"] == index), None)
    if known is None:
        known = {"index": index, "type": "function", "function": {"name": "", "arguments": ""}}
        calls.append(known)
    function = piece.get("function")
    for key in ("id", "type"):
        if piece.get(key):
            known[key] = piece[key]
    if isinstance(function, dict):
        for key in ("name", "arguments"):
            if isinstance(function.get(key), str):
                known["function"][key] += function[key]
