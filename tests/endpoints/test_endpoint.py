"""Addresses as they are written, and what of an endpoint is never shown."""

import pytest

from persyn_hf.config import Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.keys import require_keys
from persyn_hf.endpoints.server import server_name
from persyn_hf.errors import ConfigError

CHAT, MODELS, COMPLETIONS = "/v1/chat/completions", "/v1/models", "/v1/completions"


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("http://h/v1", "http://h/v1"),
        ("http://h/v1/", "http://h/v1"),
        ("https://g/v1beta/openai", "https://g/v1beta/openai"),
        ("https://z/api/paas/v4/", "https://z/api/paas/v4"),
        ("https://d/v1/openai", "https://d/v1/openai"),
        ("https://d/serving-endpoints", "https://d/serving-endpoints"),
        ("https://a/openai/deployments/gpt-4o", "https://a/openai/deployments/gpt-4o"),
        ("https://a/openai/v1", "https://a/openai/v1"),
        ("https://o/api/v1", "https://o/api/v1"),
        ("https://c/compatible-mode/v1", "https://c/compatible-mode/v1"),
        ("https://p", "https://p/v1"),
        ("http://h/chat", "http://h/chat"),
    ],
)
def test_a_base_is_taken_as_it_stands_and_a_host_alone_has_a_version(given, base):
    endpoint = Endpoint(given)
    assert endpoint.url(CHAT) == f"{base}/chat/completions"
    assert endpoint.url(MODELS) == f"{base}/models"
    assert endpoint.url(COMPLETIONS) == f"{base}/completions"


@pytest.mark.parametrize(
    "base",
    ["http://h", "http://h/v1", "https://g/v1beta/openai", "https://z/api/paas/v4", "https://d/serving-endpoints"],
)
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_full_route_is_taken_as_it_is(base, slash):
    chat = Endpoint(f"{base}/chat/completions{slash}")
    assert chat.url(CHAT) == f"{base}/chat/completions"
    assert chat.url(MODELS) == f"{base}/models"
    assert chat.url(COMPLETIONS) == f"{base}/completions"
    completions = Endpoint(f"{base}/completions{slash}")
    assert completions.url(COMPLETIONS) == f"{base}/completions"
    assert completions.url(CHAT) == f"{base}/chat/completions"


@pytest.mark.parametrize("given", ["http://h:8080", "http://h:8080/generate", "http://h:8080/v1", "http://h:8080/v1/"])
def test_pages_of_the_server_itself_stand_beside_the_version(given):
    assert Endpoint(given).url("/generate") == "http://h:8080/generate"
    assert Endpoint(given).url("/info") == "http://h:8080/info"
    assert server_name(given) == "http://h:8080"


def test_the_query_is_put_behind_every_address_and_escaped():
    endpoint = Endpoint("https://a/openai/deployments/x", query=(("api-version", "2024-10-21"), ("a b", "c&d/é")))
    asked = endpoint.asked(endpoint.url(CHAT))
    assert asked == "https://a/openai/deployments/x/chat/completions?api-version=2024-10-21&a%20b=c%26d%2F%C3%A9"
    assert Endpoint("http://h").asked("http://h/v1/models") == "http://h/v1/models"


def _teacher(**settings):
    return Teacher(name="t", model="m", endpoint="https://host", **settings)


def test_headers_carry_the_values_of_variables_and_nothing_shows_them(monkeypatch):
    monkeypatch.setenv("MY_KEY", "key-123456789")
    monkeypatch.setenv("MY_ORG", "org-987654321\r\n")
    teacher = _teacher(
        api_key_env="MY_KEY",
        api_key_header="api-key",
        extra_headers={"x-org": "id ${MY_ORG}"},
        extra_query={"o": "${MY_ORG}"},
    )
    endpoint = Endpoint.of(teacher)
    assert dict(endpoint.sent_headers) == {"x-org": "id org-987654321", "api-key": "key-123456789"}
    assert endpoint.asked("https://host/v1") == "https://host/v1?o=org-987654321"
    shown = repr(endpoint) + endpoint.clean("you sent org-987654321 and key-123456789") + repr(teacher)
    assert "987654321" not in shown and "123456789" not in shown
    assert dict(Endpoint.of(_teacher(api_key_env="MY_KEY")).sent_headers) == {"authorization": "Bearer key-123456789"}


def test_variables_that_are_missing_are_told_together_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("NO_A", raising=False)
    monkeypatch.setenv("NO_B", "a\nb")
    teacher = _teacher(extra_headers={"x-a": "${NO_A}"}, extra_query={"b": "${NO_B}"})
    with pytest.raises(ConfigError, match="NO_A is not set"):
        Endpoint.of(teacher)
    with pytest.raises(ConfigError) as caught:
        require_keys([("teachers", (teacher,))], "run.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("run.yaml: `teachers[0].extra_headers.x-a`: the environment variable NO_A is not set")
    assert lines[1].startswith(
        "run.yaml: `teachers[0].extra_query.b`: the environment variable NO_B contains a line break"
    )
