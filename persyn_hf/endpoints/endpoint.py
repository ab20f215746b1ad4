"""Where a server is asked and in whose name: address, model and key of one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

from persyn_hf.config import Service, Teacher
from persyn_hf.endpoints.keys import find_key, with_variables
from persyn_hf.text import tame

#: Longest excerpt of a server's own words in an error.
_EXCERPT = 200
#: The version under which the chat protocol's routes stand where only a host is named.
_VERSION = "/v1"
#: Routes of the chat protocol, and another protocol's, that some write behind the base URL.
_CHAT_ROUTES = ("/chat/completions", "/completions")
_ROUTES = (*_CHAT_ROUTES, "/generate")


@dataclass(frozen=True)
class Endpoint:
    """One address of a server: a teacher's, a judge's, a student's or a router's.

    Args:
        address (`str`): Base URL or full route, as configured.
        model (`str`, *optional*): What it is to serve.
        key (`str`, *optional*): Sent to this address and nowhere else. Never shown.
        key_name (`str`, *optional*): Where the key comes from, for errors.
        setting (`str`, defaults to `"endpoint"`): What the address is called where it is configured, for errors.
        key_header (`str`, *optional*): Header that carries the key by itself; by default it is a bearer token.
        headers, query (`tuple[tuple[str, str], ...]`, defaults to none): More headers and query parameters of every
            request, with the values of the variables that they name. Never shown.
        secrets (`tuple[str, ...]`, defaults to none): Values of variables in them.
        options (`str`, *optional*): Where sampling settings stand in the section of this server, for errors.
    """

    address: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    setting: str = "endpoint"
    key_header: str | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    options: str = ""

    @classmethod
    def of(
        cls, server: Teacher | Service, address: str | None = None, *, model: str | None = None, setting: str = "url"
    ) -> Endpoint:
        """The endpoint of a teacher, by default its first, or of a service.

        Args:
            server (`Teacher` or `Service`): Whom.
            address (`str`, *optional*): One of a teacher's endpoints.
            model (`str`, *optional*): What a service is to serve.
            setting (`str`, defaults to `"url"`): What a service's address is called where it is configured.

        Raises:
            ConfigError: If a key, the Hub token or a variable is wanted and there is none.
        """
        options = ""
        if isinstance(server, Teacher):
            address, model, setting = address or server.endpoints[0], server.model, "endpoint"
            needed_by, options = f"teacher `{server.name}`", "sampling."
        else:
            address = needed_by = server.url
        key = find_key(server.api_key_env, server.use_hub_token, needed_by)
        headers, query, secrets = with_variables(server, needed_by)
        return cls(
            address.rstrip("/"),
            model,
            key,
            server.api_key_env or ("the Hugging Face token" if server.use_hub_token else None),
            setting,
            server.api_key_header,
            headers,
            query,
            secrets,
            options,
        )

    @property
    def hidden(self) -> tuple[str, ...]:
        """Everything that no message may repeat, the longest first."""
        return tuple(sorted({*self.secrets, *([self.key] if self.key else [])}, key=len, reverse=True))

    @property
    def base(self) -> str:
        """The address without the route that some write: `/chat/completions`, `/completions`, `/generate`."""
        bare = self.address.rstrip("/")
        return next((bare.removesuffix(route) for route in _ROUTES if bare.endswith(route)), bare)

    @property
    def root(self) -> str:
        """The base without `/v1`: where a server has pages beside those of the chat protocol."""
        return self.base.removesuffix(_VERSION)

    def url(self, path: str) -> str:
        """The address of a page.

        A route of the chat protocol (`/v1/chat/completions`, `/v1/models`) stands under the base URL; `/v1` is put
        between only where the base is a host alone. A route that is configured in full is taken as it is.

        Args:
            path (`str`): As a server with a bare host has it: `/v1/chat/completions`, `/generate`, `/info`.

        Example:
            >>> Endpoint("https://host/v1beta/openai").url("/v1/chat/completions")
            'https://host/v1beta/openai/chat/completions'
            >>> Endpoint("http://127.0.0.1:8000").url("/v1/models")
            'http://127.0.0.1:8000/v1/models'
        """
        route = path.removeprefix(_VERSION)
        if route == path:
            return self.root + path
        bare = self.address.rstrip("/")
        if route in _CHAT_ROUTES and bare.endswith(route) and (route != "/completions" or not _is_chat(bare)):
            return bare
        explicit = bool(urlsplit(self.base).path) or bare.endswith(_CHAT_ROUTES)
        return self.base + ("" if explicit else _VERSION) + route

    def asked(self, url: str) -> str:
        """An address with the query parameters of every request."""
        if not self.query:
            return url
        return f"{url}?{urlencode(self.query, quote_via=quote)}"

    @property
    def sent_headers(self) -> Mapping[str, str]:
        """The headers of every request that are this server's own: its key, and the configured ones."""
        own = dict(self.headers)
        if self.key is not None:
            own |= {self.key_header: self.key} if self.key_header else {"authorization": f"Bearer {self.key}"}
        return own

    def clean(self, text: str, limit: int = _EXCERPT) -> str:
        """A short excerpt of foreign text, fit for a terminal, that surely holds no key."""
        words = text
        for secret in self.hidden:
            words = tame(words, None, secret)
        return tame(words, limit)


def _is_chat(address: str) -> bool:
    return address.endswith("/chat/completions")
