"""Where a server is asked and in whose name: address, model and key of one endpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from persyn_hf.config import Service, Teacher
from persyn_hf.endpoints.keys import find_key
from persyn_hf.text import tame

#: Longest excerpt of a server's own words in an error.
_EXCERPT = 200
#: Routes that some write behind the base URL.
_ROUTES = ("/generate", "/chat/completions", "/completions", "/v1")


@dataclass(frozen=True)
class Endpoint:
    """One address of a server: a teacher's, a judge's, a student's or a router's.

    Args:
        address (`str`): Base URL, as configured.
        model (`str`, *optional*): What it is to serve.
        key (`str`, *optional*): Sent as a bearer token to this address and nowhere else. Never shown.
        key_name (`str`, *optional*): Where the key comes from, for errors.
        setting (`str`, defaults to `"endpoint"`): What the address is called where it is configured, for errors.
    """

    address: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    setting: str = "endpoint"

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
            ConfigError: If a key or the Hub token is wanted and there is none.
        """
        if isinstance(server, Teacher):
            address, model, setting = address or server.endpoints[0], server.model, "endpoint"
            needed_by = f"teacher `{server.name}`"
        else:
            address = needed_by = server.url
        key = find_key(server.api_key_env, server.use_hub_token, needed_by)
        named = server.api_key_env or ("the Hugging Face token" if server.use_hub_token else None)
        return cls(address.rstrip("/"), model, key, named, setting)

    @property
    def root(self) -> str:
        """The address without the route that some write: `/v1`, `/v1/chat/completions`, `/generate`."""
        bare = self.address.rstrip("/")
        for route in _ROUTES:
            bare = bare.removesuffix(route)
        return bare

    def url(self, path: str) -> str:
        """The address of a route, such as `/v1/chat/completions` or `/info`."""
        return self.root + path

    def clean(self, text: str, limit: int = _EXCERPT) -> str:
        """A short excerpt of foreign text, fit for a terminal, that surely holds no key."""
        return tame(text, limit, self.key)
