"""Usage: the tokens that a server counts, read with the oddities that servers have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: A larger count is an error of the server's.
_MOST = 10**8


@dataclass(frozen=True)
class Usage:
    """The tokens of one answer; `None` where nobody counted them.

    Args:
        prompt (`int`, *optional*): Of the prompt.
        completion (`int`, *optional*): Of all that was generated, reasoning included.
        cached (`int`, *optional*): Those of the prompt that came from the server's cache.
        reasoning (`int`, *optional*): Those of the completion that went into reasoning.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    reasoning: int | None = None


def read_usage(usage: object) -> Usage:
    """Reads the `usage` of an answer, by OpenAI's names or Anthropic's.

    Some services (xAI, Gemini's) count reasoning beside `completion_tokens` and charge for it. So the completion is
    the larger of `completion_tokens` and what `total_tokens` leaves beside the prompt.

    Args:
        usage (`object`): What stands in the answer; anything that is no mapping counts nothing.

    Example:
        >>> read_usage({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015})
        Usage(prompt=10, completion=1005, cached=None, reasoning=None)
    """
    if not isinstance(usage, Mapping):
        return Usage()
    prompt = _first(usage, "prompt_tokens", "input_tokens") or None
    made = _first(usage, "completion_tokens", "output_tokens") or None  # nobody makes an answer of no tokens
    total = count(usage.get("total_tokens"))
    reasoning = _detail(usage, "reasoning_tokens", "completion_tokens_details", "output_tokens_details")
    cached = _detail(usage, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
    cached = count(usage.get("prompt_cache_hit_tokens")) if cached is None else cached  # DeepSeek's name
    if total is not None and prompt is not None:
        made = max(made or 0, total - prompt) or None
    elif total is not None and made is not None and total > made:
        prompt = total - made
    if reasoning is not None and (made is None or reasoning > made):
        made = (made or 0) + reasoning
    return Usage(prompt, made, _within(cached, prompt), _within(reasoning, made))


def count(value: Any) -> int | None:
    """A token count that can be believed and stored: a whole number, also as `12.0` or `"12"`, and not negative."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None


def _first(usage: Mapping[str, Any], *names: str) -> int | None:
    return next((found for name in names if (found := count(usage.get(name))) is not None), None)


def _detail(usage: Mapping[str, Any], name: str, *places: str) -> int | None:
    """A part of a count; it stands under the details, or beside the counts."""
    for place in (*places, ""):
        details = usage.get(place) if place else usage
        found = count(details.get(name)) if isinstance(details, Mapping) else None
        if found is not None:
            return found
    return None


def _within(part: int | None, whole: int | None) -> int | None:
    return None if part is None or whole is None else min(part, whole)
