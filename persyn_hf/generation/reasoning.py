"""Thoughts before an answer, in the marks that models put around them."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
#: Marks that only reasoning models write: Qwen, DeepSeek and most others; Seed; Mistral; Kimi; Gemma.
#: Plain tags such as `<reasoning>` are not among them: prompts ask for these as a part of the answer.
_MARKS = (
    (OPEN, CLOSE),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|channel>thought", "<channel|>"),
)
#: The channels of gpt-oss (Harmony), as they look where a server does not read them.
_CHANNEL = re.compile(
    r"(?:<\|start\|>assistant)?[^<]*<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
    r"(?P<text>.*?)(?:<\|(?:end|return|call)\|>|(?=<\|start\|>assistant)|\Z)",
    re.DOTALL,
)
_HARMONY = re.compile(r"\s*(?:<\|start\|>assistant\s*)?<\|channel\|>")
_FINAL = "final"


def split_marked(text: str, told_apart: bool = False) -> tuple[str, str | None] | None:
    """Splits an answer from the thoughts before it, by their marks.

    A template may have opened `<think>` itself, so that the text has the closing mark only. A mark that is never
    closed leaves no answer.

    Args:
        text (`str`): Output of the model.
        told_apart (`bool`, defaults to `False`): The server gave the thoughts by themselves. Then only thoughts that
            stand whole at the start are a second copy of them; other marks belong to the answer.

    Returns:
        `tuple[str, str | None]`, *optional*: The answer and the thoughts; `None` where there are no marks.

    Example:
        >>> split_marked("[THINK]2 and 2[/THINK]4")
        ('4', '2 and 2')
        >>> split_marked("<|channel|>analysis<|message|>2 and 2<|end|><|start|>assistant<|channel|>final<|message|>4")
        ('4', '2 and 2')
    """
    start = text.lstrip()
    if _HARMONY.match(text):
        return _of_channels(text)
    for opening, closing in _MARKS:
        if start.startswith(opening) and not (told_apart and closing not in start):
            thoughts, _, answer = start.removeprefix(opening).partition(closing)
            return answer.lstrip(), thoughts.strip() or None
    if told_apart:
        return (start.removeprefix(CLOSE).lstrip(), None) if start.startswith(CLOSE) else None
    for opening, closing in _MARKS[:-1]:
        if closing in text and opening not in text:
            thoughts, _, answer = start.partition(closing)
            return answer.lstrip(), thoughts.strip() or None
    return None


def _of_channels(text: str) -> tuple[str, str | None]:
    """The text of the channel `final`, and that of all others."""
    found = [(match["name"], match["text"].strip()) for match in _CHANNEL.finditer(text)]
    answer = "\n\n".join(words for name, words in found if name == _FINAL)
    thoughts = "\n\n".join(words for name, words in found if name != _FINAL and words)
    return answer, thoughts or None
