"""Conversion of conversations for a chat template: joins parts of text, and writes tool calls as it expects them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from jinja2 import TemplateError

from persyn_hf.errors import DataError
from persyn_hf.messages import ASSISTANT, Message, canonical_tools, said

#: Name of a function that no template contains by chance.
_PROBE = "persyn_probe_of_calls"


def apply_template(tokenizer: Any, messages: Sequence[Message], tools: object = None, **options: Any) -> str:
    """Renders a conversation with the tokenizer's chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with a chat template.
        messages (`Sequence[Message]`): Canonical messages, with or without an answer at the end.
        tools (`object`, *optional*): Cell of the column `tools`.
        options: Further arguments of `apply_chat_template`.

    Raises:
        DataError: If a message holds a part that is not text.
        TemplateError: If the template refuses the conversation.
    """
    offered = canonical_tools(tools)
    given = options if offered is None else {**options, "tools": offered}
    read = readable_messages(tokenizer, messages)
    filled = [message if message.get("content") is not None else {**message, "content": ""} for message in read]
    for attempt in (read, filled):  # a template that joins strings fails on a null
        try:
            return str(tokenizer.apply_chat_template(attempt, tokenize=False, **given))
        except (TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            refused = error
            if filled == read:
                break
    raise refused if isinstance(refused, TemplateError) else TemplateError(str(refused)) from refused


def readable_messages(tokenizer: Any, messages: Sequence[Message]) -> list[Message]:
    """Turns messages into the form that a text chat template takes.

    Parts of text become one string. Arguments of tool calls become mappings, as templates expect. If the template does
    not show tool calls, they become text, so that nothing of the conversation is lost.

    Raises:
        DataError: If a message holds a part that is not text.
    """
    called = any(message.get("tool_calls") for message in messages)
    shown = called and bool(getattr(tokenizer, "chat_template", None)) and _shows_calls(tokenizer)
    return [_readable(message, shown) for message in messages]


def _readable(message: Message, shown: bool) -> Message:
    made = {**message}
    content = made.get("content")
    if isinstance(content, list):
        strange = sorted({str(part.get("type")) for part in content if not isinstance(part.get("text"), str)})
        if strange:
            raise DataError(f"it reads text only, and a message of the {made['role']} holds a part `{strange[0]}`")
        made["content"] = "".join(part["text"] for part in content)
    calls = made.get("tool_calls")
    if calls and shown:
        made["tool_calls"] = [_with_mapping(call) for call in calls]
    elif calls:
        made["content"] = said(made)
        del made["tool_calls"]
    return made


def _with_mapping(call: Mapping[str, Any]) -> Message:
    """Parses the arguments of a tool call if they are a JSON object."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return {**call}
    arguments: Any = function["arguments"]
    with suppress(ValueError, RecursionError):
        read = json.loads(arguments)
        arguments = read if isinstance(read, dict) else arguments
    return {**call, "function": {**function, "arguments": arguments}}


def _shows_calls(tokenizer: Any) -> bool:
    """Tells whether the chat template shows tool calls of the assistant."""
    call = {"id": "call00001", "type": "function", "function": {"name": _PROBE, "arguments": {}}}
    for content in (None, ""):
        asked = {"role": "user", "content": "Hi"}
        answer = {"role": ASSISTANT, "content": content, "tool_calls": [call]}
        with suppress(TemplateError, TypeError, KeyError, ValueError, AttributeError):
            return _PROBE in str(tokenizer.apply_chat_template([asked, answer], tokenize=False))
    return False
