"""Tool calls: conversion of a server's message to one text of the ledger, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from persyn_hf.ledger.completion import Completion
from persyn_hf.messages import Message, called_text, without_nulls

#: Prefix of an answer with tool calls in the ledger, before the JSON of its content and calls; no model writes it.
_MARK = "\x1etool_calls\n"
#: Finish reasons of truncated answers, whose tool calls are incomplete.
_CUT = frozenset({"length", "max_tokens", "max_length", "model_length"})


def calls_of(message: Mapping[str, object], reason: object) -> list[Message] | None:
    """Reads the tool calls of a server's message; returns `None` if there are none or one is incomplete.

    Args:
        message (`Mapping`): Message of the server.
        reason (`object`): Finish reason of the answer.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or str(reason).lower() in _CUT:
        return None
    # `index` is of the pieces of a stream.
    given = [
        {key: part for key, part in call.items() if key != "index"} for call in calls if isinstance(call, Mapping)
    ]
    named = [without_nulls(call) for call in given]
    whole = [call for call in named if isinstance(call.get("function"), dict) and call["function"].get("name")]
    return whole if whole and len(whole) == len(calls) else None


def enveloped(content: object, calls: list[Message]) -> str:
    """Packs the content and the calls of an answer into one text."""
    words = content if isinstance(content, str) and content.strip() else None
    return _MARK + json.dumps({"content": words, "tool_calls": calls}, ensure_ascii=False)


def opened(completion: Completion) -> tuple[Completion, str | None]:
    """Unpacks an answer with tool calls into its text, which shows the calls, and the calls as JSON.

    Other answers are returned unchanged, with `None`.

    Example:
        >>> calls = [{"type": "function", "function": {"name": "now", "arguments": "{}"}}]
        >>> answer, cell = opened(Completion(enveloped(None, calls), "stop", 3, 9))
        >>> answer.text
        '<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>'
    """
    if not completion.text.startswith(_MARK):
        return completion, None
    packed = json.loads(completion.text.removeprefix(_MARK))
    text = called_text(packed["content"], packed["tool_calls"])
    return replace(completion, text=text), json.dumps(packed["tool_calls"], ensure_ascii=False)
