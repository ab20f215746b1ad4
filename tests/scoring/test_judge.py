"""A judge behind a chat endpoint: what it is asked, how strictly it is read, and what it did not say."""

import pytest
from datasets import Dataset
from starlette.responses import JSONResponse

from persyn_hf.errors import ConfigError, RequestError, ScoringError
from persyn_hf.scoring.judge import parse_score
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.score import score
from tests.scoring.servers import Judge, serve

BATCH = {
    "prompt": ["Name a colour.", [{"role": "user", "content": "And {{ another }}?"}], "x", "y"],
    "completion": ["red", "blue", None, "I refuse"],
    "answer": ["green", None, None, None],
}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("7", 7.0), (" 10\n", 10.0), ("7.5", 7.5), ("Good.\n\nScore: 3", 3.0), ("**Rating: 9/10**", 9.0),
        ("[[4]]", 4.0), ("**Score:** 8", 8.0), ("1 / 10", 1.0),
    ],
)  # fmt: skip
def test_scores(reply, expected):
    assert parse_score(reply) == expected


@pytest.mark.parametrize("reply", ["", "0", "11", "10.5", "7 or 8", "Score: 7\nbut wait", "-3", "seven", "8/5", "100"])
def test_what_is_no_score(reply):
    with pytest.raises(RequestError, match="not a score from 1 to 10"):
        parse_score(reply)


def test_scores_errors_and_what_was_asked(monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    double = Judge(
        reply=lambda text: "That is a matter of taste." if "I refuse" in text else f"Nice.\n{len(text) % 9 + 1}"
    )
    with serve(double) as url:
        found = persyn_quality(BATCH, judge={"url": url, "model": "judge-1", "max_concurrency": 1})
    texts = [body["messages"][-1]["content"] for body in double.bodies]
    assert found["quality"] == [len(texts[0]) % 9 + 1, len(texts[1]) % 9 + 1, None, None]
    assert found["quality_error"][:3] == [None] * 3
    assert found["quality_error"][3] == "the judge's reply is not a score from 1 to 10: 'That is a matter of taste.'"
    assert "1 of 3 answers got no score" in caplog.text
    assert "Name a colour." in texts[0] and "[Reference answer]\ngreen\n" in texts[0]
    assert "And {{ another }}?" in texts[1] and "Reference" not in texts[1]
    assert {body["model"] for body in double.bodies} == {"judge-1"}
    assert {headers.get("authorization") for headers in double.headers} == {None}


def test_a_template_of_the_users():
    double = Judge()
    with serve(double) as url:
        judge = {"url": url, "model": "m", "template": "Q {{ prompt }} A {{ completion }} R {{ answer }}"}
        found = persyn_quality({"prompt": "p", "completion": "c", "answer": "r"}, judge=judge)
        assert found == {"quality": 7.0, "quality_error": None}
        assert double.bodies[0]["messages"] == [{"role": "user", "content": "Q p A c R r"}]
        for wrong in ("{{ promt }}", "{% if %}"):
            with pytest.raises(ConfigError, match=r"judge\.template.*Jinja template over `prompt`"):
                persyn_quality({"prompt": "p", "completion": "c"}, judge=judge | {"template": wrong})


def test_a_refused_row_is_an_error_of_the_row_and_a_refused_key_of_all():
    double = Judge()
    double.behave = lambda count, body: JSONResponse({"error": "too long"}, 422) if count == 1 else None
    with serve(double) as url:
        found = persyn_quality(BATCH, judge={"url": url, "model": "m", "max_concurrency": 1})
        assert found["quality"] == [None, 7.0, None, 7.0]
        assert "HTTP 422" in found["quality_error"][0] and "too long" in found["quality_error"][0]
        double.behave = lambda count, body: JSONResponse({"error": "who?"}, 401)
        with pytest.raises(ScoringError, match="refused the key"):
            persyn_quality(BATCH, judge={"url": url, "model": "m"})


def test_retries_with_what_the_server_asks_to_wait():
    double = Judge()
    double.behave = lambda count, body: (
        JSONResponse({}, 503, headers={"Retry-After": "0.1"})
        if count == 1
        else JSONResponse([])
        if count == 2
        else None
    )
    with serve(double) as url:
        row = {"prompt": "p", "completion": "c"}
        assert persyn_quality(row, judge={"url": url, "model": "m"})["quality"] == 7.0
        double.behave = lambda count, body: JSONResponse({"error": "busy"}, 503)
        found = persyn_quality(row, judge={"url": url, "model": "m", "attempts": 2})
    assert found["quality"] is None and "HTTP 503" in found["quality_error"]
    assert len(double.bodies) == 5


def test_score_keeps_the_error_and_gives_no_reward(llama):
    rows = {"prompt_id": ["a", "a", "a"], "teacher": ["t1", "t2", "t3"], "prompt": ["hello"] * 3}
    answers = Dataset.from_dict(rows | {"completion": ["hello", "hell", "the"]})
    double = Judge(
        reply=lambda text: {"hello": "9", "hell": "oh", "the": "2"}[text.split("[Response]\n")[1].split("\n")[0]]
    )
    with serve(double) as url:
        scored = score(answers, llama, {"judge": {"url": url, "model": "m"}}, alpha=0.0, progress=False)
    assert scored["quality"][:] == [9.0, None, 2.0]
    assert scored["reward"][:] == [1.0, None, 0.0]
    assert "'oh'" in scored["quality_error"][1]


class Saying(Judge):
    """A judge that says the words of a whole choice."""

    choice: dict = {}  # noqa: RUF012 - set for each test

    def chat(self, body):
        return JSONResponse({"choices": [{"index": 0, "finish_reason": "stop", **self.choice}]})


@pytest.mark.parametrize(
    ("text", "quality"), [("Score: 1", None), ("Score: 7.", None), ("Score: 10", 10.0), ("Score: 8/10", 8.0)]
)
def test_a_cut_reply_may_end_within_its_number(text, quality):
    double = Saying()
    double.choice = {"finish_reason": "length", "message": {"content": f"Good.\n{text}"}}
    with serve(double) as url:
        found = persyn_quality({"prompt": "p", "completion": "c"}, judge={"url": url, "model": "m"})
    assert found["quality"] == quality
    assert (found["quality_error"] is None) == (quality is not None)
    if quality is None:
        assert found["quality_error"].startswith("the judge's reply may end within its score; raise")


def test_a_judge_that_refuses_is_quoted():
    double = Saying()
    double.choice = {"message": {"content": None, "refusal": "I rate no weapons."}}
    with serve(double) as url:
        found = persyn_quality({"prompt": "p", "completion": "c"}, judge={"url": url, "model": "m"})
    assert found["quality_error"] == "the judge's reply is not a score from 1 to 10: 'I rate no weapons.'"
