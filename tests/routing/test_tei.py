"""`persyn_route` through a server that speaks Text Embeddings Inference's `/predict`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from persyn_hf import PersynRouter, persyn_route, pin_router
from persyn_hf.errors import ConfigError, DataError, RouterCheckpointError, RouterError, RouterMismatchError
from persyn_hf.routing import tei as endpoint
from tests.generation.servers import serve_app
from tests.routing.tei_server import TeiDouble, served

TEXTS = [f"{topic} {topic} sea {number}" for number in range(6) for topic in ("code", "poem")]


@pytest.fixture
def double(router_folder: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[TeiDouble]:
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 0.02)
    with served(TeiDouble(PersynRouter.from_pretrained(router_folder))) as server:
        yield server


def test_the_same_routes_and_scores_as_in_this_process(double: TeiDouble, router_folder: str) -> None:
    prompts = Dataset.from_dict({"prompt": TEXTS})
    here = prompts.map(persyn_route, batched=True, fn_kwargs=pin_router(router_folder))
    there = prompts.map(persyn_route, batched=True, fn_kwargs={"endpoint": double.url})
    assert there["route"][:] == here["route"][:] and set(here["route"]) == {"alpha", "beta"}
    np.testing.assert_allclose(there["route_scores"][:], here["route_scores"][:], atol=1e-4)
    assert str(there.features["route_scores"]) == "List(Value('float32'))"
    assert [len(body["inputs"]) for body, _ in double.seen] == [4, 4, 4]
    assert all(body["raw_scores"] and body["truncate"] for body, _ in double.seen)
    one = persyn_route({"prompt": [{"role": "user", "content": TEXTS[0]}]}, endpoint=double.url + "/")
    assert one["route"] == here["route"][0]
    two = persyn_route({"q": TEXTS[:2]}, endpoint=double.url, prompt_column="q")  # two texts are no pair
    assert two["route"] == here["route"][:2]


def test_a_pinned_router_is_the_one_that_is_served(double: TeiDouble, router_folder: str, tmp_path) -> None:
    pinned = pin_router(router_folder, endpoint=double.url)
    assert persyn_route({"prompt": TEXTS[0]}, **pinned)["route"] == "alpha"
    assert Hasher.hash(pinned) == Hasher.hash(pin_router(router_folder, endpoint=double.url))
    double.sha = "1" * 40
    endpoint._describe_once.cache_clear()
    with pytest.raises(RouterCheckpointError, match="1111"):
        persyn_route({"prompt": "code"}, endpoint=double.url, revision="2" * 40)
    double.sha, double.kind = None, "embedding"
    endpoint._describe_once.cache_clear()
    with pytest.raises(RouterError, match="must serve a sequence classifier"):
        persyn_route({"prompt": "code"}, endpoint=double.url)
    endpoint._describe_once.cache_clear()


def test_labels_of_another_router_are_refused(double: TeiDouble, tiny_bert: str, tmp_path) -> None:
    from persyn_hf import train_router
    from tests.routing.conftest import make_scored

    renamed = make_scored(40).map(lambda row: {"teacher": row["teacher"].upper()})
    train_router(renamed, tiny_bert, "s", tmp_path / "other", fallback="none")
    with pytest.raises(RouterMismatchError, match="ALPHA"):
        persyn_route({"prompt": "code"}, endpoint=double.url, router=str(tmp_path / "other"))


def test_passing_failures_are_retried_and_others_not(double: TeiDouble) -> None:
    double.failures = [429, 503, 424]
    assert persyn_route({"prompt": TEXTS[0]}, endpoint=double.url)["route"] == "alpha"
    assert len(double.seen) == 4
    double.seen.clear()
    double.failures = [422]
    with pytest.raises(DataError, match=r"HTTP 422.*said by the server"):
        persyn_route({"prompt": TEXTS[0]}, endpoint=double.url)
    assert len(double.seen) == 1
    double.failures = [503] * 20
    with pytest.raises(RouterError, match="HTTP 503"):
        persyn_route({"prompt": TEXTS[0]}, endpoint=double.url)
    assert len(double.seen) == 1 + 6


def test_only_the_named_key_is_sent(double: TeiDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    persyn_route({"prompt": "code"}, endpoint=double.url)
    assert "authorization" not in double.seen[-1][1]
    double.key = "sesame"
    with pytest.raises(RouterError, match="refused the key"):
        persyn_route({"prompt": "code"}, endpoint=double.url)
    monkeypatch.setenv("ROUTER_KEY", "sesame")
    assert persyn_route({"prompt": TEXTS[0]}, endpoint=double.url, api_key_env="ROUTER_KEY")["route"] == "alpha"
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        persyn_route({"prompt": "code"}, endpoint=double.url, api_key_env="NO_SUCH_KEY")


def test_wrong_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_LONGEST_PAUSE", 0.02)
    with pytest.raises(ConfigError, match="base URL"):
        persyn_route({"prompt": "code"}, endpoint="localhost:8080")
    with pytest.raises(RouterError, match="cannot be reached"):
        persyn_route({"prompt": "code"}, endpoint="http://127.0.0.1:9")


def test_what_a_served_router_would_ignore_is_refused(double: TeiDouble) -> None:
    for option, value in (("device", "cpu"), ("dtype", "float32")):
        with pytest.raises(ConfigError, match=f"`{option}` is for a router in this process"):
            persyn_route({"prompt": TEXTS[0]}, endpoint=double.url, **{option: value})
    with pytest.raises(ConfigError, match="`api_key_env` is the key of a server"):
        persyn_route({"prompt": TEXTS[0]}, router="org/router", api_key_env="SOME_KEY")
    with pytest.raises(ConfigError, match="`extra_query` is for a router behind a server"):
        pin_router("org/router", extra_query={"api-version": "2"})
    with pytest.raises(RouterCheckpointError, match=r"does not report which commit it serves.*pass `router` too"):
        persyn_route({"prompt": TEXTS[0]}, endpoint=double.url, revision="2" * 40)


def test_a_gateway_in_front_gets_its_own_headers_and_query(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def answer(request: Request) -> JSONResponse:
        sent = {name: request.headers.get(name) for name in ("api-key", "x-team", "authorization")}
        asked.append((request.url.path, request.url.query, sent))
        if request.url.path == "/info":
            labels = {"id2label": {"0": "alpha", "1": "beta"}}
            return JSONResponse({"model_type": {"classifier": labels}, "max_client_batch_size": 4})
        return JSONResponse([[{"label": "alpha", "score": 0.1}, {"label": "beta", "score": 0.9}]])

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    monkeypatch.setenv("GATE_KEY", "sesame")
    monkeypatch.setenv("TEAM", "blue")
    reached = {
        "api_key_env": "GATE_KEY",
        "api_key_header": "api-key",
        "extra_headers": {"x-team": "${TEAM}"},
        "extra_query": {"api-version": "3"},
    }
    with serve_app(app) as url:
        assert persyn_route({"prompt": "code"}, endpoint=url, **reached)["route"] == "beta"
    sent = {"api-key": "sesame", "x-team": "blue", "authorization": None}
    assert asked == [("/info", "api-version=3", sent), ("/predict", "api-version=3", sent)]
