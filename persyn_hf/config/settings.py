"""What all sections of a configuration share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from persyn_hf.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: Words of random characters: names of variables have none of these lengths, with digits or in mixed case.
_RANDOM, _LONG_RANDOM = 16, 24


def names_a_variable(value: str) -> bool:
    """Whether a text can be the name of an environment variable, and is no key that was pasted in its place.

    Example:
        >>> [names_a_variable(value) for value in ("OPENAI_API_KEY", "sk-proj-1234", "hf_aB3dEf6hIj9lMn2p")]
        [True, False, False]
    """
    return _VARIABLE.fullmatch(value) is not None and not any(map(_is_random, value.split("_")))


def _is_random(word: str) -> bool:
    if any(map(str.isdigit, word)):
        return len(word) >= _RANDOM
    return len(word) >= _LONG_RANDOM and not (word.isupper() or word.islower())


def _variable(value: str | None) -> str | None:
    if value is not None and not names_a_variable(value):
        raise ValueError("must be the name of an environment variable that holds the key, not the key itself")
    return value


def base_url(value: str) -> str:
    """Checks a server's base URL, which is shown in errors, progress and cards, and gives it back.

    Raises:
        ValueError: If it is none, or holds what may be a secret; no part of it is repeated.
    """
    if not value.lower().startswith(("http://", "https://")):
        raise ValueError("an endpoint must be a base URL that starts with http:// or https://")
    if "@" in value.partition("://")[2].partition("/")[0] or "?" in value or "#" in value:
        raise ValueError("an endpoint must hold no user, password, query or fragment; use `api_key_env`")
    try:
        parts = urlsplit(value)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # its words repeat a part of the address
        whole = False
    if not whole or not value.isprintable() or any(mark in value for mark in " \\"):
        raise ValueError("an endpoint must be a base URL that starts with http:// or https:// and names a host")
    return value


#: The name of an environment variable that holds a key. It is read when something is to be asked, and not before.
KeyVariable = Annotated[str | None, AfterValidator(_variable)]
#: A server's base URL: http(s) and a host, without user, password, query and fragment.
Address = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(base_url)]


class Settings(BaseModel):
    """Base of every section: frozen, and an unknown key is an error.

    Four class variables say how a section counts in the fingerprint of a stage that is given it; a field that none of
    them names counts with its value.

    Args:
        unkeyed (`frozenset[str]`): Fields that decide how something is done, not what comes of it. They do not count.
        checkpoints (`Mapping[str, str]`): Fields that name a model, each with the field of its revision. They count
            with the identity of the weights.
        files (`frozenset[str]`): Fields that name a file or a folder. They count with its content.
        code (`frozenset[str]`): Fields that name a function. They count with its source.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset()
    checkpoints: ClassVar[Mapping[str, str]] = {}
    files: ClassVar[frozenset[str]] = frozenset()
    code: ClassVar[frozenset[str]] = frozenset()

    # A text in a wrong place may be a key: errors do not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)


Section = TypeVar("Section", bound=Settings)
#: A step on the way to a value: a key of a section, or the index of an entry in a list.
Key = int | str


def read_settings(
    section: type[Section],
    data: Mapping[str, Any],
    source: str,
    flag: str = "",
    places: Collection[tuple[Key, ...]] = (),
) -> Section:
    """Validates plain values; `source` names them in errors.

    Args:
        section (`type[Settings]`): What the values are of.
        data (`Mapping[str, Any]`): Plain values, as YAML gives them.
        source (`str`): Where they come from.
        flag (`str`, *optional*), places (`Collection[tuple]`, defaults to none): Where some of them come from
            instead, and at which places these stand.

    Raises:
        ConfigError: One line per problem: where, the key and what would be right.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem, line in zip(error.errors(include_url=False), _explain(error, section), strict=True):
            where = _where(problem["loc"], source, flag, places)
            if where == flag and problem["type"] == "string_type":
                line = f"{line} Put a text that YAML reads as something else in quotes: {flag} 'key=\"…\"'."
            lines.append(f"{where}: {line}")
        raise ConfigError("\n".join(lines)) from None


def _where(location: tuple[Key, ...], source: str, flag: str, places: Collection[tuple[Key, ...]]) -> str:
    """Where a wrong value comes from: below an override, beside one (in a section that has one), or neither."""
    if any(location[: len(place)] == place for place in places):
        return flag
    if location and any(place[: len(location)] == location for place in places):
        return f"{source} with {flag}"
    return source


def _explain(error: ValidationError, root: type[Settings]) -> list[str]:
    """One line per problem. Only numbers are repeated: a text may be a secret in the wrong place."""
    lines = []
    for problem in error.errors(include_url=False):
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key; this section knows {', '.join(_known_keys(root, problem['loc']))}"
        elif problem["type"] == "missing":
            message = "is required"
        elif isinstance(problem["input"], int | float):
            message = f"{message}, got {problem['input']}"
        lines.append(f"`{key}`: {message}." if key else f"{message}.")
    return lines


def _known_keys(root: type[Settings], location: tuple[int | str, ...]) -> list[str]:
    section: Any = root
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        while not isinstance(section, type):  # tuple[Section, ...], Section | None
            section = get_args(section)[0]
    return sorted(section.model_fields)
