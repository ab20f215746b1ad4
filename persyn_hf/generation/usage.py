"""Token counts of an answer, read from the usage formats of different servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Largest plausible count; larger ones are errors of the server.
_MOST = 10**8


@dataclass(frozen=True)
class Usage:
    """Token counts of one answer; `None` for unknown counts.

    Args:
        prompt (`int`, *optional*): Tokens of the prompt.
        completion (`int`, *optional*): Generated tokens, reasoning included.
        cached (`int`, *optional*): Prompt tokens read from the server's cache.
        reasoning (`int`, *optional*): Completion tokens used for reasoning.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    reasoning: int | None = None


def read_usage(usage: object) -> Usage:
    """Reads the `usage` of an answer, in OpenAI's or Anthropic's format.

    Some services (xAI, Gemini) do not include reasoning in `completion_tokens`, but charge for it. The completion is
    therefore the larger of `completion_tokens` and `total_tokens` minus the prompt.

    Args:
        usage (`object`): The field `usage` of the answer; without a mapping, all counts are unknown.

    Example:
        >>> read_usage({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015})
        Usage(prompt=10, completion=1005, cached=None, reasoning=None)
    """
    if not isinstance(usage, Mapping):
        return Usage()
    prompt = _first(usage, "prompt_tokens", "input_tokens") or None
    made = _first(usage, "completion_tokens", "output_tokens") or None  # an answer has at least one token
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


def count(value: object) -> int | None:
    """Parses a plausible token count: a non-negative integer, also written as `12.0` or `"12"`."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        value = int(value) if len(value) < 20 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None


def _first(usage: Mapping[str, object], *names: str) -> int | None:
    return next((found for name in names if (found := count(usage.get(name))) is not None), None)


def _detail(usage: Mapping[str, object], name: str, *places: str) -> int | None:
    """Reads a partial count from the details, or from the top level."""
    for place in (*places, ""):
        details = usage.get(place) if place else usage
        found = count(details.get(name)) if isinstance(details, Mapping) else None
        if found is not None:
            return found
    return None


def _within(part: int | None, whole: int | None) -> int | None:
    return None if part is None or whole is None else min(part, whole)
