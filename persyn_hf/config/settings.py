"""What all sections of a configuration share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from persyn_hf.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def _variable_is_set(name: str | None) -> str | None:
    if name is not None and not os.environ.get(name):
        raise ValueError(f"the environment variable {name} is not set; export it before the run")
    return name


#: The name of an environment variable that holds a key. A name that is not set is an error before anything starts.
KeyVariable = Annotated[str | None, AfterValidator(_variable_is_set)]


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

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Section = TypeVar("Section", bound=Settings)


def read_settings(section: type[Section], data: Mapping[str, Any], source: str) -> Section:
    """Validates plain values; `source` names them in errors.

    Raises:
        ConfigError: One line per problem: where, the key and what would be right.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in _explain(error, section))) from None


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
