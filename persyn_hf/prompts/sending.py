"""Preparation of prompts for requests: one system message, and the response format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from persyn_hf.columns import Message
from persyn_hf.errors import DataError

#: Roles of the instructions that precede a conversation. `developer` is OpenAI's name for `system`.
_INSTRUCTING = ("system", "developer")


def joined_system(messages: Sequence[Message]) -> list[Message]:
    """Joins the system messages at the start of a conversation into one.

    A teacher's system prompt precedes the prompt's own, but many chat templates accept only one system message.

    Args:
        messages (`Sequence[Message]`): Messages of the conversation.

    Returns:
        `list[dict]`: Conversation whose first system messages are joined into one, separated by blank lines.

    Example:
        >>> joined_system([{"role": "system", "content": "Be brief."}, {"role": "system", "content": "Rhyme."}])
        [{'role': 'system', 'content': 'Be brief.\\n\\nRhyme.'}]
    """
    found = list(messages)
    while len(found) > 1 and all(message["role"] in _INSTRUCTING for message in found[:2]):
        first, second = found[:2]
        content = _joined(first.get("content"), second.get("content"))
        found[:2] = [{**first, **second, "content": content}]
    return found


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}" if first and second else first or second
    return [*_parts(first), *_parts(second)]


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content or [])


def canonical_format(value: object) -> dict[str, Any] | None:
    """Reads a cell of the column `response_format`, which is the `response_format` of a chat request.

    Args:
        value (`str`, `Mapping` or `None`): Object, or its JSON. Nulls in an object are dropped, since Arrow adds the
            keys of all objects to each; nulls in JSON are kept.

    Returns:
        `dict`, *optional*: Response format; `None` if the cell is null or empty.

    Raises:
        DataError: If the value is not a JSON object with `type`.

    Example:
        >>> canonical_format('{"type": "json_object"}')
        {'type': 'json_object'}
        >>> canonical_format({"type": "json_schema", "json_schema": {"schema": {"type": "object", "items": None}}})
        {'type': 'json_schema', 'json_schema': {'schema': {'type': 'object'}}}
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"`response_format` must be JSON: {error}.") from None
    else:
        read = _without_nulls(value)
    if read is None or read == {}:
        return None
    if not isinstance(read, dict) or not isinstance(read.get("type"), str):
        raise DataError(
            f"`response_format` must be an object with `type`, such as json_object or json_schema, got {read!r:.80}."
        )
    return read


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list | tuple) else value
