"""The chat client over real sockets, and every fault that a server was seen to make: no row lost, none doubled."""

import asyncio

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import Completion, Request, UnavailableError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.scheduler import RetryPolicy
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=0.5, down_after_unseen=0.3)
REQUEST = Request("p", ({"role": "user", "content": "Hi"},), Sampling(temperature=0.5, max_tokens=9, stop=("x",)), 7)


def ask(url, request=REQUEST, **settings):
    async def main():
        client = ChatClient(Teacher(name="t", model="org/m", endpoint=url, **settings))
        try:
            return await client.complete(request)
        finally:
            await client.aclose()

    return asyncio.run(main())


def generate(url, count=12, policy=FAST, **settings):
    teacher = {"name": "t", "model": "m", "endpoint": url, "timeout": 2.0, "max_concurrency": 4, **settings}
    table = generate_parallel([f"prompt {n}" for n in range(count)], [teacher], progress=False, policy=policy)
    assert len(table) == count
    for row in table:
        assert (row["completion"] is None) != (row["error"] is None)
        assert row["completion"] != ""
    return table


def complete(table):
    return all(row["completion"].startswith("user:" + row["prompt"] + "|") for row in table)


def test_sends_what_is_configured_and_reads_the_answer():
    with serve(Double()) as server:
        completion = ask(server.url)
    assert completion == Completion("user:Hi|seed=7|t=0.5", "stop", 3, 5, usage_source="server")
    assert server.bodies[0] == {
        "model": "org/m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0.5,
        "stop": ["x"], "seed": 7, "stream": False,
    }  # fmt: skip


def test_the_hub_token_is_sent_only_when_the_teacher_says_so(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    with serve(Double()) as server:
        ask(server.url)
        ask(server.url, use_hub_token=True)
        ask(server.url, api_key_env="MY_KEY")
    assert [h.get("authorization") for h in server.headers] == [None, "Bearer hf_secret", "Bearer sk-mine"]


def test_reasoning_is_not_mixed_into_the_text():
    behave = lambda n, body: JSONResponse(chat_body("four", "length", reasoning_content="2+2 is"))  # noqa: E731
    with serve(Double(behave)) as server:
        assert ask(server.url) == Completion("four", "length", 3, 5, "2+2 is", "server")


def error(status, kind, text="words"):
    return lambda n, body: JSONResponse({"error": text, "error_type": kind}, status)


@pytest.mark.parametrize(
    ("behave", "expected", "words"),
    [
        (error(422, "validation"), RowError, r"HTTP 422 \(validation\): words"),
        (error(422, "template_error"), RowError, "template_error"),
        (error(400, None), RowError, "HTTP 400: words"),
        (error(424, "generation"), RetryableError, r"HTTP 424 \(generation\)"),
        (error(500, "incomplete_generation"), RetryableError, "incomplete_generation"),
        (error(503, "healthcheck"), UnavailableError, "HTTP 503"),
        (lambda n, body: HTMLResponse("<h1>Bad gateway</h1>", 503), UnavailableError, "^HTTP 503$"),
        (lambda n, body: Response(status_code=401), TeacherDownError, "refused the key.*set `api_key_env`"),
        (lambda n, body: Response(status_code=404), TeacherDownError, "does not serve `org/m`"),
        (lambda n, body: HTMLResponse("<p>hello"), RetryableError, "no completion"),
        (lambda n, body: Response('{"choices": [{"mess'), RetryableError, "no completion"),
        (lambda n, body: JSONResponse([1, 2]), RetryableError, "no c"),
        (lambda n, body: JSONResponse({"choices": []}), RetryableError, "no choices"),
        (lambda n, body: JSONResponse(chat_body("")), RetryableError, "an empty completion"),
        (lambda n, body: JSONResponse(chat_body(None)), RetryableError, "no content"),
        (
            lambda n, body: Response('data: {"error":"full","error_type":"overloaded"}\n\n'),
            RetryableError, r"error event in a stream \(overloaded\): full",
        ),
        (
            lambda n, body: Response('data: {"error":{"message":"no","type":"validation"}}\n\n'),
            RowError, r"\(validation\): no",
        ),
        (lambda n, body: JSONResponse(chat_body("x" * (2**24 + 1))), RowError, "longer than 16777216 bytes"),
    ],
)  # fmt: skip
def test_errors_by_kind(behave, expected, words):
    with serve(Double(behave)) as server, pytest.raises(expected, match=words) as caught:
        ask(server.url)
    assert type(caught.value) is expected


def test_attempts_and_load_by_kind():
    with serve(Double(error(429, "overloaded"))) as server, pytest.raises(RetryableError) as caught:
        ask(server.url)
    assert caught.value.overloaded
    with serve(Double(error(424, "generation"))) as server, pytest.raises(RetryableError) as caught:
        ask(server.url)
    assert (caught.value.attempts, caught.value.overloaded) == (2, False)
    behave = lambda n, body: Response(status_code=429, headers={"Retry-After": "1.5"})  # noqa: E731
    with serve(Double(behave)) as server, pytest.raises(RetryableError) as caught:
        ask(server.url)
    assert caught.value.retry_after == 1.5


def test_a_missing_key_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("MY_KEY", "x")
    teacher = Teacher(name="t", model="m", endpoint="http://localhost:1", api_key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        ChatClient(teacher)
