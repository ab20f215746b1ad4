"""The connection to a server: the API key, extra headers and query parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from persyn_hf.config.settings import KeyVariable, Settings, is_random_word, names_a_variable

#: A reference to an environment variable, in the syntax of shells.
VARIABLE = re.compile(r"\$\{([^{}]*)\}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
#: Headers that the HTTP client sets.
_OWNED = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
#: Words in the names of headers and parameters whose values are secret.
_SECRET = ("key", "token", "secret", "password", "auth", "cookie", "credential", "signature")


def variables_in(values: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields every environment variable that the values name, as pairs of the value's key and the variable.

    Example:
        >>> list(variables_in({"x-api-key": "${MY_KEY}", "x-title": "mine"}))
        [('x-api-key', 'MY_KEY')]
    """
    for name, value in values.items():
        for variable in VARIABLE.findall(value):
            yield name, variable


def _problems(values: Mapping[str, str]) -> Iterator[str]:
    """Yields what is wrong with the values. No value is repeated, since it may be a secret."""
    for name, value in values.items():
        bare = VARIABLE.sub("", value)
        if any(not names_a_variable(variable) for variable in VARIABLE.findall(value)):
            yield f"`{name}`: `${{…}}` must hold the name of an environment variable"
        elif "$" in bare or not value.isprintable() or not value.isascii():
            yield f"`{name}`: the value must be one line of ASCII; write an environment variable as `${{NAME}}`"
        elif bare == value and any(part in name.lower() for part in _SECRET):
            yield f"`{name}`: the value may be a secret; put it into an environment variable and write `${{NAME}}`"
        elif any(map(is_random_word, re.split(r"[^A-Za-z0-9]+", bare))):
            yield f"`{name}`: the value looks like a secret; put it into an environment variable and write `${{NAME}}`"


def _headers(value: dict[str, str]) -> dict[str, str]:
    problems = list(_problems(value))
    lower = [name.lower() for name in value]
    for name in value:
        if not _HEADER.fullmatch(name):
            problems.append("one of the names is not a valid header name")
        elif name.lower() in _OWNED:
            problems.append(f"`{name}` is set by persyn_hf")
        elif name.lower() == "authorization":
            problems.append(f"`{name}` is set from `api_key_env`; to rename the header, set `api_key_header`")
        elif lower.count(name.lower()) > 1:
            problems.append(f"`{name}` is given twice; header names ignore case")
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return value


def _query(value: dict[str, str]) -> dict[str, str]:
    problems = list(_problems(value))
    if "" in value:
        problems.append("one of the parameters has an empty name")
    if problems:
        raise ValueError("; ".join(problems))
    return value


def _references(value: object) -> object:
    """Rewrites values of the form `{env: NAME}` as `${NAME}`."""
    if not isinstance(value, Mapping):
        return value
    return {name: _reference(one) for name, one in value.items()}


def _reference(value: object) -> object:
    named = value.get("env") if isinstance(value, Mapping) and len(value) == 1 else None
    return f"${{{named}}}" if isinstance(named, str) else value


def _header_name(value: str | None) -> str | None:
    if value is not None and (not _HEADER.fullmatch(value) or value.lower() in _OWNED):
        raise ValueError("must be the name of a header that persyn_hf does not set, such as `api-key`")
    return value


class Connection(Settings):
    """The connection to a server.

    Args:
        api_key_env (`str`, *optional*): Environment variable that holds the server's API key.
        use_hub_token (`bool`, defaults to `False`): Whether to send the Hugging Face token to this server. Without it
            and `api_key_env`, no key is sent.
        api_key_header (`str`, *optional*): Header that carries the bare key, such as Azure's `api-key`. Default:
            `Authorization: Bearer …`.
        extra_headers (`dict[str, str]`, defaults to `{}`): Headers to add to every request. `${NAME}` stands for the
            value of an environment variable, which is read when a request is sent and never stored.
        extra_query (`dict[str, str]`, defaults to `{}`): Query parameters to add to every request, such as Azure's
            `api-version`; `${NAME}` works as in `extra_headers`.
    """

    #: Fields that say how to reach the server. They do not change its answers.
    reached: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "use_hub_token", "api_key_header", "extra_headers", "extra_query"}
    )

    api_key_env: KeyVariable = None
    use_hub_token: bool = False
    api_key_header: Annotated[str | None, AfterValidator(_header_name)] = None
    extra_headers: Annotated[dict[str, str], BeforeValidator(_references), AfterValidator(_headers)] = Field(
        default_factory=dict
    )
    extra_query: Annotated[dict[str, str], BeforeValidator(_references), AfterValidator(_query)] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _one_key(self) -> Connection:
        if self.api_key_env is not None and self.use_hub_token:
            raise ValueError("give `api_key_env` or `use_hub_token`, not both")
        header = (self.api_key_header or "").lower()
        if header and header in map(str.lower, self.extra_headers):
            raise ValueError(f"`api_key_header` and `extra_headers` both set `{self.api_key_header}`")
        return self
