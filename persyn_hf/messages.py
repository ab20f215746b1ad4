"""Chat messages and tools in one canonical form, which is sent, rendered and hashed, without Arrow's extra nulls."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from persyn_hf.errors import DataError

#: Maximum size of the text that a chat template adds around one message, in bytes.
_TEMPLATE_BYTES = 512

Message = dict[str, Any]
Prompt = str | Sequence[Mapping[str, Any]]


def canonical_messages(prompt: Prompt) -> list[Message]:
    """Turns a prompt, a string or messages, into the chat messages that are sent and rendered.

    Arrow gives every message of a column the union of all keys, at every depth, and fills missing ones with nulls.
    Nulls are dropped, so that a prompt is the same before and after conversion to Arrow. One null has a meaning and is
    kept: the `content` of an assistant's message that calls tools.

    Args:
        prompt (`str` or list of chat messages): A string becomes one user message. The last message must not be an
            answer.

    Returns:
        `list[dict]`: Messages with `role` and `content`.

    Raises:
        DataError: If the prompt is empty, is neither a string nor a list of messages, a message has no role or
            content, or the last message is an answer.

    Example:
        >>> canonical_messages("Hi")
        [{'role': 'user', 'content': 'Hi'}]
        >>> canonical_messages([{"role": "user", "content": "Hi", "name": None}])
        [{'role': 'user', 'content': 'Hi'}]
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError("A prompt is empty; every prompt needs at least one character that is not white space.")
        return [{"role": "user", "content": prompt}]
    messages = plain_messages(prompt)
    if not any(has_content(message) for message in messages):
        raise DataError("A prompt is empty: none of its messages has content.")
    if messages[-1]["role"] == ASSISTANT:
        raise DataError(
            f"A prompt ends with an assistant's turn, {said(messages[-1])[:60]!r}, which is an answer. Drop the last "
            "message; for a file or dataset, set `prompts.last_assistant`."
        )
    if all(message["role"] in _INSTRUCTING for message in messages):
        raise DataError("A prompt has no turn of a user: it has only system messages. Add a user message.")
    return messages


#: Role of an answer, and roles of instructions, which are not answered.
ASSISTANT = "assistant"
_INSTRUCTING = ("system", "developer")
#: Keys that an assistant's message may have instead of text.
_SAYING = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content", "reasoning")


def plain_messages(conversation: object) -> list[Message]:
    """Checks the messages of a conversation, which may end with an answer, and drops Arrow's nulls.

    Raises:
        DataError: If it is not a list of messages, or a message has no role or no content.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str | bytes):
        kind = "null" if conversation is None else type(conversation).__name__
        raise DataError(f"A prompt must be a string or a list of chat messages, got {kind}.")
    return [_plain_message(message) for message in conversation]


def _plain_message(message: object) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"A chat message must be a mapping with `role` and `content`, got {message!r:.80}.")
    if not isinstance(message.get("role"), str):
        raise DataError(
            f"A chat message must have `role` and `content`, got the keys {sorted(without_nulls(dict(message)))}."
        )
    kept: Message = without_nulls(dict(message), emptied=("content",))
    if kept.get("tool_calls") == []:
        del kept["tool_calls"]
    if kept.setdefault("content", None) is None and not (
        kept["role"] == ASSISTANT and any(kept.get(key) is not None for key in _SAYING)
    ):
        found = sorted(key for key, value in kept.items() if value is not None)
        raise DataError(f"A chat message must have `role` and `content`, got the keys {found}.")
    _require_content(kept["content"])
    return kept


def _require_content(content: object) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise DataError(
            f"The `content` of a chat message must be a string or a list of parts, got {type(content).__name__} "
            f"({content!r:.40})."
        )
    for part in content:
        if not isinstance(part, Mapping):
            raise DataError(f"A part of a message's `content` must be a mapping with `type`, got {part!r:.60}.")


def without_nulls(value: Any, emptied: Collection[str] = ()) -> Any:
    """Drops keys with null values at every depth; nulls in lists stay.

    Args:
        value (`Any`): JSON value.
        emptied (`Collection[str]`, defaults to none): Keys of the outermost mapping whose nulls stay.

    Example:
        >>> without_nulls({"city": "Oslo", "unit": None, "days": [1, None]})
        {'city': 'Oslo', 'days': [1, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None or key in emptied}
    if isinstance(value, list | tuple):
        return [without_nulls(one) for one in value]
    return value


def has_content(message: Message) -> bool:
    """Tells whether a message has more than white space."""
    content = message.get("content")
    return bool(content.strip()) if isinstance(content, str) else bool(content) or bool(message.get("tool_calls"))


def canonical_tools(tools: object) -> list[Message] | None:
    """Turns a cell of the column `tools` into function definitions for chat templates and endpoints.

    Args:
        tools (`str`, list or `None`): Definitions, or JSON of them. A function without `type` gets one.

    Returns:
        `list[dict]`, *optional*: The definitions; `None` if there are no tools.

    Raises:
        DataError: If the cell is anything else.

    Example:
        >>> canonical_tools('[{"name": "now", "parameters": null}]')
        [{'type': 'function', 'function': {'name': 'now'}}]
    """
    if tools is None or tools == "" or tools == []:
        return None
    read = _from_json(tools) if isinstance(tools, str) else tools
    read = [read] if isinstance(read, Mapping) else read
    if read is None or read == []:
        return None
    if not isinstance(read, list | tuple):
        raise DataError(f"`tools` must be a list of function definitions, or JSON of one, got {tools!r:.80}.")
    return [_canonical_tool(_from_json(one) if isinstance(one, str) else one) for one in read]


def _canonical_tool(tool: object) -> Message:
    if not isinstance(tool, Mapping):
        raise DataError(f"A tool must be a mapping that defines a function, got {tool!r:.80}.")
    kept: Message = without_nulls(tool)
    return kept if "type" in kept or "name" not in kept else {"type": "function", "function": kept}


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"`tools` must be a list of function definitions, or JSON of one: {error}.") from error


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """Writes tool calls as text for judges, verifiers and people: a `<tool_call>` with JSON for each.

    Example:
        >>> calls_text([{"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}])
        '<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    """
    return "\n".join(f"<tool_call>\n{json.dumps(_call(one), ensure_ascii=False)}\n</tool_call>" for one in calls)


def read_calls(value: Any) -> list[Message] | None:
    """Reads a cell of the column `tool_calls`; `None` if the answer calls no tools."""
    calls = json.loads(value) if isinstance(value, str) else value
    return [without_nulls(call) for call in calls] if calls else None


def called_text(content: str | None, calls: Sequence[Mapping[str, Any]]) -> str:
    """Writes an answer that calls tools as text: its own text, if any, and the calls."""
    return said({"content": content, "tool_calls": calls})


def answer_message(completion: str, calls: Any = None) -> Message:
    """Turns an answer into a message of the assistant.

    Args:
        completion (`str`): Text of the answer; for an answer that calls tools, the text from [`called_text`].
        calls (`Any`, *optional*): Cell of the column `tool_calls`.

    Example:
        >>> answer_message("4")
        {'role': 'assistant', 'content': '4'}
    """
    read = read_calls(calls)
    if read is None:
        return {"role": ASSISTANT, "content": completion}
    words = completion.removesuffix(calls_text(read)).removesuffix("\n")
    return {"role": ASSISTANT, "content": words or None, "tool_calls": read}


def _call(call: Mapping[str, Any]) -> Message:
    function = call.get("function")
    function = function if isinstance(function, Mapping) else call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        with suppress(ValueError):
            arguments = json.loads(arguments)
    return {"name": function.get("name"), "arguments": arguments}


def prompt_id(prompt: Prompt, tools: object = None) -> str:
    """The identity of a prompt: 16 hex digits of the SHA-256 of its canonical messages, and of its tools if any.

    A string and the equivalent single user message have the same identity.

    Raises:
        DataError: If it is not a valid prompt, or holds values that are not JSON.

    Example:
        >>> prompt_id("Hi") == prompt_id([{"role": "user", "content": "Hi"}])
        True
    """
    messages, offered = canonical_messages(prompt), canonical_tools(tools)
    try:
        text = _canonical(messages if offered is None else {"messages": messages, "tools": offered})
    except (TypeError, ValueError) as error:
        raise DataError(f"A prompt must hold JSON values only: {error}.") from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def token_bound(messages: Sequence[Message], tools: object = None) -> int:
    """Upper bound of the tokens of a rendered prompt: a text has no more tokens than bytes.

    Args:
        messages (`Sequence[Message]`): Messages of the prompt.
        tools (`object`, *optional*): Tools of the prompt.
    """
    parts = [*messages, tools] if tools else messages
    return sum(len(str(part).encode("utf-8", "replace")) + _TEMPLATE_BYTES for part in parts)


def prompt_text(prompt: Prompt) -> str:
    """The text of a prompt's messages, as routers and verifiers read it.

    A single user message gives its content; a longer conversation gives `role: content` paragraphs, which keep system
    prompts and earlier turns recognisable. Tool calls are written as JSON. Parts of a message that are not text are
    left out.

    Example:
        >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
        'system: Be brief.\\n\\nuser: Hi'
    """
    messages = canonical_messages(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        return said(messages[0])
    return "\n\n".join(f"{message['role']}: {said(message)}" for message in messages)


def said(message: Mapping[str, Any]) -> str:
    """The text of a message: its content or the text of its parts, and its tool calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        content = "".join(text for text in texts if isinstance(text, str))
    text = content if isinstance(content, str) else ""
    shown = calls_text(calls) if calls else ""
    return f"{text}\n{shown}" if text and shown else text or shown
