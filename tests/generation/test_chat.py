"""The chat client over real sockets: what it sends, what it makes of answers, what it raises."""

import asyncio
import contextlib

import pytest
from starlette.responses import HTMLResponse, JSONResponse, Response
from transformers import AutoTokenizer

from persyn_hf.config import Sampling, Teacher
from persyn_hf.endpoints.faults import retry_after
from persyn_hf.endpoints.wire import POOL, Sessions
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, UnavailableError
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.completion import Completion
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve

REQUEST = Request("p", ({"role": "user", "content": "Hi"},), Sampling(temperature=0.5, max_tokens=9, stop=("x",)), 7)


def ask(url, request=REQUEST, model="org/m", **settings):
    async def main():
        client = ChatClient(Teacher(name="t", model=model, endpoint=url, **settings))
        try:
            return await client.complete(request)
        finally:
            await client.aclose()

    return asyncio.run(main())


def test_sends_what_is_configured_and_reads_the_answer():
    with serve(Double()) as server:
        completion = ask(server.url)
    assert completion == Completion("user:Hi|seed=7|t=0.5", "stop", 3, 5, usage_source="server")
    assert server.bodies[0] == {
        "model": "org/m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0.5,
        "stop": ["x"], "seed": 7, "stream": False, "top_p": 1.0,
    }  # fmt: skip


def test_the_hub_token_is_sent_only_when_the_teacher_says_so(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MY_KEY", "sk-mine")
    with serve(Double()) as server:
        ask(server.url)
        ask(server.url, use_hub_token=True)
        ask(server.url, api_key_env="MY_KEY")
    assert [h.get("authorization") for h in server.headers] == [None, "Bearer hf_secret", "Bearer sk-mine"]


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
        (lambda n, body: HTMLResponse("<p>hello"), RetryableError, "a web page"),
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


# Reasoning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "four", "reasoning_content": " 2+2 is "}, "four", "2+2 is"),
        ({"content": "four", "reasoning": "2+2 is"}, "four", "2+2 is"),
        ({"content": "four", "reasoning_content": "", "reasoning": None}, "four", None),
        ({"content": "<think>\n2+2 is\n</think>\n\nfour"}, "four", "2+2 is"),
        ({"content": "2+2 is</think>four"}, "four", "2+2 is"),  # the template had opened the tag
        ({"content": "<think>\n\n</think>\n\nfour"}, "four", None),
        ({"content": " four"}, " four", None),
        ({"content": [{"type": "text", "text": "fo"}, {"type": "text", "text": "ur"}, 3]}, "four", None),
        ({"content": "Write <think> and </think>."}, "Write <think> and </think>.", None),
        # A server that tells the thoughts apart and leaves them in the text too; an answer may speak of the tag.
        ({"content": "<think>2+2 is</think>\n\nfour", "reasoning_content": "2+2 is"}, "four", "2+2 is"),
        ({"content": "</think>\n\nfour", "reasoning": "2+2 is"}, "four", "2+2 is"),
        ({"content": "It ends with </think>.", "reasoning": "2+2 is"}, "It ends with </think>.", "2+2 is"),
        ({"content": "<think> opens it.", "reasoning": "2+2 is"}, "<think> opens it.", "2+2 is"),
        # Other models' marks, where a server does not know them.
        ({"content": "[THINK]2+2 is[/THINK]four"}, "four", "2+2 is"),
        ({"content": "2+2 is\n</seed:think>four"}, "four", "2+2 is"),
        ({"content": "◁think▷2+2 is◁/think▷four"}, "four", "2+2 is"),
        ({"content": "<|channel>thought\n2+2 is<channel|>four"}, "four", "2+2 is"),
        (
            {
                "content": "<|channel|>analysis<|message|>2+2 is<|end|><|start|>assistant<|channel|>final"
                "<|message|>four<|return|>"
            },
            "four",
            "2+2 is",
        ),
        ({"content": "<|channel|>final<|message|>four"}, "four", None),
        (
            {"content": "<reasoning>2</reasoning><answer>4</answer>"},
            "<reasoning>2</reasoning><answer>4</answer>",
            None,
        ),
        # Parts.
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2+2 is"}]}, {"text": "four"}]},
            "four",
            "2+2 is",
        ),
        ({"content": [{"type": "output_text", "text": "fo"}, "ur"]}, "four", None),
    ],
)
def test_reasoning_is_told_apart(message, text, reasoning):
    behave = lambda n, body: JSONResponse(chat_body(message["content"], **message))  # noqa: E731
    with serve(Double(behave)) as server:
        completion = ask(server.url)
    assert (completion.text, completion.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "reasoning_content": "hm"},
        {"content": "<think>hm"},
        {"content": "[THINK]hm"},
        {"content": "<|channel|>analysis<|message|>hm"},
    ],
)
def test_an_answer_that_is_all_reasoning_says_what_to_raise(message):
    behave = lambda n, body: JSONResponse(chat_body(message["content"], "length", **message))  # noqa: E731
    with serve(Double(behave)) as server, pytest.raises(RowError, match=r"reasoning used all of `max_tokens` \(9\)"):
        ask(server.url)


def test_reasoning_is_shown_as_the_teacher_says_and_paid_for_once(tmp_path):
    with serve(Double(lambda n, body: JSONResponse(chat_body("four", reasoning_content="2+2 is")))) as server:
        shown = {}
        for mode in ("separate", "keep", "drop"):
            teacher = {"name": "t", "model": "m", "endpoint": server.url, "reasoning": mode}
            table = generate_parallel(["What is 2+2?"], [teacher], ledger=tmp_path / "ledger", progress=False)
            shown[mode] = (table["completion"][0], table["reasoning"][0])
    assert shown == {
        "separate": ("four", "2+2 is"),
        "keep": ("<think>\n2+2 is\n</think>\n\nfour", None),
        "drop": ("four", None),
    }
    assert len(server.bodies) == 1


# Finish reasons and usage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("stop", "stop"), ("eos_token", "stop"), ("stop_sequence", "stop"), ("end_turn", "stop"), ("eos", "stop"),
        ("length", "length"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("model_length", "length"),
        ("content_filter", "content_filter"), ("SAFETY", "content_filter"), ("refusal", "content_filter"),
        (None, "stop"), ("something new", "something new"),
    ],
)  # fmt: skip
def test_finish_reasons_have_one_name(said, expected):
    with serve(Double(lambda n, body: JSONResponse(chat_body("Words", said)))) as server:
        assert ask(server.url).finish_reason == expected


def test_without_a_finish_reason_the_number_of_tokens_tells():
    body = chat_body("Words", None)
    body["usage"]["completion_tokens"] = 9
    with serve(Double(lambda n, _: JSONResponse(body))) as server:
        assert ask(server.url).finish_reason == "length"


@pytest.mark.parametrize("said", ["abort", "error", "cancelled"])
def test_an_answer_that_was_broken_off_is_asked_for_again(said):
    with (
        serve(Double(lambda n, body: JSONResponse(chat_body("Half of", said)))) as server,
        pytest.raises(RetryableError, match=f"interrupted the answer .*'{said}'") as caught,
    ):
        ask(server.url)
    assert caught.value.attempts == 2


def test_an_answer_that_was_filtered_away_is_not_asked_for_again():
    with (
        serve(Double(lambda n, body: JSONResponse(chat_body("", "content_filter")))) as server,
        pytest.raises(RowError, match="content filter"),
    ):
        ask(server.url)


@pytest.mark.parametrize(
    "usage",
    [
        None, {}, "many", {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": True, "completion_tokens": 1e9}, {"prompt_tokens": -1, "completion_tokens": 2**63},
    ],
)  # fmt: skip
def test_tokens_that_the_server_does_not_count_are_counted_here_and_marked(usage, tiny_lm):
    body = {**chat_body("Words"), "usage": usage}
    with serve(Double(lambda n, _: JSONResponse(body))) as server:
        counted = ask(server.url, model=str(tiny_lm))
        unknown = ask(server.url)
    # One token per byte: `<|user|> Hi <|end|>\n<|assistant|> `.
    assert (counted.prompt_tokens, counted.completion_tokens, counted.usage_source) == (9, 5, "tokenizer")
    assert (unknown.prompt_tokens, unknown.completion_tokens, unknown.usage_source) == (None, None, None)


def test_what_the_server_counts_stays_where_half_is_missing(tiny_lm):
    body = {**chat_body("Words"), "usage": {"completion_tokens": 77}}
    with serve(Double(lambda n, _: JSONResponse(body))) as server:
        counted = ask(server.url, model=str(tiny_lm))
        unknown = ask(server.url)
    assert (counted.prompt_tokens, counted.completion_tokens, counted.usage_source) == (9, 77, "tokenizer")
    assert (unknown.prompt_tokens, unknown.completion_tokens, unknown.usage_source) == (None, 77, "server")


def test_an_answer_is_never_lost_to_counting(tiny_lm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    tokenizer.save_pretrained(tmp_path / "refusing")
    tokenizer.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    body = {**chat_body("Words"), "usage": None}
    with serve(Double(lambda n, _: JSONResponse(body))) as server:
        refusing = ask(server.url, model=str(tmp_path / "refusing"))
        broken = ask(server.url, model=str(tmp_path / "broken"))
    assert refusing == Completion("Words", "stop", None, 5, None, "tokenizer")
    assert broken == Completion("Words", "stop", None, None, None, None)


# The rest of the wire -----------------------------------------------------------------------------------------------


def test_the_base_url_may_be_written_in_every_usual_way():
    with serve(Double()) as server:
        for ending in ("", "/", "/v1", "/v1/", "/v1/chat/completions"):
            assert ask(server.url + ending).text.startswith("user:Hi")


def test_a_prompt_that_is_no_unicode_is_an_error_of_its_row():
    request = Request("p", ({"role": "user", "content": "half \ud83d"},), Sampling(), 7)
    with serve(Double()) as server, pytest.raises(RowError, match="surrogate"):
        ask(server.url, request)
    assert server.bodies == []


def test_a_compressed_answer_stops_the_teacher():
    behave = lambda n, body: Response(b"\x1f\x8b", headers={"content-encoding": "gzip"})  # noqa: E731
    with serve(Double(behave)) as server, pytest.raises(TeacherDownError, match="compresses its answers"):
        ask(server.url)
    assert server.headers[0]["accept-encoding"] == "identity"


@pytest.mark.parametrize(("status", "kind"), [(402, None), (429, "insufficient_quota")])
def test_a_server_that_wants_payment_stops_the_teacher(status, kind):
    behave = lambda n, body: JSONResponse({"error": {"message": "credits", "type": kind}}, status)  # noqa: E731
    with serve(Double(behave)) as server, pytest.raises(TeacherDownError, match="requires payment"):
        ask(server.url)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "1.5"}, 1.5), ({"retry-after": "0"}, 0.0), ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 01 Jan 2020 00:01:30 GMT", "date": "Wed, 01 Jan 2020 00:00:00 GMT"}, 90.0),
        ({"retry-after": "Wed, 01 Jan 2020 00:01:30 GMT"}, None),
        ({"retry-after": "Wed, 01 Jan 2020 00:01:30 GMT", "date": "today"}, None),
    ],
)  # fmt: skip
def test_retry_after_is_read_without_a_clock(headers, seconds):
    assert retry_after(headers) == seconds


def test_sessions_open_as_requests_need_them():
    sessions = Sessions(object)
    with contextlib.ExitStack() as stack:
        lent = [stack.enter_context(sessions.one()) for _ in range(2 * POOL)]
        assert len(sessions.opened) == 2
        assert sorted(lent.count(session) for session in sessions.opened) == [POOL, POOL]
    with sessions.one():
        assert len(sessions.opened) == 2
