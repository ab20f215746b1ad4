"""Reference of the run file, generated from the sections: a JSON Schema and a Markdown page."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from persyn_hf.config.run import RunConfig
from persyn_hf.config.settings import Settings

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME = re.compile(r"[A-Za-z_]\w*")
_INTRODUCTION = """# Reference of the run file

This page lists every key of the YAML file that `persyn-hf run` and the other commands read. `make docs` generates it
from the code (`persyn-hf schema --markdown`). `persyn-hf schema` prints the same as a JSON Schema; editors use it if
the file's first line is `# yaml-language-server: $schema=…`.

On the command line, `--set` sets any key: `--set reward.alpha=0.2`. A list entry is addressed by its name or its
index: `--set teachers.qwen.timeout=60` or `--set teachers.0.timeout=60`. The value is YAML:
`--set 'compare.seeds=[0, 1]'`. Keys without a default are marked **required**.
"""


def field_descriptions(section: type[Settings]) -> dict[str, str]:
    """Returns the descriptions of a section's fields, read from its docstring and those of its base classes.

    Args:
        section (`type[Settings]`): Section whose docstring has an `Args:` block. One entry may name several fields.

    Example:
        >>> from persyn_hf.config import Reward
        >>> field_descriptions(Reward)["alpha"]
        'Weight of learnability, 0 to 1.'
    """
    found: dict[str, str] = {}
    for one in reversed(section.__mro__):
        if issubclass(one, Settings) and one is not Settings:
            found |= _argument_words(one.__doc__ or "")
    return {name: found[name] for name in section.model_fields if name in found}


def _argument_words(docstring: str) -> dict[str, str]:
    words = {}
    for entry in _entries(inspect.cleandoc(docstring)):
        header, _, text = _split(entry, ":")
        while header and text:
            one, _, header = _split(header, ",")
            if name := _NAME.match(one.strip()):
                words[name.group()] = text.strip()
    return words


def _entries(docstring: str) -> Iterator[str]:
    """Yields the entries of the `Args:` block, each joined into one line. Continuation lines are indented deeper."""
    entry: list[str] = []
    for line in docstring.partition("\nArgs:\n")[2].splitlines():
        if line and not line.startswith(" "):
            break
        if entry and line.startswith("    ") and not line.startswith("     "):
            yield " ".join(entry)
            entry = []
        if line.strip():
            entry.append(line.strip())
    if entry:
        yield " ".join(entry)


def _split(text: str, mark: str) -> tuple[str, str, str]:
    """Splits a text at the first mark outside brackets and code."""
    depth, code = 0, False
    for place, character in enumerate(text):
        if character == "`":
            code = not code
        elif not code and character in "([":
            depth += 1
        elif not code and character in ")]":
            depth -= 1
        elif character == mark and not code and not depth:
            return text[:place], mark, text[place + 1 :]
    return text, "", ""


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a run file, with a description of every key.

    Example:
        >>> json_schema()["properties"]["seed"]["minimum"]
        0
    """
    schema = RunConfig.model_json_schema()
    sections = {section.__name__: section for section in _sections(Settings)}
    for name, definition in [(RunConfig.__name__, schema), *schema["$defs"].items()]:
        _describe(definition, sections[name])
    return {"$schema": _DIALECT, "title": "Run file of persyn-hf"} | schema


def _sections(base: type[Settings]) -> Iterator[type[Settings]]:
    for section in base.__subclasses__():
        if section.__module__.startswith("persyn_hf.config."):
            yield section
            yield from _sections(section)


def _describe(definition: dict[str, Any], section: type[Settings]) -> None:
    """Adds the descriptions, and removes pydantic's titles and the defaults of whole sections, which are redundant."""
    definition.pop("title", None)
    definition["description"] = _first_paragraph(section)
    words = field_descriptions(section)
    for key, value in definition["properties"].items():
        value.pop("title", None)
        if "$ref" in value:
            value.pop("default", None)
        if key in words:
            value["description"] = words[key]


def _first_paragraph(section: type[Settings]) -> str:
    return " ".join(inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0].split())


def reference_page() -> str:
    """Renders the Markdown page: every section with the type, default, bounds and meaning of its keys."""
    schema = json_schema()
    places: dict[str, list[str]] = {}
    for place, name in _places(schema, schema["$defs"], ""):
        places.setdefault(name, []).append(place)
    parts = [_INTRODUCTION, "\n## The file\n", _table(schema, places)]
    for name, (place, *others) in places.items():
        definition = schema["$defs"][name]
        also = f" {', '.join(f'`{other}`' for other in others)} has the same keys." if others else ""
        parts += [f"\n## `{place}`\n", f"{_cell(definition['description'])}{also}\n", _table(definition, places)]
    return "\n".join(parts)


def _places(definition: Mapping[str, Any], sections: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Yields the path of each section in the file, outer ones first: `teachers[].sampling`."""
    for key, value in definition["properties"].items():
        for part in _branches(value):
            of_list = "$ref" in part.get("items", {})
            reference = part.get("$ref") or part.get("items", {}).get("$ref")
            if reference:
                name, place = reference.rpartition("/")[2], f"{prefix}{key}{'[]' if of_list else ''}"
                yield place, name
                yield from _places(sections[name], sections, f"{place}.")


def _branches(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the schemas that a value may match, without null."""
    return [part for part in value.get("anyOf", [value]) if part.get("type") != "null"]


def _table(definition: Mapping[str, Any], places: Mapping[str, list[str]]) -> str:
    lines = ["| key | type | default | bounds | meaning |", "|---|---|---|---|---|"]
    for key, value in definition["properties"].items():
        branches = _branches(value)
        kind = " or ".join(_type(part, places) for part in branches)
        bounds = "; ".join(dict.fromkeys(bound for part in branches for bound in _bounds(part)))
        default = _default(value, key in definition.get("required", ()))
        cells = (f"`{key}`", kind, default, bounds, value.get("description", ""))
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _type(part: Mapping[str, Any], places: Mapping[str, list[str]]) -> str:
    if "$ref" in part:
        place = places[part["$ref"].rpartition("/")[2]][0]
        return f"section [`{place}`](#{_anchor(place)})"
    if "enum" in part or "const" in part:
        return ", ".join(f"`{one}`" for one in part.get("enum", [part.get("const")]))
    if part.get("type") == "array":
        entries = part.get("prefixItems") or [part.get("items", {})]
        return "list of " + ", ".join(_plural(_type(entry, places)) for entry in entries)
    if part.get("type") == "object":
        values = part.get("additionalProperties")
        return f"mapping of names to {_type(values, places)}" if isinstance(values, Mapping) else "mapping"
    return str(part.get("type", "anything"))


def _plural(kind: str) -> str:
    word, space, rest = kind.partition(" ")
    return f"{word}s{space}{rest}" if word.isalpha() else kind


def _anchor(heading: str) -> str:
    """Returns the anchor that GitHub and mkdocs generate for a heading."""
    return re.sub(r"[^\w-]", "", heading.lower())


def _bounds(part: Mapping[str, Any]) -> Iterator[str]:
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in part:
            yield f"{sign} {part[key]:,.12g}"
    if part.get("minLength"):
        yield "not empty"
    if part.get("type") == "array" and "prefixItems" not in part and part.get("minItems"):
        yield f"at least {part['minItems']}"
    if "pattern" in part:
        yield f"matches `{part['pattern']}`"


def _default(value: Mapping[str, Any], required: bool) -> str:
    if required:
        return "**required**"
    return "" if value.get("default") is None else f"`{json.dumps(value['default'], ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
