"""Lookup of API keys: from an environment variable, or the Hub token if `use_hub_token` is set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from huggingface_hub import get_token

from persyn_hf.config import Settings
from persyn_hf.config.connection import VARIABLE, Connection, variables_in
from persyn_hf.config.settings import names_a_variable
from persyn_hf.errors import ConfigError


def find_key(variable: str | None, use_hub_token: bool, needed_by: str) -> str | None:
    """Looks up a key; returns `None` if none is configured.

    Args:
        variable (`str`, *optional*): Environment variable that holds the key. A trailing line break, as left by a
            `.env` file written on Windows, is removed.
        use_hub_token (`bool`): Whether to use the Hugging Face token.
        needed_by (`str`): Name of the section that needs the key, for errors.

    Raises:
        ConfigError: If the variable or the token is missing, or its value cannot be a key. The message contains
            neither the key nor a text that may be one.
    """
    if use_hub_token:
        token = get_token()
        if not token:
            raise ConfigError(f"{needed_by}: `use_hub_token` is set but there is no token; run `hf auth login`.")
        return _whole(token, "the Hugging Face token", needed_by)
    if variable is None:
        return None
    if not names_a_variable(variable):
        raise ConfigError(
            f"{needed_by}: `api_key_env` must be the name of an environment variable that holds the key, not the key "
            "itself."
        )
    key = os.environ.get(variable, "").rstrip("\r\n")
    if not key:
        raise ConfigError(f"{needed_by}: the environment variable {variable} is not set; export it before the run.")
    return _whole(key, f"the environment variable {variable}", needed_by)


def with_variables(
    server: Connection, needed_by: str
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], tuple[str, ...]]:
    """Fills the environment variables into the headers and query parameters of a server.

    Args:
        server (`Connection`): Configuration with `extra_headers` and `extra_query`.
        needed_by (`str`): Name of the section that needs them, for errors.

    Returns:
        `tuple`: Headers, query parameters, and the values of the variables, which must not be shown.

    Raises:
        ConfigError: If a variable is not set, or its value is not valid in a header. The message does not contain
            the value.
    """
    secrets: list[str] = []

    def filled(value: str) -> str:
        def found(reference: re.Match[str]) -> str:
            secrets.append(_variable_value(reference[1], needed_by))
            return secrets[-1]

        return VARIABLE.sub(found, value)

    headers = tuple((name, filled(value)) for name, value in server.extra_headers.items())
    query = tuple((name, filled(value)) for name, value in server.extra_query.items())
    return headers, query, tuple(secrets)


def _variable_value(variable: str, needed_by: str) -> str:
    value = os.environ.get(variable, "").rstrip("\r\n")
    if not value:
        raise ConfigError(f"{needed_by}: the environment variable {variable} is not set; export it before the run.")
    if not (value.isascii() and value.isprintable()):
        raise ConfigError(
            f"{needed_by}: the environment variable {variable} contains a line break or another character that is not "
            "allowed in a header; remove it."
        )
    return value


def _whole(key: str, where: str, needed_by: str) -> str:
    if key.isascii() and key.isprintable() and " " not in key:
        return key
    raise ConfigError(
        f"{needed_by}: {where} contains white space, a line break or another character that is not allowed in a key; "
        "set it to the key alone."
    )


def require_keys(sections: Iterable[tuple[str, object]], source: str) -> None:
    """Checks that every key that a configuration names is set, before any request is sent.

    Args:
        sections (`Iterable[tuple[str, object]]`): Sections, or tuples of sections, with their paths.
        source (`str`): Name of the configuration, for errors.

    Raises:
        ConfigError: If keys are missing, with one line per key and the path of its setting.
    """
    problems = [problem for path, section in sections for problem in _missing(section, path)]
    if problems:
        raise ConfigError("\n".join(f"{source}: {problem}" for problem in problems))


def _missing(section: object, path: str) -> Iterator[str]:
    if isinstance(section, tuple):
        for place, one in enumerate(section):
            yield from _missing(one, f"{path}[{place}]")
    elif isinstance(section, Settings):
        if isinstance(section, Connection):
            setting = "use_hub_token" if section.use_hub_token else "api_key_env"
            try:
                find_key(section.api_key_env, section.use_hub_token, f"`{path}.{setting}`")
            except ConfigError as error:
                yield str(error)
            yield from _missing_variables(section, path)
        for name in type(section).model_fields:
            yield from _missing(getattr(section, name), f"{path}.{name}")


def _missing_variables(section: Connection, path: str) -> Iterator[str]:
    for setting in ("extra_headers", "extra_query"):
        for name, variable in variables_in(getattr(section, setting)):
            try:
                _variable_value(variable, f"`{path}.{setting}.{name}`")
            except ConfigError as error:
                yield str(error)
