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
        if "error" in event or "error_type" in event:
            return event
        answer |= {key: event[key] for key in ("id", "model", "usage") if event.get(key) is not None}
        choice = _first(event.get("choices"))
        if choice is None:
            continue
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


def _first(choices: object) -> dict[str, Any] | None:
    """Returns the first choice; requests never ask for more than one."""
    found = [one for one in choices if isinstance(one, dict)] if isinstance(choices, list) else []
    return next((one for one in found if one.get("index") in (None, 0)), None)


def _add(message: dict[str, Any], delta: object) -> None:
    """Adds a piece to the message."""
    if not isinstance(delta, dict):
        return
    for key, value in delta.items():
        if key in _TEXTS:
            text = _text(value)
            if text is not None:
                message[key] = (message.get(key) or "") + text
        elif key == "tool_calls" and isinstance(value, list):
            for place, call in enumerate(value):
                _add_call(message.setdefault("tool_calls", []), call, place)
        elif value is not None:
            message[key] = value


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return None
    texts = [part.get("text") for part in value if isinstance(part, dict) and part.get("type", "text") == "text"]
    return "".join(text for text in texts if isinstance(text, str))


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
