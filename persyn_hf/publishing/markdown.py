"""Escaping of text from models, prompts and users for Markdown cards."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from pathlib import Path

from markupsafe import Markup

HUB = "https://huggingface.co"

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#!|~$]|^[-+])")
_RIGHT_TO_LEFT = frozenset(("R", "AL", "AN"))
_NOTHING = "<!-- -->"  # an empty comment: invisible, and it interrupts a URL
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"


def one_line(value: object, limit: int = 200) -> str:
    """Returns text on one line without control characters, truncated to `limit` characters.

    Example:
        >>> one_line("a\\x00b\\n c", limit=4)
        'ab c'
    """
    text = " ".join(str(value).split())
    text = "".join(character for character in text if character.isprintable())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


#: Places at which some Markdown renderers recognise a link, before or after decoding entities.
_LINKED = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)


def escape(value: object, limit: int = 200) -> Markup:
    """Escapes text for a card, so that HTML, Markdown, URLs and e-mail addresses are shown as plain text.

    Control and bidirectional characters are removed, white space is collapsed to single blanks (so that no line can
    begin with `---`), text is truncated to `limit` characters, and right-to-left text is isolated from its neighbours.
    Numbers and `Markup` are returned unchanged.

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


def repository_link(name: object, revision: str | None = None, kind: str = "model") -> Markup:
    """Returns a link to a Hub repository, at the revision if one is given; any other name becomes escaped text.

    A list of names becomes a list of links.
    """
    if isinstance(name, list | tuple):
        return Markup(", ").join(repository_link(one, revision, kind) for one in name)
    if not is_repo_id(name):
        return escape(name)
    path = f"{HUB}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if revision and re.fullmatch(r"[\w./-]+", revision):
        path = f"{path}/tree/{revision}"
    return Markup(f"[{escape(name)}]({path})")


def is_repo_id(name: object) -> bool:
    """Returns true for the id of a Hub repository, false for other values and for local folders."""
    return isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()


def short_revision(revision: object) -> str:
    """Returns the first twelve digits of a commit; a tag or branch is returned unchanged."""
    text = str(revision)
    return text[:12] if re.fullmatch(r"(folder-)?[0-9a-f]{20,}", text) is not None else text


def code(value: object) -> Markup:
    """Returns a plain value as Python source, for snippets."""
    return Markup(json.dumps(value))


def fixed(value: float | None, digits: int = 3) -> Markup:
    """Formats a number with the given decimals and a typographic minus sign; `None`, NaN and infinity give a dash."""
    return (
        Markup("–") if value is None or not math.isfinite(value) else Markup(f"{value:.{digits}f}".replace("-", "−"))
    )
