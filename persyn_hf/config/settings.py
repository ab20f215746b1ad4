"""Base class of the sections, and functions that validate them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from persyn_hf.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
#: Length from which a word with digits, or in mixed case, is random: names of variables have no such words.
_RANDOM, _LONG_RANDOM = 16, 24


def names_a_variable(value: str) -> bool:
    """Returns True if a text can name an environment variable and is not a pasted key.

    Example:
        >>> [names_a_variable(value) for value in ("OPENAI_API_KEY", "sk-proj-1234", "hf_aB3dEf6hIj9lMn2p")]
        [True, False, False]
    """
    return _VARIABLE.fullmatch(value) is not None and not any(map(is_random_word, value.split("_")))


def is_random_word(word: str) -> bool:
    """Returns True if a word looks like the random characters of a key."""
    if any(map(str.isdigit, word)):
        return len(word) >= _RANDOM
    return len(word) >= _LONG_RANDOM and not (word.isupper() or word.islower())


def _variable(value: str | None) -> str | None:
    if value is not None and not names_a_variable(value):
        raise ValueError("must be the name of an environment variable that holds the key, not the key itself")
    return value


def base_url(value: str) -> str:
    """Validates a server's base URL and returns it. Errors, progress and cards show the URL.

    Raises:
        ValueError: If the text is not a base URL or may hold a secret. The error repeats no part of it.
    """
    if not value.lower().startswith(("http://", "https://")):
        raise ValueError("an endpoint must be a base URL that starts with http:// or https://")
    if "@" in value.partition("://")[2].partition("/")[0] or "?" in value or "#" in value:
        raise ValueError("an endpoint must hold no user, password, query or fragment; use `api_key_env`")
    try:
        parts = urlsplit(value)
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:  # its message repeats a part of the address
        whole = False
    if not whole or not value.isprintable() or any(mark in value for mark in " \\"):
        raise ValueError("an endpoint must be a base URL that starts with http:// or https:// and names a host")
    return value


#: The name of an environment variable that holds an API key. The variable is read when a request needs it.
KeyVariable = Annotated[str | None, AfterValidator(_variable)]
#: A server's base URL: http(s) and a host, without user, password, query and fragment.
Address = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(base_url)]


class Settings(BaseModel):
    """Base class of every section: frozen, and an unknown key is an error.

    The first four class variables define how a section enters the fingerprint of a stage. Other fields enter by their
    value.

    Args:
        unkeyed (`frozenset[str]`): Fields that do not affect the result. They do not enter the fingerprint.
        checkpoints (`Mapping[str, str]`): Fields that name a model, each with the field of its revision. They enter
            by the identity of the weights.
        files (`frozenset[str]`): Fields that name a file or a folder. They enter by its content.
        code (`frozenset[str]`): Fields that name a function. They enter by its source.
        added (`frozenset[str]`): Fields added after the section's first release. They enter only if they differ from
            their default, so that earlier results stay valid.
        renamed (`Mapping[str, str]`): Former names of fields, each with the current name. Using a former name is an
            error that gives the current one.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset()
    checkpoints: ClassVar[Mapping[str, str]] = {}
    files: ClassVar[frozenset[str]] = frozenset()
    code: ClassVar[frozenset[str]] = frozenset()
    added: ClassVar[frozenset[str]] = frozenset()
    renamed: ClassVar[Mapping[str, str]] = {}

    # A misplaced text may be an API key, so errors do not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), hide_input_in_errors=True)


Section = TypeVar("Section", bound=Settings)
#: One step in the path to a value: a key of a section, or the index of a list entry.
Key = int | str


def read_settings(
    section: type[Section],
    data: Mapping[str, object],
    source: str,
    flag: str = "",
    places: Collection[tuple[Key, ...]] = (),
) -> Section:
    """Validates plain values as a section.

    Args:
        section (`type[Settings]`): Section to validate as.
        data (`Mapping[str, object]`): Plain values, as loaded from YAML.
        source (`str`): Name of `data` in errors.
        flag (`str`, *optional*), places (`Collection[tuple]`, defaults to none): Command-line option that set some of
            the values, and the paths of those values.

    Raises:
        ConfigError: One line per problem, with the source, the key and the expected value.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        lines = []
        for problem, line in zip(error.errors(include_url=False), _explain(error, section), strict=True):
            where = _where(problem["loc"], source, flag, places)
            if where == flag and problem["type"] == "string_type":
                line = f"{line} YAML did not read the value as a string; put it in quotes: {flag} 'key=\"…\"'."
            lines.append(f"{where}: {line}")
        raise ConfigError("\n".join(lines)) from None


def _where(location: tuple[Key, ...], source: str, flag: str, places: Collection[tuple[Key, ...]]) -> str:
    """Names the origin of a wrong value: the flag, the source, or both if the flag set other keys of the section."""
    if any(location[: len(place)] == place for place in places):
        return flag
    if location and any(place[: len(location)] == location for place in places):
        return f"{source} with {flag}"
    return source


def merged(
    section: type[Section],
    settings: Settings | Mapping[str, object] | None,
    options: Mapping[str, object],
    source: str,
    only: Collection[str] | None = None,
) -> Section:
    """Merges a function's options: a whole section, single fields as keywords, or both.

    Every public function reads its options with this function, so that only the section declares names, defaults and
    bounds.

    Args:
        section (`type[Settings]`): Section that declares the options.
        settings (`Settings` or `Mapping`, *optional*): Section, or a mapping of its keys. If it is a subclass of
            `section`, its other fields are ignored.
        options (`Mapping[str, object]`): Fields given as keywords. They override those of `settings`.
        source (`str`): Name of the function in errors.
        only (`Collection[str]`, *optional*): Fields that may be given as keywords. A mapping gives the keywords, each
            with its field. Default: all fields.

    Raises:
        ConfigError: One line per problem, with the option and the expected value. For an unknown option, the error
            lists the known ones.

    Example:
        >>> from persyn_hf.config import Reward
        >>> merged(Reward, {"alpha": 0.3}, {"normalization": "rank"}, "score")
        Reward(alpha=0.3, normalization='rank', learnability_metric='mean-logprob')
    """
    require_known(section, options, source, only)
    if isinstance(settings, Settings):
        if not options and isinstance(settings, section):
            return settings
        if not isinstance(settings, section):
            raise ConfigError(f"{source}: `settings` must be {section.__name__}, got {type(settings).__name__}.")
        fields = settings.model_fields_set & set(section.model_fields)
        given = {name: getattr(settings, name) for name in fields}
    elif settings is None or isinstance(settings, Mapping):
        given = dict(settings or {})
    else:
        raise ConfigError(
            f"{source}: `settings` must be {section.__name__} or a mapping of its keys, got {type(settings).__name__}."
        )
    fields_of = only if isinstance(only, Mapping) else {name: name for name in options}
    given |= {fields_of[name]: _plain_number(value) for name, value in options.items()}
    try:
        return section.model_validate(given)
    except ValidationError as error:
        called = {fields_of[name] for name in options}
        lines = _explain_call(error, section, called)
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def require_known(
    section: type[Settings], options: Collection[str], source: str, only: Collection[str] | None = None
) -> None:
    """Raises an error for keywords that are not fields of a section.

    Args:
        section (`type[Settings]`), options (`Collection[str]`): Section, and names of the keywords.
        source (`str`): Name of the function in errors.
        only (`Collection[str]`, *optional*): Known names. Default: all fields.

    Raises:
        ConfigError: If a keyword is unknown. The error lists the known ones.
    """
    known = sorted(section.model_fields if only is None else only)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError("\n".join(f"{source}: `{name}` {_unknown(section, name, known)}" for name in unknown))


def default_of(section: type[Settings], field: str) -> Any:
    """Returns the default of a field, for code that must use the same default.

    Example:
        >>> from persyn_hf.config import Reward
        >>> default_of(Reward, "alpha")
        0.4
    """
    return section.model_fields[field].get_default(call_default_factory=True)


def _unknown(section: type[Settings], name: str, known: Collection[str]) -> str:
    if name in section.renamed:
        return f"is called `{section.renamed[name]}` now."
    return f"is not an option; the options are {', '.join(known)}."


def _plain_number(value: object) -> object:
    """Converts NumPy numbers to Python's, also in a mapping. Other values are returned unchanged."""
    if isinstance(value, Mapping):
        return {name: _plain_number(one) for name, one in value.items()}
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _explain_call(error: ValidationError, section: type[Settings], fields: Collection[str]) -> list[str]:
    """Returns one line per problem. A text is repeated only if the caller gave it for an option of fixed values."""
    lines = []
    for problem in error.errors(include_url=False):
        name = str(problem["loc"][0]) if len(problem["loc"]) == 1 else ""
        if name and problem["type"] == "literal_error":
            words = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            got = f", got {problem['input']!r}" if name in fields else ""
            lines.append(f"`{name}` must be one of {words}{got}.")
        elif name and problem["type"] in _BOUNDS:
            lines.append(f"`{name}` must be {_bounds(section, name)}, got {problem['input']}.")
        else:
            lines.append(_line(problem, section))
    return lines


#: Pydantic's names of errors for numbers out of bounds.
_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")


@dataclass(frozen=True)
class Unit:
    """Unit of a number, as part of its field's type: `Annotated[float, Unit("USD")]`."""

    name: str


def _bounds(section: type[Settings], name: str) -> str:
    """Describes the bounds of a number: "between 0 and 1"."""
    metadata = section.model_fields[name].metadata
    unit = "".join(f" {one.name}" for one in metadata if isinstance(one, Unit))
    limits = {kind: getattr(one, kind) for one in metadata for kind in ("ge", "gt", "le", "lt") if hasattr(one, kind)}
    if limits.keys() == {"ge", "le"}:
        return f"between {limits['ge']:g} and {limits['le']:g}"
    if limits == {"ge": 0}:
        return "non-negative"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{words[kind]} {limit:g}" for kind, limit in limits.items()) + unit


def _explain(error: ValidationError, root: type[Settings]) -> list[str]:
    """Returns one line per problem. Only numbers are repeated, since a misplaced text may be a secret."""
    return [_line(problem, root) for problem in error.errors(include_url=False)]


def _line(problem: ErrorDetails, root: type[Settings]) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        section, name = _section_at(root, problem["loc"]), str(problem["loc"][-1])
        message = f"unknown key; this section has {', '.join(sorted(section.model_fields))}"
        if name in section.renamed:
            message = f"unknown key; it is called `{section.renamed[name]}` now"
    elif problem["type"] == "missing":
        message = "is required"
    elif isinstance(problem["input"], int | float):
        message = f"{message}, got {problem['input']}"
    return f"`{key}`: {message}." if key else f"{message}."


def _section_at(root: type[Settings], location: tuple[int | str, ...]) -> type[Settings]:
    section: Any = root
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        while not isinstance(section, type):  # tuple[Section, ...], Section | None
            section = get_args(section)[0]
    found: type[Settings] = section
    return found
