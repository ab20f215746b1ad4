"""Sanitising of untrusted text (from servers, models, datasets, configurations) for terminals and errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

#: Escape sequences of terminals: strings that end in BEL or ST (titles, clipboards), CSI, and those of two or three
#: characters; each begins with ESC and another character, or with a C1 character.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
_HIDDEN = "***"
#: Shortest part of a key, in characters, that must be hidden.
_TELLING = 8


def tame(text: object, limit: int | None = None, secret: str | None = None) -> str:
    """Makes untrusted text safe to show on one line of a terminal.

    Escape sequences, control characters (C1 included), directional overrides, zero-width characters and halves of
    surrogate pairs are removed; white space becomes single spaces.

    Args:
        text (`object`): Text to show; another object is shown as its `str`.
        limit (`int`, *optional*): Longest result in characters; longer text is cut and ends with `…`.
        secret (`str`, *optional*): Key to replace by `***`, also if the text ends in the middle of it.

    Example:
        >>> tame("\\x1b[31mno such\\r\\n  model\\x07 sk-1234", limit=20, secret="sk-1234")
        'no such model ***'
    """
    words = _visible(" ".join(_ESCAPES.sub("", str(text)).split()))
    if secret:
        words = _without(words, secret)
    return words if limit is None or len(words) <= limit else words[:limit] + "…"


def tame_lines(text: object) -> str:
    """Makes untrusted text of several lines safe to show; line breaks and indents stay.

    Example:
        >>> tame_lines("two problems:\\n  \\x1b[2Jone\\n  the other")
        'two problems:\\n  one\\n  the other'
    """
    lines = _ESCAPES.sub("", str(text)).replace("\t", " ").split("\n")
    return "\n".join(map(_visible, lines))


def markup(text: object, limit: int | None = None) -> str:
    """Makes untrusted text safe to show on one line of a rich console, with brackets of markup escaped.

    Example:
        >>> markup("a[/red]\\x1b[0m")
        'a\\\\[/red]'
    """
    from rich.markup import escape

    return escape(tame(text, limit))


def headed_table(title: str, left: Sequence[str], right: Sequence[str], boxed: bool = False) -> Table:
    """Makes a rich table whose headers are never cut: in a narrow terminal, cells wrap first.

    Args:
        title (`str`): Title above the table.
        left, right (`Sequence[str]`): Headers of the text columns and of the number columns.
        boxed (`bool`, defaults to `False`): Draw lines, which take three characters per column.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    if not boxed:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for names, justify in ((left, "left"), (right, "right")):
        for name in names:
            least = max(map(len, name.split()), default=1)
            table.add_column(name, justify=justify, min_width=least, overflow="fold")  # type: ignore[arg-type]
    return table


def _visible(text: str) -> str:
    return text if text.isprintable() else "".join(character for character in text if character.isprintable())


def _without(text: str, secret: str) -> str:
    """Hides a key, also if the text ends in the middle of it."""
    text = text.replace(secret, _HIDDEN)
    for size in range(len(secret) - 1, _TELLING - 1, -1):
        if text.endswith(secret[:size]):
            return text[:-size] + _HIDDEN
    return text
