"""Which proxy of the environment an address goes through, and whose key must not."""

import pytest
from huggingface_hub import constants

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.proxies import is_of_the_hub, keep_key_from_proxies, proxy_of
from persyn_hf.errors import ConfigError


@pytest.fixture(autouse=True)
def _one_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("https_proxy", "http://proxy:2")


@pytest.mark.parametrize(
    ("address", "proxy"),
    [
        ("http://models.test/v1", "http://proxy:1"),
        ("https://models.test", "http://proxy:2"),
        ("http://10.0.0.1:8000", "http://proxy:1"),
        ("http://127.0.0.1:8000", None),
        ("http://127.8.8.8", None),
        ("http://[::1]:8000", None),
        ("http://localhost:8000", None),
        ("http://a.localhost", None),
        ("http://localhost.test", "http://proxy:1"),
    ],
)
def test_this_machine_goes_through_none(address, proxy):
    assert proxy_of(address) == proxy


def test_no_proxy_names_hosts_with_and_without_their_ports(monkeypatch):
    monkeypatch.setenv("no_proxy", "models.test,10.0.0.1:8000")
    assert proxy_of("http://models.test:8000") is None
    assert proxy_of("http://sub.models.test") is None
    assert proxy_of("http://10.0.0.1:8000") is None
    assert proxy_of("http://10.0.0.1:8001") == "http://proxy:1"
    keep_key_from_proxies(Endpoint("http://models.test", key="sk-x"))


def test_a_key_over_plain_http_is_refused_and_nothing_else():
    with pytest.raises(ConfigError, match=r"^http://models.test would .* \(MY_KEY\): .* add models.test to NO_PROXY"):
        keep_key_from_proxies(Endpoint("http://models.test", key="sk-x", key_name="MY_KEY"))
    keep_key_from_proxies(Endpoint("http://models.test"))
    keep_key_from_proxies(Endpoint("https://models.test", key="sk-x"))
    keep_key_from_proxies(Endpoint("http://127.0.0.1", key="sk-x"))
    with pytest.raises(ConfigError, match="NO_PROXY"):  # the user's own client may take it for this machine too
        keep_key_from_proxies(Endpoint("http://127.0.0.1", key="sk-x"), own_sessions=True)


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("https://router.huggingface.co/v1", True),
        ("https://huggingface.co/api", True),
        ("https://me-space.hf.space/v1", True),
        ("https://hub.company.test/v1", True),
        ("http://127.0.0.1:8000/v1", False),
        ("http://localhost:8000", False),
        ("http://10.1.2.3:8000/v1", False),
        ("http://gpu-node-7:8000", False),
        ("https://x.eu-west-1.aws.endpoints.huggingface.cloud", False),
        ("https://nothuggingface.co/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_offline_blocks_the_hub_and_nobody_else(monkeypatch, address, blocked):
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.company.test")
    assert is_of_the_hub(address) is blocked


def test_a_hub_on_this_machine_is_not_blocked(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9000")
    assert not is_of_the_hub("http://127.0.0.1:9000/v1")


def test_a_key_in_a_header_or_in_the_query_is_kept_from_a_proxy_too():
    for secret in ({"headers": (("x-key", "k-123"),)}, {"query": (("key", "k-123"),)}):
        with pytest.raises(ConfigError, match=r"can read the key \(of `extra_headers` or `extra_query`\)"):
            keep_key_from_proxies(Endpoint("http://models.test", secrets=("k-123",), **secret))
    keep_key_from_proxies(Endpoint("http://models.test", headers=(("x-title", "mine"),)))
