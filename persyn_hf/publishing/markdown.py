"""Text from models, prompts and people, made safe inside a Markdown card."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from pathlib import Path
from typing import Any

from markupsafe import Markup

HUB = "https://huggingface.co"

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#!|~$]|^[-+])")
_RIGHT_TO_LEFT = frozenset(("R", "AL", "AN"))
_NOTHING = "<!-- -->"  # an empty comment: it is not seen, and no address reaches over it
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"


def one_line(value: Any, limit: int = 200) -> str:
    """Text on one line without control characters, cut at `limit` characters.

    Example:
        >>> one_line("a\\x00b\\n c", limit=4)
        'ab c'
    """
    text = " ".join(str(value).split())
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


#: What some readers of Markdown make a link of, before and after they have decoded entities.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)


def escape(value: Any, limit: int = 200) -> Markup:
    """Makes any text plain in a card: HTML, Markdown, addresses and mail addresses lose their meaning.

    Control and bidirectional characters are dropped, white space is folded to single blanks (so that no line can
    begin with `---`), text over `limit` characters is cut, and right-to-left text cannot turn its neighbours round.
    Numbers and text that is already `Markup` pass as they are.

    Example:
        >>> str(escape("</details> | *x*"))
        '&lt;/details&gt; \\\\| \\\\*x\\\\*'
    """
    if isinstance(value, Markup):
        return value
    if isinstance(value, int | float):
        return Markup(str(value))
    text = one_line(value, limit)
    right_to_left = any(unicodedata.bidirectional(character) in _RIGHT_TO_LEFT for character in text)
    text = _LINKED.sub(_NOTHING, _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False)))
    return Markup(f"{_ISOLATE}{text}{_END_ISOLATE}" if right_to_left else text)


def repository_link(name: Any, revision: str | None = None, kind: str = "model") -> Markup:
    """A link to a Hub repository, at a revision where one is named; any other name is escaped text.

    Several names are several links.
    """
    if isinstance(name, list | tuple):
        return Markup(", ").join(repository_link(one, revision, kind) for one in name)
    if not is_repo_id(name):
        return escape(name)
    path = f"{HUB}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if revision and re.fullmatch(r"[\w./-]+", revision):
        path = f"{path}/tree/{revision}"
    return Markup(f"[{escape(name)}]({path})")


def is_repo_id(name: Any) -> bool:
    """Tells the name of a Hub repository from other texts and from local folders."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def short_revision(revision: Any) -> str:
    """A commit by its first twelve digits; a tag or a branch as it is."""
    text = str(revision)
    return text[:12] if re.fullmatch(r"(folder-)?[0-9a-f]{20,}", text) is not None else text


def code(value: Any) -> Markup:
    """A plain value as Python source, for the snippets."""
    return Markup(json.dumps(value))


def fixed(value: float | None, digits: int = 3) -> Markup:
    """A number with so many decimals and a proper minus sign; a dash where there is none or none is known."""
    return (
        Markup("–") if value is None or not math.isfinite(value) else Markup(f"{value:.{digits}f}".replace("-", "−"))
    )
