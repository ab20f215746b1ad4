"""Overrides of single keys of a run file: `section.key=value`."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

import yaml

from persyn_hf.config.settings import Key, Section, Settings, names_a_variable, read_settings
from persyn_hf.errors import ConfigError

#: The command-line option that sets a value; errors name it.
FLAG = "--set"
#: An entry of a list as errors write it: `teachers[0].name` for `teachers.0.name`.
_INDEX = re.compile(r"\[(\d+)\](?=\.|\Z)")


def parse_overrides(given: Iterable[str]) -> dict[str, object]:
    """Parses `key=value` texts. If a key is repeated, its last value counts.

    Args:
        given (`Iterable[str]`): Texts of a dotted key, `=` and a YAML value.

    Raises:
        ConfigError: If a text has no `=` or no key, or its value is not YAML. The error does not repeat the value.

    Example:
        >>> parse_overrides(["reward.alpha=0.2", "compare.seeds=[0, 1]", "publish.license="])
        {'reward.alpha': 0.2, 'compare.seeds': [0, 1], 'publish.license': None}
    """
    overrides: dict[str, object] = {}
    for text in given:
        key, sign, value = text.partition("=")
        key = _INDEX.sub(r".[\1]", key.strip())
        if not sign or not all(key.split(".")):
            raise ConfigError(f"{FLAG} must be given as section.key=value, for example {FLAG} reward.alpha=0.2.")
        overrides.pop(key, None)  # a later one is applied later
        overrides[key] = _value(value, key)
    return overrides


def _value(text: str, key: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # their messages repeat the text
        where = key if all(map(names_a_variable, key.split("."))) else "section.key"
        raise ConfigError(
            f"{FLAG} {where}: the value must be YAML; put a text with special characters in quotes, as in "
            f"{FLAG} '{where}=\"…\"'."
        ) from None


def read_overridden(
    section: type[Section], data: Mapping[str, object], overrides: Mapping[str, object], source: str
) -> Section:
    """Applies overrides to plain values, then validates the result. `data` is not changed.

    Args:
        section (`type[Settings]`): Section that declares the keys.
        data (`Mapping[str, object]`): Plain values, as loaded from YAML.
        overrides (`Mapping[str, object]`): Values by dotted key, in order. A list entry is addressed by its name or
            index: `teachers.qwen.timeout`, `teachers.0.timeout`.
        source (`str`): Name of `data` in errors.

    Raises:
        ConfigError: One line per problem; a problem in an override names `--set`.
    """
    places = []
    for key, value in overrides.items():
        data, place = _Override(key, value).apply(section, data)
        places.append(place)
    return read_settings(section, data, source, FLAG, places)


class _Override:
    """One override: its value and its position in the nested sections."""

    def __init__(self, key: str, value: object) -> None:
        self.value = value
        self.rest = key
        self.place: list[Key] = []

    def apply(self, section: type[Settings], data: Mapping[str, object]) -> tuple[dict[str, object], tuple[Key, ...]]:
        """Returns the values with this override applied, and the path of keys where it was set."""
        return self._in_section(section, data), tuple(self.place)

    def _set(self, annotation: Any, found: object) -> object:
        """Returns the value of one key after the override. Nothing is changed in place."""
        if not self.rest:
            return self.value
        sections, lists, mappings, anything = _kinds(annotation)
        if sections and isinstance(found, Mapping | None):
            return self._in_section(sections[0], found or {})
        if (lists or anything) and isinstance(found, list | tuple):
            return self._in_list(get_args(lists[0])[0] if lists else Any, found)
        if (mappings or anything) and isinstance(found, Mapping | None):
            values = get_args(mappings[0])[1] if mappings else Any
            return self._in_mapping(values, found or {})
        if lists and found is None:
            self._refuse(f"is a list that the file does not set; set the whole list: {FLAG} '{self._path}=[…]'")
        if sections or lists or mappings or anything:
            self._refuse("holds a single value; set it as a whole")
        self._refuse("has no keys")

    def _in_section(self, section: type[Settings], found: Mapping[str, object]) -> dict[str, object]:
        key, _, rest = self.rest.partition(".")
        if key not in section.model_fields:
            known = ", ".join(sorted(section.model_fields))
            if names_a_variable(key):
                self.place.append(key)
                self._refuse(f"unknown key; this section has {known}")
            self._refuse(f"has no such key; this section has {known}")
        return {**found, key: self._go_on(key, rest, section.model_fields[key].annotation, found.get(key))}

    def _in_mapping(self, values: Any, found: Mapping[str, object]) -> dict[str, object]:
        if values is Any:
            key, _, rest = self.rest.partition(".")
        else:  # numbers by teacher: a name may hold dots
            key, rest = self.rest, ""
        return {**found, key: self._go_on(key, rest, values, found.get(key))}

    def _in_list(self, entry: Any, found: Sequence[object]) -> list[object]:
        index, rest = self._entry(found)
        return [*found[:index], self._go_on(index, rest, entry, found[index]), *found[index + 1 :]]

    def _entry(self, found: Sequence[object]) -> tuple[int, str]:
        """Returns the index of the list entry and the rest of the key. Names may hold dots: the longest name wins."""
        names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in found]
        named = [name for name in names if isinstance(name, str) and f"{self.rest}.".startswith(f"{name}.")]
        if named:
            name = max(named, key=len)
            return names.index(name), self.rest[len(name) + 1 :]
        key, _, rest = self.rest.partition(".")
        index = key.removeprefix("[").removesuffix("]")
        if index.isdecimal() and int(index) < len(found):
            return int(index), rest
        known = ", ".join(str(name) for name in names if name is not None)
        entries = f"address entries by index, 0 to {len(found) - 1}" if found else "it has no entries"
        self._refuse(f"has no such entry; {entries}" + (f", or by name: {known}" if known else ""))

    def _go_on(self, key: Key, rest: str, annotation: Any, found: object) -> object:
        self.place.append(key)
        self.rest = rest
        return self._set(annotation, found)

    @property
    def _path(self) -> str:
        return ".".join(map(str, self.place))

    def _refuse(self, why: str) -> NoReturn:
        raise ConfigError(f"{FLAG}: `{self._path}`: {why}." if self.place else f"{FLAG}: {why}.")


def _kinds(annotation: Any) -> tuple[list[Any], list[Any], list[Any], bool]:
    """Sorts the types that a value may have into sections, lists and mappings; the last item is True for `Any`."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    union = get_origin(annotation) in (Union, types.UnionType)
    parts = get_args(annotation) if union else (annotation,)
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, Settings)]
    lists = [part for part in parts if get_origin(part) is tuple]
    mappings = [part for part in parts if get_origin(part) is dict]
    return sections, lists, mappings, Any in parts
