"""The chat client over real sockets, and every fault that a server was seen to make: no row lost, none doubled."""

import asyncio
import collections
import json
import logging
import time

import pytest
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import Completion, Request, UnavailableError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.scheduler import RetryPolicy
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, free_port, http_json, raw_server, serve

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
    assert completion == Completion("user:Hi|seed=7|t=0.5", "stop", 3, 5)
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
    assert [h["authorization"] for h in server.headers] == ["Bearer -", "Bearer hf_secret", "Bearer sk-mine"]


def test_a_redirect_to_another_host_takes_no_key(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    with serve(Double()) as target:
        elsewhere = target.url.replace("127.0.0.1", "localhost") + "/v1/chat/completions"
        with serve(Double(lambda n, body: RedirectResponse(elsewhere, 307))) as server:
            ask(server.url, api_key_env="MY_KEY")
    assert [h.get("authorization") for h in target.headers] == [None]


def test_reasoning_is_not_mixed_into_the_text():
    behave = lambda n, body: JSONResponse(chat_body("four", "length", reasoning_content="2+2 is"))  # noqa: E731
    with serve(Double(behave)) as server:
        assert ask(server.url) == Completion("four", "length", 3, 5)


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
        (lambda n, body: HTMLResponse("<p>hello"), RetryableError, "no chat completion"),
        (lambda n, body: Response('{"choices": [{"mess'), RetryableError, "no chat completion"),
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
        (lambda n, body: JSONResponse(chat_body("x" * (2**24 + 1))), RowError, "16777217 characters"),
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


def test_keys_never_reach_an_error_a_log_or_a_repr(monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    behave = lambda n, body: JSONResponse({"error": "bad key sk-very-secret"}, 400)  # noqa: E731
    with serve(Double(behave)) as server:
        with pytest.raises(RowError, match=r"bad key \*\*\*") as caught:
            ask(server.url, api_key_env="MY_KEY")
        assert caught.value.__cause__ is None
        shown = repr(ChatClient(Teacher(name="t", model="m", endpoint=server.url, api_key_env="MY_KEY")))
    assert "sk-very-secret" not in caplog.text + str(caught.value) + shown


def test_a_missing_key_is_a_configuration_error(monkeypatch):
    monkeypatch.setenv("MY_KEY", "x")
    teacher = Teacher(name="t", model="m", endpoint="http://localhost:1", api_key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        ChatClient(teacher)


def at_first(bad):
    """Every third prompt fails in the given way the first two times."""
    asked = collections.Counter()

    def behave(n, body):
        prompt = body["messages"][0]["content"]
        asked[prompt] += 1
        return bad(n) if int(prompt.split()[1]) % 3 == 0 and asked[prompt] <= 2 else None

    return behave


@pytest.mark.parametrize(
    "bad",
    [
        lambda n: JSONResponse({"error": "full", "error_type": "overloaded"}, 429),
        lambda n: Response(status_code=429, headers={"Retry-After": "0.05"}),
        lambda n: HTMLResponse("<h1>503</h1>", 503),
        lambda n: JSONResponse({"error": "x"}, 500),
        lambda n: Response('{"choices": [{"mess'),
        lambda n: HTMLResponse("<p>captive portal"),
        lambda n: Response('data: {"error":"full","error_type":"overloaded"}\n\n'),
        lambda n: JSONResponse({}),
    ],
)
def test_passing_faults_lose_nothing(bad):
    with serve(Double(at_first(bad))) as server:
        table = generate(server.url)
    assert complete(table)
    assert server.served == 12


@pytest.mark.parametrize(
    ("bad", "attempts", "words"),
    [
        (lambda n: JSONResponse({"error": "no", "error_type": "validation"}, 422), 1, "HTTP 422"),
        (lambda n: JSONResponse({"error": "no", "error_type": "generation"}, 424), 2, "HTTP 424"),
        (lambda n: JSONResponse(chat_body("")), 2, "an empty completion"),
        (lambda n: JSONResponse(chat_body(None)), 2, "no content"),
    ],
)
def test_rows_that_always_fail_carry_their_error(bad, attempts, words):
    behave = lambda n, body: bad(n) if body["messages"][0]["content"] == "prompt 5" else None  # noqa: E731
    with serve(Double(behave)) as server:
        table = generate(server.url)
    failed = [row for row in table if row["error"]]
    assert [row["prompt"] for row in failed] == ["prompt 5"]
    assert words in failed[0]["error"]
    assert len(server.bodies) == 11 + attempts


def test_a_refused_key_stops_the_teacher_and_names_the_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-x")
    with serve(Double(lambda n, body: Response(status_code=401))) as server:
        table = generate(server.url, count=50, api_key_env="MY_KEY")
    assert len(server.bodies) <= 8
    assert all("check MY_KEY" in row["error"] for row in table)


def test_nobody_listens():
    table = generate(f"http://127.0.0.1:{free_port()}", count=30)
    assert all("the teacher is down" in row["error"] and "cannot connect" in row["error"] for row in table)


def answer_of(n):
    return http_json(chat_body(f"answer {n}"))


async def reset(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()


async def hang(writer):
    await asyncio.sleep(30)


async def drip(writer):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n")
    for _ in range(100):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def close_at_once(writer):
    writer.transport.abort()


async def not_http(writer):
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    writer.close()


async def cut_chunks(writer):
    writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"cho')
    await writer.drain()
    writer.close()


@pytest.mark.parametrize("bad", [reset, close_at_once, not_http, cut_chunks, hang, drip])
def test_broken_connections_lose_nothing(bad):
    async def answer(n, writer):
        if n % 5 == 0:
            await bad(writer)
        else:
            writer.write(answer_of(n))

    began = time.monotonic()
    with raw_server(answer) as url:
        table = generate(url, timeout=0.4)
    assert all(row["completion"].startswith("answer") for row in table)
    assert len({row["completion"] for row in table}) == 12
    assert time.monotonic() - began < 10


def test_an_answer_of_a_hundred_megabytes_ends_its_row_only():
    big = http_json(json.dumps(chat_body("x" * 100_000_000)).encode())

    async def answer(n, writer):
        writer.write(big if n == 2 else answer_of(n))

    with raw_server(answer) as url:
        table = generate(url, count=6, timeout=30.0)
    errors = [row["error"] for row in table if row["error"]]
    assert errors == ["the answer has 100000000 characters, more than 16777216"]


def test_a_server_that_dies_and_returns_loses_nothing():
    port = free_port()
    policy = RetryPolicy(base_delay=0.02, max_delay=0.2, down_after=30, down_after_unseen=30)

    async def main():
        return await asyncio.to_thread(generate, f"http://127.0.0.1:{port}", 40, policy)

    async def story():
        run = asyncio.create_task(main())
        with serve(Double(delay=0.05), port):
            await asyncio.sleep(0.25)
        await asyncio.sleep(0.5)
        with serve(Double(), port):
            return await run

    assert complete(asyncio.run(story()))


def test_a_cap_below_the_limit_is_found_and_nothing_is_lost():
    with serve(Double(cap=8, delay=0.01)) as server:
        table = generate(server.url, count=300, max_concurrency=64)
    assert complete(table)
    assert server.served == 300
    assert server.peak == 8
    # One burst at the start, and then ever fewer tries.
    assert server.refused <= 100


def test_more_requests_than_one_pool_has_connections():
    with serve(Double(delay=0.3)) as server:
        table = generate(server.url, count=150, max_concurrency=150, timeout=5.0)
    assert complete(table)
    assert server.peak > 100
