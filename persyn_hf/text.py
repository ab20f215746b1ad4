"""Text from strangers (servers, models, datasets, configurations), made fit for a shell and for errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

#: Sequences that a terminal obeys: strings that end in BEL or ST (titles, clipboards), CSI, and those of two or three
#: characters; each with its first character as ESC and another or as one of C1.
_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
_HIDDEN = "***"
#: A shorter piece of a key says nothing of it.
_TELLING = 8


def tame(text: object, limit: int | None = None, secret: str | None = None) -> str:
    """Foreign text on one line, without anything that a terminal obeys.

    Escape sequences, control characters (C1 included), directional overrides, zero-width characters and halves of
    surrogate pairs are left out; white space becomes single spaces.

    Args:
        text (`object`): What is to be shown; what is no string is shown as its `str`.
        limit (`int`, *optional*): Characters after which it is cut, with `…` at the end.
        secret (`str`, *optional*): A key, replaced by `***` wherever it stands, a piece of it at the end included.

    Example:
        >>> tame("\\x1b[31mno such\\r\\n  model\\x07 sk-1234", limit=20, secret="sk-1234")
        'no such model ***'
    """
    words = _visible(" ".join(_ESCAPES.sub("", str(text)).split()))
    if secret:
        words = _without(words, secret)
    return words if limit is None or len(words) <= limit else words[:limit] + "…"


def tame_lines(text: object) -> str:
    """The same for text of several lines, whose breaks and indents stay.

    Example:
        >>> tame_lines("two problems:\\n  \\x1b[2Jone\\n  the other")
        'two problems:\\n  one\\n  the other'
    """
    lines = _ESCAPES.sub("", str(text)).replace("\t", " ").split("\n")
    return "\n".join(map(_visible, lines))


def markup(text: object, limit: int | None = None) -> str:
    """The same on one line, for a console of rich that reads markup: brackets are characters and nothing more.

    Example:
        >>> markup("a[/red]\\x1b[0m")
        'a\\\\[/red]'
    """
    from rich.markup import escape

    return escape(tame(text, limit))


def headed_table(title: str, left: Sequence[str], right: Sequence[str], boxed: bool = False) -> Table:
    """A table of rich whose headers are whole at any width of the terminal: names break over lines before they do.

    Args:
        title (`str`): Stands above it.
        left, right (`Sequence[str]`): Headers of the columns, those of texts and then those of numbers.
        boxed (`bool`, defaults to `False`): Draw lines, which take three characters for each column.
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
    """Blots a key out, also where the text was cut in the middle of it."""
    text = text.replace(secret, _HIDDEN)
    for size in range(len(secret) - 1, _TELLING - 1, -1):
        if text.endswith(secret[:size]):
            return text[:-size] + _HIDDEN
    return text
