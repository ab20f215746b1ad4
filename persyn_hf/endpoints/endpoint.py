"""Address, model and key of one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

from persyn_hf.config import Service, Teacher
from persyn_hf.endpoints.keys import find_key, with_variables
from persyn_hf.text import tame

#: Maximum length of a server's message in an error, in characters.
_EXCERPT = 200
#: Path prefix of the chat protocol's routes, added if the address is only a host.
_VERSION = "/v1"
#: Routes of the chat protocol, and TGI's, that users sometimes append to the base URL.
_CHAT_ROUTES = ("/chat/completions", "/completions")
_ROUTES = (*_CHAT_ROUTES, "/generate")


@dataclass(frozen=True)
class Endpoint:
    """One address of a server: a teacher's, a judge's, a student's or a router's.

    Args:
        address (`str`): Base URL or full route, as configured.
        model (`str`, *optional*): Model that the server should serve.
        key (`str`, *optional*): API key, sent to this address only. Never shown.
        key_name (`str`, *optional*): Source of the key, for errors.
        setting (`str`, defaults to `"endpoint"`): Name of the setting that holds the address, for errors.
        key_header (`str`, *optional*): Header that carries the plain key; defaults to a bearer token.
        headers, query (`tuple[tuple[str, str], ...]`, defaults to none): Additional headers and query parameters of
            every request, with environment variables filled in. Never shown.
        secrets (`tuple[str, ...]`, defaults to none): Values of the environment variables in them.
        options (`str`, *optional*): Path of the sampling settings in the section of this server, for errors.
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
        """Creates the endpoint of a teacher, by default its first, or of a service.

        Args:
            server (`Teacher` or `Service`): Configuration of the server.
            address (`str`, *optional*): One of a teacher's endpoints.
            model (`str`, *optional*): Model that a service should serve.
            setting (`str`, defaults to `"url"`): Name of the setting that holds a service's address.

        Raises:
            ConfigError: If a required key, Hub token or environment variable is missing.
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
        """Secrets that no message may contain, the longest first."""
        return tuple(sorted({*self.secrets, *([self.key] if self.key else [])}, key=len, reverse=True))

    @property
    def base(self) -> str:
        """The address without a trailing route (`/chat/completions`, `/completions` or `/generate`)."""
        bare = self.address.rstrip("/")
        return next((bare.removesuffix(route) for route in _ROUTES if bare.endswith(route)), bare)

    @property
    def root(self) -> str:
        """The base without `/v1`, for pages outside the chat protocol."""
        return self.base.removesuffix(_VERSION)

    def url(self, path: str) -> str:
        """Returns the URL of a page.

        A route of the chat protocol (`/v1/chat/completions`, `/v1/models`) is appended to the base URL; `/v1` is added
        only if the base is a host without a path. A route that is configured in full is used unchanged.

        Args:
            path (`str`): Path relative to the host: `/v1/chat/completions`, `/generate`, `/info`.

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
        """Adds the configured query parameters to a URL."""
        if not self.query:
            return url
        return f"{url}?{urlencode(self.query, quote_via=quote)}"

    @property
    def sent_headers(self) -> Mapping[str, str]:
        """Headers sent with every request to this server: its key and the configured ones."""
        own = dict(self.headers)
        if self.key is not None:
            own |= {self.key_header: self.key} if self.key_header else {"authorization": f"Bearer {self.key}"}
        return own

    def clean(self, text: str, limit: int = _EXCERPT) -> str:
        """Returns a short excerpt of a server's text, safe for a terminal and without secrets."""
        words = text
        for secret in self.hidden:
            words = tame(words, None, secret)
        return tame(words, limit)


def _is_chat(address: str) -> bool:
    return address.endswith("/chat/completions")
