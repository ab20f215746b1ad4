"""Formats of conversations: messages, ShareGPT, and chats written as strings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_hf.errors import DataError
from persyn_hf.messages import ASSISTANT, Message, plain_messages

#: Roles by the names of speakers.
_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "assistant": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function_response": "tool",
}
#: ShareGPT's speakers of function calls, which are JSON.
_CALLING = ("function_call", "tool_call")
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|$(?![\s\S]))\n?", re.DOTALL)
_SPOKEN = re.compile(r"(?:^|\n\n)(Human|Assistant|System): ?")


@dataclass(frozen=True)
class CellReader:
    """Reader of a column's cells.

    Args:
        kind (`str`): Description of the cells.
        read (`Callable`): Function that returns a string or a list of messages, and raises `DataError` for a cell of
            another kind.
    """

    kind: str
    read: Callable[[Any], Any]


def chat_reader(values: Sequence[object], kind: str) -> CellReader:
    """Chooses the reader of a column's cells.

    Args:
        values (`Sequence`): All cells. Strings are read as written chats only if every string is one.
        kind (`str`): `text`, `messages`, `sharegpt` or `auto`.
    """
    known = [value for value in values if value is not None]
    strings = [value for value in known if isinstance(value, str)]
    if kind == "text":
        return CellReader("text", _text)
    if strings and len(strings) == len(known):
        for name, looks, read in _WRITTEN:
            if all(map(looks, strings)):
                return CellReader(name, _written(read))
        if kind == "auto":
            return CellReader("text", _text)
    if strings and kind == "auto":
        return _of_one_kind(isinstance(known[0], str))
    return CellReader("sharegpt" if known and _is_sharegpt(known[0]) else "messages", conversation)


def _is_sharegpt(value: object) -> bool:
    if isinstance(value, Mapping):
        return "from" in value
    first = value[0] if isinstance(value, Sequence) and value else None
    return isinstance(first, Mapping) and first.get("from") is not None


def _written(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    return lambda value: read(value) if isinstance(value, str) else conversation(value)


def _of_one_kind(text: bool) -> CellReader:
    """Builds a reader that raises an error for cells of another kind than the first row's."""
    first = "a string" if text else "chat messages"

    def read(value: object) -> str | list[Message]:
        if isinstance(value, str | Sequence | Mapping) and isinstance(value, str) != text:
            kind = "a string" if isinstance(value, str) else "chat messages"
            raise DataError(f"All prompts of a table must be of one kind; the first is {first}, but this is {kind}.")
        return _text(value) if text else conversation(value)

    return CellReader("text" if text else "messages", read)


def _text(value: object) -> str:
    if not isinstance(value, str):
        shown = "null" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"A prompt must be a string, got {shown}.")
    return value


def conversation(value: object) -> list[Message]:
    """Reads a conversation with `role` and `content`, or with ShareGPT's `from` and `value`.

    Raises:
        DataError: If the value is not a conversation, or a speaker is unknown.

    Example:
        >>> conversation([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])
        [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    if isinstance(value, Mapping):
        value = _transposed(value)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        shown = "null" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise DataError(f"A prompt must be a string or a list of chat messages, got {shown}.")
    return plain_messages([_named(message) if isinstance(message, Mapping) else message for message in value])


def _named(message: Mapping[str, Any]) -> Message:
    """Renames the keys of a message to `role` and `content`."""
    speaker, text = message.get("from"), message.get("value")
    if message.get("role") is not None or speaker is None:
        named = {key: value for key, value in message.items() if key not in ("from", "value") or value is not None}
        role = _small(named.get("role"))
        if role in _KEPT:
            return named | {"role": role}
        return named | {"role": _ROLES[role]} if role in _ROLES else named
    rest = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
    speaker = _small(speaker)
    if speaker in _CALLING:
        return {"role": ASSISTANT, "content": None, "tool_calls": _calls(text), **rest}
    if speaker not in _ROLES:
        raise DataError(f"`from` must be one of {', '.join(_ROLES)}, got {speaker!r:.40}.")
    return {"role": _ROLES[speaker], "content": text, **rest}


def _small(speaker: Any) -> str:
    """The name of a speaker in small letters; other things in words, which are no name."""
    return speaker.strip().lower() if isinstance(speaker, str) else repr(speaker)


#: Roles of OpenAI's and of chat templates, which stay as they are.
_KEPT = ("user", "assistant", "system", "developer", "tool", "function", "ipython")


def _calls(text: Any) -> list[Message]:
    try:
        found = json.loads(text)
        calls = found if isinstance(found, list) else [found]
        return [
            {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
            for call in calls
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"A `function_call` must be JSON with `name` and `arguments`, got {text!r:.80}.") from error


def _transposed(value: Mapping[str, Any]) -> Any:
    """Converts a mapping of lists, which older `datasets` made from a list of mappings, back to messages."""
    lists = list(value.values())
    if lists and all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
        return [dict(zip(value, one, strict=True)) for one in zip(*lists, strict=True)]
    raise DataError(
        f"A prompt must be a string or a list of chat messages, got a mapping with the keys {sorted(value)}."
    )


def _written_list(text: str) -> object:
    """Parses a list from JSON or from a Python literal, which pandas writes for lists in a CSV file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _from_list(text: str) -> list[Message]:
    return conversation(_written_list(text))


def _from_chatml(text: str) -> list[Message]:
    """Parses the turns of a ChatML text. An empty last turn of the assistant is dropped."""
    return _without_opening([{"role": role, "content": said.strip("\n")} for role, said in _CHATML.findall(text)])


def _from_spoken(text: str) -> list[Message]:
    """Parses turns that begin with `Human:` and `Assistant:`, the format of the HH-RLHF datasets."""
    _, *pieces = _SPOKEN.split(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}")
    turns = zip(pieces[::2], pieces[1::2], strict=True)
    return _without_opening([{"role": _ROLES[who.lower()], "content": said.strip()} for who, said in turns])


def _without_opening(messages: list[Message]) -> list[Message]:
    if messages and messages[-1]["role"] == ASSISTANT and not messages[-1]["content"]:
        messages = messages[:-1]
    return conversation(messages)


def _looks_like_a_list(text: str) -> bool:
    if re.match(r"\s*\[\s*\{\s*[\"']", text) is None:
        return False
    found = _written_list(text)
    return isinstance(found, list) and all(isinstance(one, dict) and ("role" in one or "from" in one) for one in found)


def _looks_like_chatml(text: str) -> bool:
    return text.lstrip().startswith("<|im_start|>")


def _looks_spoken(text: str) -> bool:
    return re.match(r"\s*Human:", text) is not None and "\n\nAssistant:" in text


#: Formats of chats in strings: description, detector and reader.
_WRITTEN: tuple[tuple[str, Callable[[str], bool], Callable[[str], Any]], ...] = (
    ("messages in strings", _looks_like_a_list, _from_list),
    ("ChatML in strings", _looks_like_chatml, _from_chatml),
    ("`Human:` and `Assistant:` in strings", _looks_spoken, _from_spoken),
)
