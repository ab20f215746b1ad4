"""A server that scores and refuses for load, or is gone for a while: how long it is waited for."""

import json
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from persyn_hf.config import Judge, RunConfig
from persyn_hf.doctor.servers import check_services
from persyn_hf.endpoints import requests
from persyn_hf.errors import ScoringError
from persyn_hf.scoring.judge import judge_answers
from tests.generation.servers import chat_body, serve_app


class Window:
    """A judge whose requests are used up for a while, after so many answers."""

    def __init__(self, first: int, seconds: float, status: int = 429, **headers: str) -> None:
        self.first, self.seconds, self.status, self.headers = first, seconds, status, headers
        self.asked = self.answered = 0
        self.since: float | None = None
        self.seen: list[dict[str, str]] = []
        self.queries: list[str] = []

    def app(self) -> Starlette:
        async def chat(request):
            self.asked += 1
            body = await request.json()
            if self.answered >= self.first:
                self.since = self.since or time.monotonic()
                if time.monotonic() - self.since < self.seconds:
                    headers = {name.replace("_", "-"): value for name, value in self.headers.items()}
                    return JSONResponse({"error": {"message": "used up"}}, self.status, headers=headers)
            self.answered += 1
            return JSONResponse(chat_body("7", model=body["model"]))

        async def models(request):
            self.seen.append(dict(request.headers))
            self.queries.append(request.url.query)
            return JSONResponse({"data": [{"id": "org/served-under-another-name"}]})

        return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), Route("/v1/models", models)])


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(requests, "_FIRST_PAUSE", 0.01)


def judged(window, count, **settings):
    with serve_app(window.app()) as url:
        judge = Judge(url=url, model="m", max_concurrency=4, **settings)
        texts = [f"answer {n}" for n in range(count)]
        return judge_answers(judge, ["hello"] * count, texts, [None] * count)


@pytest.mark.parametrize(
    ("first", "status", "headers"),
    [(3, 429, {"retry_after": "0.4"}), (3, 429, {}), (0, 429, {}), (0, 529, {}), (3, 503, {}), (3, 502, {})],
    ids=["told", "not told", "from the start", "overloaded", "restarted", "behind a gateway"],
)
def test_a_window_that_is_used_up_loses_no_score(first, status, headers):
    window = Window(first, 0.3, status, **headers)
    assert judged(window, 12, attempts=1) == [7.0] * 12
    assert window.answered == 12


def test_a_judge_that_stays_refused_for_load_is_given_up():
    began = time.monotonic()
    with pytest.raises(ScoringError, match="used up"):
        judged(Window(0, 60), 12, attempts=2, down_after=0.3)
    assert time.monotonic() - began < 5


def test_one_that_never_answered_and_is_gone_is_not_waited_for():
    window = Window(0, 60, 503)
    with pytest.raises(ScoringError, match="HTTP 503"):
        judged(window, 9, attempts=2)
    assert window.asked <= 18


def configured(tmp_path, **judge):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt": "q"}) + "\n")
    return RunConfig.from_dict(
        {
            "output_dir": str(tmp_path / "run"),
            "prompts": {"source": str(prompts)},
            "teachers": [{"name": n, "model": n, "endpoint": "http://127.0.0.1:9"} for n in ("a", "b")],
            "student": {"model": "s"},
            "quality": {"judge": {"model": "gpt-oss", **judge}},
            "router": {"backbone": "b"},
        }
    )


def test_a_judge_that_is_not_listed_is_named_as_a_judge(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "a-key")
    window = Window(0, 60, status=404)
    reached = {
        "api_key_env": "JUDGE_KEY",
        "api_key_header": "api-key",
        "extra_headers": {"x-title": "mine"},
        "extra_query": {"api-version": "2"},
    }
    with serve_app(window.app()) as url:
        (found,) = check_services(configured(tmp_path, url=url, **reached), "q")
        assert (found.state, found.key) == ("fail", "quality.judge.url")
        assert "the judge `gpt-oss` (`quality.judge`)" in found.message
        assert "`org/served-under-another-name`" in found.message and "`preflight: false`" in found.message
        assert "teacher" not in found.message and "used up" in found.message  # what it said when asked by that name
        assert window.seen[0]["api-key"] == "a-key" and "authorization" not in window.seen[0]
        assert window.seen[0]["x-title"] == "mine"
        assert window.queries[0] == "api-version=2"
        asked = len(window.seen)
        (found,) = check_services(configured(tmp_path, url=url, preflight=False, **reached), "q")
        assert found.state == "note" and len(window.seen) == asked


def test_a_judge_that_answers_under_a_name_that_is_not_listed_is_taken(tmp_path):
    window = Window(0, 0)
    with serve_app(window.app()) as url:
        (found,) = check_services(configured(tmp_path, url=url), "q")
    assert (found.state, window.asked, window.answered) == ("ok", 1, 1)


def test_a_judge_without_its_key_is_named_as_a_judge(tmp_path, monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    (found,) = check_services(configured(tmp_path, url="http://127.0.0.1:9", api_key_env="JUDGE_KEY"), "q")
    assert "the judge `gpt-oss`" in found.message and "JUDGE_KEY" in found.message and "teacher" not in found.message
