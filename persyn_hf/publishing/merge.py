"""A new card and the one that stands in the repository: what a person wrote stays, what persyn-hf wrote is renewed.

Generated parts stand between `<!-- persyn:begin NAME -->` and `<!-- persyn:end NAME -->`. Only they are rewritten; a
part that is not there any more comes back behind the part before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from persyn_hf.errors import PublishError
from persyn_hf.publishing.metadata import merge_metadata

_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_MARKER = re.compile(r"<!-- persyn:(begin|end) ([^\n]*?) -->")


def split_card(text: str, where: str = "The card") -> tuple[dict[str, Any], str]:
    """Takes a card apart into metadata and body.

    Args:
        text (`str`): The `README.md`.
        where (`str`): Names it in errors.

    Raises:
        PublishError: If the metadata is no YAML mapping.

    Example:
        >>> split_card("---\\nlicense: mit\\n---\\n\\n# Title\\n")
        ({'license': 'mit'}, '\\n# Title\\n')
    """
    match = _FRONT_MATTER.match(text)
    if match is None:
        return {}, text
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 2}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise PublishError(
            f"{where} has metadata that is not valid YAML{line}: {problem}. Mend `README.md` on the Hub and push "
            "again; nothing was sent."
        ) from error
    if data is not None and not isinstance(data, dict):
        raise PublishError(
            f"{where} has metadata that is no mapping but {type(data).__name__}: between the `---` lines of "
            "`README.md` must stand `key: value` lines. Nothing was sent."
        )
    return data or {}, text[match.end() :]


def join_card(metadata: Mapping[str, Any], body: str) -> str:
    """The text of a card."""
    head = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000).strip()
    return f"---\n{head}\n---\n\n{body.strip()}\n"


def require_renewable(old: str, where: str) -> None:
    """Looks at a card before there is a new one.

    Raises:
        PublishError: If [`renew_card`] could not read it.
    """
    _parts(split_card(old, where)[1], where)


def renew_card(
    old: str, metadata: Mapping[str, Any], body: str, where: str, asked: frozenset[str] = frozenset()
) -> str:
    """The card that stands in the repository with the generated parts renewed.

    Args:
        old (`str`): What stands there; may be empty.
        metadata (`Mapping[str, Any]`), body (`str`): Freshly generated.
        where (`str`): Names the card in errors.
        asked (`frozenset[str]`): Metadata that the user asked for; see [`merge_metadata`].

    Raises:
        PublishError: If its metadata is no YAML mapping, or its markers do not match.
    """
    head, text = split_card(old, where)
    return join_card(merge_metadata(head, metadata, asked), merge_body(text, body, where))


def merge_body(old: str, new: str, where: str = "The card") -> str:
    """Renews the generated parts of a body.

    Args:
        old (`str`): What stands in the repository. Without any part, the new parts follow it.
        new (`str`): A freshly generated body.
        where (`str`): Names the card in errors.

    Raises:
        PublishError: If the markers of the old body do not match.
    """
    fresh = _parts(new, "The new card")
    known = _parts(old, where)
    if not known:
        return f"{old.strip()}\n\n{_from_first_part(new, fresh)}" if old.strip() else new
    pieces, position = [], 0
    for name, (start, end) in known.items():
        pieces.append(old[position:start])
        # A part that is not generated any more (a configuration that was taken out) goes.
        pieces.append(_text(new, fresh[name]) if name in fresh else "")
        position = end
        pieces.extend(f"\n\n{_text(new, fresh[missing])}" for missing in _missing_after(name, fresh, known))
    lead = [f"{_text(new, fresh[missing])}\n\n" for missing in _missing_after(None, fresh, known)]
    return "".join([pieces[0], *lead, *pieces[1:], old[position:]])


def _missing_after(name: str | None, fresh: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """The new parts that follow `name` (or stand first) up to the next one that the old body has."""
    names = list(fresh)
    if name is not None and name not in fresh:
        return []
    missing = []
    for candidate in names[names.index(name) + 1 if name is not None else 0 :]:
        if candidate in known:
            break
        missing.append(candidate)
    return missing


def _parts(body: str, where: str) -> dict[str, tuple[int, int]]:
    """Where the generated parts stand, markers included."""
    parts: dict[str, tuple[int, int]] = {}
    opened: tuple[str, int] | None = None
    for match in _MARKER.finditer(body):
        kind, name = match.groups()
        if kind == "begin" and opened is None and name not in parts:
            opened = name, match.start()
        elif kind == "end" and opened is not None and opened[0] == name:
            parts[name] = opened[1], match.end()
            opened = None
        else:
            raise _damaged(where, match.group())
    if opened is not None:
        raise _damaged(where, f"<!-- persyn:begin {opened[0]} -->")
    return parts


def _damaged(where: str, marker: str) -> PublishError:
    return PublishError(
        f"{where}: the marker `{marker}` in `README.md` has lost its partner or stands twice. Restore the pair or "
        "delete both lines, and push again; nothing was sent."
    )


def _text(body: str, span: tuple[int, int]) -> str:
    return body[span[0] : span[1]]


def _from_first_part(body: str, parts: Mapping[str, tuple[int, int]]) -> str:
    return body[min(start for start, _ in parts.values()) :]
