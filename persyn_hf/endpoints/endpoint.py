"""Where a teacher is asked and in whose name: address, model and key of one endpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from huggingface_hub import get_token

from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError

#: Longest excerpt of a server's own words in an error.
_EXCERPT = 200


@dataclass(frozen=True)
class Endpoint:
    """One address of a teacher.

    Args:
        address (`str`): Base URL, as configured.
        model (`str`): What it is to serve.
        key (`str`, *optional*): Sent as a bearer token to this address and nowhere else. Never shown.
        key_name (`str`, *optional*): Where the key comes from, for errors.
    """

    address: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None

    @classmethod
    def of(cls, teacher: Teacher, address: str | None = None) -> Endpoint:
        """One endpoint of a teacher, by default its first.

        Raises:
            ConfigError: If the teacher wants a key or the Hub token and there is none.
        """
        name = teacher.api_key_env or ("the Hugging Face token" if teacher.use_hub_token else None)
        return cls(address or teacher.endpoints[0], teacher.model, _key(teacher), name)

    @property
    def root(self) -> str:
        """The address without the route that some write: `/v1`, `/v1/chat/completions`, `/generate`."""
        bare = self.address.rstrip("/").removesuffix("/generate")
        return bare.removesuffix("/chat/completions").removesuffix("/v1")

    def url(self, path: str) -> str:
        """The address of a route, such as `/v1/chat/completions` or `/info`."""
        return self.root + path

    def clean(self, text: str) -> str:
        """A short excerpt of foreign text that surely holds no key."""
        shown = " ".join(text.split())
        if self.key:
            shown = shown.replace(self.key, "***")
        return shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…"


def _key(teacher: Teacher) -> str | None:
    if teacher.use_hub_token:
        token = get_token()
        if not token:
            raise ConfigError(
                f"teacher `{teacher.name}`: `use_hub_token` is set but there is no token; run `hf auth login`."
            )
        return token
    if teacher.api_key_env is None:
        return None
    key = os.environ.get(teacher.api_key_env)
    if not key:
        raise ConfigError(f"teacher `{teacher.name}`: the environment variable {teacher.api_key_env} is not set.")
    return key
