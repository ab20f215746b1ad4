"""Answers that call tools: from a server's message to one text of the ledger, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from persyn_hf.ledger.completion import Completion
from persyn_hf.messages import Message, called_text, without_nulls

#: What the text of such an answer begins with in the ledger, before JSON of its content and calls; no model writes it.
_MARK = "\x1etool_calls\n"
#: What servers say where `max_tokens` cut an answer: half a call is none.
_CUT = frozenset({"length", "max_tokens", "max_length", "model_length"})


def calls_of(message: Mapping[str, Any], reason: object) -> list[Message] | None:
    """The tool calls of a server's message; `None` where it has none that are whole.

    Args:
        message (`Mapping`): As the server gave it.
        reason (`object`): Its finish reason.
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
    """The answer with its calls shown as text, and the calls as JSON; other answers as they are.

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
