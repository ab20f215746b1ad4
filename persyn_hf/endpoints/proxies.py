"""The environment's rules for addresses: proxies, keys that a proxy must not read, and `HF_HUB_OFFLINE`."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import ConfigError

#: Domains of the Hub. Inference Endpoints (`huggingface.cloud`) are separate servers.
_HUB = ("huggingface.co", "hf.co", "hf.space")


def proxy_of(address: str) -> str | None:
    """Returns the proxy that the environment names for an address; loopback addresses have none."""
    return None if _is_loopback(urlsplit(address).hostname or "") else _named_for(address)


def keep_key_from_proxies(endpoint: Endpoint, own_sessions: bool = False) -> None:
    """Refuses to send a key over plain HTTP through a proxy, which could read it.

    Args:
        endpoint (`Endpoint`): Endpoint that the key is sent to.
        own_sessions (`bool`, defaults to `False`): Whether the user's own sessions are used, which may use a proxy for
            loopback addresses too.

    Raises:
        ConfigError: If a proxy could read the key; the message names `NO_PROXY`.
    """
    parts = urlsplit(endpoint.address)
    if not endpoint.hidden or parts.scheme == "https":
        return
    if (_named_for if own_sessions else proxy_of)(endpoint.address) is not None:
        named = endpoint.key_name or "of `extra_headers` or `extra_query`"
        raise ConfigError(
            f"{endpoint.address} would be reached through the proxy in HTTP_PROXY, and over plain HTTP a proxy can "
            f"read the key ({named}): use https, or add {parts.hostname} to NO_PROXY."
        )


def is_of_the_hub(address: str) -> bool:
    """Returns whether an address belongs to the Hub, which `HF_HUB_OFFLINE` blocks; loopback addresses never do.

    Example:
        >>> [is_of_the_hub(f"https://{host}/v1") for host in ("router.huggingface.co", "10.0.0.7:8000", "localhost")]
        [True, False, False]
    """
    host = (urlsplit(address).hostname or "").lower().rstrip(".")
    if _is_loopback(host):
        return False
    named = (urlsplit(constants.ENDPOINT).hostname or "").lower()
    return host == named or any(host == hub or host.endswith(f".{hub}") for hub in _HUB)


def _named_for(address: str) -> str | None:
    parts = urlsplit(address)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
