"""What all sections of a configuration share."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
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
    return _VARIABLE.fullmatch(value) is not None and not any(map(is_random_word, value.split("_")))


def is_random_word(word: str) -> bool:
    """Whether a word is of random characters, as keys are, and no name."""
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

    Two more: `added` (`frozenset[str]`) names fields that came after the section was first released. They count only
    where they differ from their default, so that what was made before them stays as good as it was. `renamed`
    (`Mapping[str, str]`) has the former names of fields with those that they have now. A former name is an error that
    says so.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset()
    checkpoints: ClassVar[Mapping[str, str]] = {}
    files: ClassVar[frozenset[str]] = frozenset()
    code: ClassVar[frozenset[str]] = frozenset()
    added: ClassVar[frozenset[str]] = frozenset()
    renamed: ClassVar[Mapping[str, str]] = {}

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


def merged(
    section: type[Section],
    settings: Settings | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    source: str,
    only: Collection[str] | None = None,
) -> Section:
    """The options of one call of a function: a whole section, single fields as keywords, or both.

    Every public function takes its options through this one: a field's name, default and bounds stand in the section.

    Args:
        section (`type[Settings]`): Where the options are declared.
        settings (`Settings` or `Mapping`, *optional*): The section, or its keys. Of a larger section only the fields
            of `section` are taken.
        options (`Mapping[str, Any]`): Fields given as keywords. They replace those of `settings`.
        source (`str`): Names the function in errors.
        only (`Collection[str]`, *optional*): The fields that may be given as keywords; as a mapping, the keywords with
            the fields that they are for. Default: all.

    Raises:
        ConfigError: One line per problem: the option and what would be right. An unknown option is named with those
            that there are.

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
    """Refuses keywords that are no fields of a section.

    Args:
        section (`type[Settings]`), options (`Collection[str]`): The section, and the names that were given.
        source (`str`): Names the function in errors.
        only (`Collection[str]`, *optional*): The names that are known. Default: all fields.

    Raises:
        ConfigError: Naming each unknown option and those that there are.
    """
    known = sorted(section.model_fields if only is None else only)
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError("\n".join(f"{source}: `{name}` {_unknown(section, name, known)}" for name in unknown))


def default_of(section: type[Settings], field: str) -> Any:
    """The default of a field, for what has a default of its own that must be the same.

    Example:
        >>> from persyn_hf.config import Reward
        >>> default_of(Reward, "alpha")
        0.4
    """
    return section.model_fields[field].get_default(call_default_factory=True)


def _unknown(section: type[Settings], name: str, known: Collection[str]) -> str:
    if name in section.renamed:
        return f"is called `{section.renamed[name]}` now."
    return f"is no option; there are {', '.join(known)}."


def _plain_number(value: Any) -> Any:
    """Numbers of NumPy as Python's, also in a mapping; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: _plain_number(one) for name, one in value.items()}
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def _explain_call(error: ValidationError, section: type[Settings], fields: Collection[str]) -> list[str]:
    """One line per problem. A text is repeated only where it stood in the call, for one of a few words."""
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


#: How pydantic names the errors of numbers out of bounds.
_BOUNDS = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")


@dataclass(frozen=True)
class Unit:
    """What a number counts, as part of its field's type: `Annotated[float, Unit("USD")]`."""

    name: str


def _bounds(section: type[Settings], name: str) -> str:
    """What a number may be: "between 0 and 1"."""
    metadata = section.model_fields[name].metadata
    unit = "".join(f" {one.name}" for one in metadata if isinstance(one, Unit))
    limits = {kind: getattr(one, kind) for one in metadata for kind in ("ge", "gt", "le", "lt") if hasattr(one, kind)}
    if limits.keys() == {"ge", "le"}:
        return f"between {limits['ge']:g} and {limits['le']:g}"
    if limits == {"ge": 0}:
        return "a number that is not negative"
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    return " and ".join(f"{words[kind]} {limit:g}" for kind, limit in limits.items()) + unit


def _explain(error: ValidationError, root: type[Settings]) -> list[str]:
    """One line per problem. Only numbers are repeated: a text may be a secret in the wrong place."""
    return [_line(problem, root) for problem in error.errors(include_url=False)]


def _line(problem: Any, root: type[Settings]) -> str:
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        section, name = _section_at(root, problem["loc"]), str(problem["loc"][-1])
        message = f"unknown key; this section knows {', '.join(sorted(section.model_fields))}"
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
