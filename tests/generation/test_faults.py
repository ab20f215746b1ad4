"""Every fault that a server was seen to make, over real sockets and in both protocols: no row lost, none doubled."""

import asyncio
import datetime
import time

import pytest

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import ConfigError, TeacherError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.generation.run import endpoint_client
from tests.generation import faulty as f
from tests.generation.servers import free_port

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=1.0, down_after_unseen=0.3)
COUNT = 12


@pytest.fixture(params=["chat", "tgi"])
def api(request):
    return request.param


def generate(server, count=COUNT, policy=FAST, **settings):
    teacher = {
        "name": "t", "model": server.model, "endpoint": server.url, "api": server.api, "timeout": 2.0,
        "max_concurrency": 4, "sampling": {"max_tokens": 16}, **settings,
    }  # fmt: skip
    table = generate_parallel([f"prompt {n}" for n in range(count)], [teacher], progress=False, policy=policy)
    assert table["prompt"][:] == [f"prompt {n}" for n in range(count)]
    for row in table:
        assert (row["completion"] is None) != (row["error"] is None)
        assert row["completion"] is None or row["completion"] == f"answer to {row['prompt']}"
    return table


def is_complete(table):
    return not any(table["error"])


def at_first(fault, times=2):
    """Every third prompt fails in the given way the first two times that it is asked."""
    return lambda n, prompt, attempt: fault if int(prompt.split()[1]) % 3 == 0 and attempt <= times else None


def dated():
    """A `Retry-After` that is a date long ago, but not to the server."""
    date = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return f.status("429 Too Many Requests", "", retry_after=date, date=date)


@pytest.mark.parametrize(
    "fault",
    [
        f.error("429 Too Many Requests", "overloaded"),
        f.status("429 Too Many Requests", "", retry_after="0.05"),
        dated(),
        f.status("503 Service Unavailable", "<h1>503</h1>", "text/html"),
        f.error("503 Service Unavailable", "healthcheck"),
        f.status("502 Bad Gateway", "<h1>nginx</h1>", "text/html"),
        f.error("500 Internal Server Error", "internal"),
        f.status("200 OK", "<p>captive portal</p>", "text/html"),
        f.status("200 OK", "{}"),
        f.status("200 OK", "[1, 2]"),
        f.status("200 OK", '{"choices": [{"mess'),
        f.status("200 OK", 'data: {"error":"full","error_type":"overloaded"}\n\n', "text/event-stream"),
        f.truncated_json,
        f.deep_json,
        f.reset_in_the_middle,
        f.reset_at_once,
        f.no_http,
        f.cut_chunks,
    ],
    ids=[
        "429", "429 and seconds to wait", "429 and a date", "503 page", "503", "502 page", "500", "page under 200",
        "empty object", "list", "malformed JSON", "SSE error under 200", "truncated JSON", "deep JSON",
        "reset in the middle", "reset at once", "no HTTP", "cut chunks",
    ],
)  # fmt: skip
def test_passing_faults_lose_nothing_and_double_nothing(api, fault, tiny_lm):
    with f.faulty(f.Faulty(api, str(tiny_lm), at_first(fault))) as server:
        table = generate(server)
    assert is_complete(table)
    assert server.answered == {f"prompt {n}": 1 for n in range(COUNT)}
    assert set(server.asked.values()) == {1, 3}


@pytest.mark.parametrize("fault", [f.hang, f.slow_drip], ids=["hang", "slow drip"])
def test_what_never_ends_is_ended(api, fault, tiny_lm):
    began = time.monotonic()
    with f.faulty(f.Faulty(api, str(tiny_lm), at_first(fault, times=1))) as server:
        table = generate(server, timeout=0.3)
    assert is_complete(table)
    assert server.answered == {f"prompt {n}": 1 for n in range(COUNT)}
    assert time.monotonic() - began < 15


def test_the_right_answer_under_the_wrong_content_type_is_an_answer(api, tiny_lm):
    with f.faulty(f.Faulty(api, str(tiny_lm), lambda n, *_: f.wrong_content_type)) as server:
        table = generate(server, max_concurrency=1)
    assert is_complete(table)
    assert server.requests == COUNT


@pytest.mark.parametrize(
    ("fault", "attempts", "words"),
    [
        (f.error("422 Unprocessable Entity", "validation"), 1, "HTTP 422 (validation): words"),
        (f.error("422 Unprocessable Entity", "template_error"), 1, "HTTP 422 (template_error)"),
        (f.status("400 Bad Request", {"message": "too long"}), 1, "HTTP 400: too long"),
        (f.status("413 Content Too Large", ""), 1, "HTTP 413"),
        (f.error("424 Failed Dependency", "generation"), 2, "HTTP 424 (generation)"),
        (f.error("500 Internal Server Error", "incomplete_generation"), 2, "incomplete_generation"),
        (f.error("500 Internal Server Error", "internal"), 4, "HTTP 500 (internal)"),
        (f.answer(""), 2, "an empty completion"),
        (f.answer("  \n"), 2, "an empty completion"),
        (f.answer(None), 2, "no content"),
        (f.status("200 OK", 'data: {"error":"no","error_type":"validation"}\n\n'), 1, "(validation): no"),
        (f.status("200 OK", 'data: {"error":"no","error_type":"generation"}\n\n'), 2, "(generation): no"),
    ],
)  # fmt: skip
def test_rows_that_always_fail_carry_their_error_and_cost_no_more_than_they_must(api, fault, attempts, words, tiny_lm):
    when = lambda n, prompt, attempt: fault if prompt == "prompt 5" else None  # noqa: E731
    with f.faulty(f.Faulty(api, str(tiny_lm), when)) as server:
        table = generate(server)
    failed = [row for row in table if row["error"]]
    assert [row["prompt"] for row in failed] == ["prompt 5"]
    assert words in failed[0]["error"]
    assert server.asked["prompt 5"] == attempts
    assert server.answered == {f"prompt {n}": 1 for n in range(COUNT) if n != 5}


@pytest.mark.parametrize("chunked", [False, True])
def test_an_answer_of_a_hundred_megabytes_is_not_read(api, chunked, tiny_lm):
    endless = f.Endless(chunked)
    when = lambda n, prompt, attempt: endless if prompt == "prompt 1" else None  # noqa: E731
    with f.faulty(f.Faulty(api, str(tiny_lm), when)) as server:
        table = generate(server, timeout=30.0, max_response_bytes=2**20)
    errors = [row["error"] for row in table if row["error"]]
    assert errors == ["the answer is longer than 1048576 bytes (`max_response_bytes`)"]
    assert server.asked["prompt 1"] == 1
    assert endless.sent < 20_000_000  # the cap and what the sockets' buffers hold


def test_the_body_of_an_error_is_not_read_to_its_end_either(api, tiny_lm):
    endless = f.Endless(chunked=True)

    async def fault(server, writer):
        write, writer.write = writer.write, lambda data: write(data.replace(b"200 OK", b"500 Oh"))
        await endless(server, writer)

    with f.faulty(f.Faulty(api, str(tiny_lm), at_first(fault, times=1))) as server:
        table = generate(server, count=2, timeout=30.0)
    assert is_complete(table)
    assert endless.sent < 20_000_000


def test_a_storm_of_429_passes(api, tiny_lm):
    end = time.monotonic() + 0.4
    when = lambda *_: f.error("429 Too Many Requests", "overloaded") if time.monotonic() < end else None  # noqa: E731
    with f.faulty(f.Faulty(api, str(tiny_lm), when)) as server:
        table = generate(server, count=60, max_concurrency=32)
    assert is_complete(table)
    assert server.answered == {f"prompt {n}": 1 for n in range(60)}


def test_a_refused_key_stops_the_teacher_and_names_the_variable(api, tiny_lm, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-x")
    with f.faulty(f.Faulty(api, str(tiny_lm), lambda *_: f.status("401 Unauthorized"))) as server:
        table = generate(server, count=50, api_key_env="MY_KEY")
    assert server.requests <= 8
    assert all("check MY_KEY" in error for error in table["error"])


def test_nobody_listens(api, tiny_lm):
    server = f.Faulty(api, str(tiny_lm), lambda *_: None, url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match=r"does not answer \(cannot connect to http"):
        generate(server)
    table = generate(server, count=30, preflight=False)
    assert all("the teacher is down" in error and "cannot connect" in error for error in table["error"])


def test_a_server_that_dies_and_returns_loses_nothing(api, tiny_lm):
    port = free_port()
    policy = RetryPolicy(base_delay=0.02, max_delay=0.2, down_after=30, down_after_unseen=30)

    async def story():
        first = f.Faulty(api, str(tiny_lm), lambda n, *_: f.hang if n > 10 else None)
        second = f.Faulty(api, str(tiny_lm), lambda *_: None)
        with f.faulty(first, port):
            run = asyncio.create_task(asyncio.to_thread(generate, first, 40, policy, timeout=5.0))
            while first.requests < 14:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # nobody listens
        with f.faulty(second, port):
            table = await run
        return table, first, second

    table, first, second = asyncio.run(story())
    assert is_complete(table)
    assert first.answered + second.answered == {f"prompt {n}": 1 for n in range(40)}


def test_a_clock_that_jumps_changes_nothing(api, tiny_lm, monkeypatch):
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86400.0 * 365)
    faults = [
        f.hang,
        f.status("429 Too Many Requests", "", retry_after="0.1"),
        f.error("503 Busy", "healthcheck"),
        None,
    ]
    when = lambda n, prompt, attempt: faults[int(prompt.split()[1]) % 4] if attempt == 1 else None  # noqa: E731
    began = time.monotonic()
    with f.faulty(f.Faulty(api, str(tiny_lm), when)) as server:
        table = generate(server, timeout=0.3)
    assert next(jumps) > 0
    assert is_complete(table)
    assert server.answered == {f"prompt {n}": 1 for n in range(COUNT)}
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("fault", "charged"),
    [
        (f.answer(""), True),
        (f.truncated_json, True),
        (f.reset_in_the_middle, True),
        (f.Endless(chunked=False), True),
        (f.Endless(chunked=True), True),
        (f.error("429 Too Many Requests", "overloaded"), False),
        (f.error("422 Unprocessable Entity", "validation"), False),
        (f.status("401 Unauthorized"), False),
    ],
    ids=["empty", "truncated", "reset", "too long", "too long in chunks", "429", "422", "401"],
)
def test_what_may_have_been_charged_for_is_marked(api, fault, charged, tiny_lm):
    request = Request("p", ({"role": "user", "content": "prompt 1"},), Sampling(max_tokens=9), 7)

    async def ask(url):
        client = endpoint_client(Teacher(name="t", model=str(tiny_lm), endpoint=url, api=api), url)
        try:
            await client.complete(request)
        finally:
            await client.aclose()

    with f.faulty(f.Faulty(api, str(tiny_lm), lambda *_: fault)) as server, pytest.raises(TeacherError) as caught:
        asyncio.run(ask(server.url))
    assert caught.value.maybe_charged is charged
