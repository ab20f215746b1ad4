"""TGI's own protocol, and its chat, against a double that holds every request and response to the published schema."""

import asyncio
import warnings

import pytest
from starlette.responses import JSONResponse, Response
from transformers import AutoTokenizer

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, UnavailableError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.generation.run import endpoint_client
from persyn_hf.generation.tgi import TgiClient
from persyn_hf.generation.tokens import without_begin
from persyn_hf.ledger.completion import Completion
from tests.generation.servers import serve_app
from tests.generation.tgi_server import Tgi

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
PROMPT = "<|system|> Be brief. <|end|>\n<|user|> Hi <|end|>\n<|assistant|> "
FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=1.0, down_after_unseen=0.3)


def ask(server, model, sampling=None, messages=MESSAGES, api="tgi", ending="", **settings):
    request = Request("p", messages, sampling or Sampling(temperature=0.5, max_tokens=9, stop=("x",)), 7)

    async def main():
        teacher = Teacher(name="t", model=model, endpoint=url + ending, api=api, **settings)
        client = endpoint_client(teacher, teacher.endpoints[0])
        try:
            return await client.complete(request)
        finally:
            await client.aclose()

    with serve_app(server.app()) as url:
        return asyncio.run(main())


@pytest.fixture
def model(tiny_lm):
    return str(tiny_lm)


def test_sends_the_rendered_prompt_and_what_is_configured(model):
    server = Tgi()
    completion = ask(server, model)
    assert server.requests == [
        (
            "/generate",
            {
                "inputs": PROMPT,
                "parameters": {
                    "details": True, "do_sample": True, "max_new_tokens": 9, "return_full_text": False, "seed": 7,
                    "stop": ["x"], "temperature": 0.5,
                },
            },
        )
    ]  # fmt: skip
    assert completion == Completion(f"[{PROMPT}] seed=7", "stop", len(tokens(model, PROMPT)), 5, None, "tokenizer")
    assert server.violations == []
    assert server.checked == 2


@pytest.mark.parametrize("ending", ["/", "/generate", "/generate/"])
def test_the_base_url_may_be_written_in_every_usual_way(model, ending):
    server = Tgi()
    assert ask(server, model, ending=ending).text.startswith("[")


def tokens(model, text):
    return AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        (Sampling(temperature=0.0), {"do_sample": False}),
        (Sampling(temperature=0.0, top_p=0.5), {"do_sample": False}),
        (Sampling(temperature=1.0, top_p=1.0), {"do_sample": True, "temperature": 1.0}),
        (Sampling(temperature=0.7, top_p=0.9), {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
    ],
)
def test_greedy_and_sampled_parameters_are_what_tgi_takes(model, sampling, sent):
    server = Tgi()
    ask(server, model, sampling)
    got = server.requests[0][1]["parameters"]
    assert {key: got[key] for key in ("do_sample", "temperature", "top_p") if key in got} == sent
    assert server.violations == []


@pytest.mark.parametrize(
    ("reason", "expected"), [("eos_token", "stop"), ("stop_sequence", "stop"), ("length", "length")]
)
def test_finish_reasons_have_one_name(model, reason, expected):
    server = Tgi()
    server.behave = lambda n, body: server.generated("Words", reason)
    assert ask(server, model).finish_reason == expected
    server = Tgi()
    server.behave = lambda n, body: server.chatted("Words", reason)
    assert ask(server, model, api="chat").finish_reason == expected
    assert server.violations == []


def test_a_stop_string_that_the_server_leaves_is_cut_off(model):
    server = Tgi()
    server.behave = lambda n, body: server.generated("One. END", "stop_sequence")
    assert ask(server, model, Sampling(stop=("END", "."))).text == "One. "
    server.behave = lambda n, body: server.generated("One. END", "length")
    assert ask(server, model, Sampling(stop=("END",))).text == "One. END"


def test_a_beginning_that_the_server_adds_itself_is_not_sent_twice(model):
    class Doubling:
        bos_token, bos_token_id = "<s>", 1

        def __init__(self, adds):
            self.adds = adds

        def __call__(self, text):
            return {"input_ids": [1, 5] if self.adds else [5]}

    assert without_begin(Doubling(True), "<s>[INST] Hi") == "[INST] Hi"
    assert without_begin(Doubling(False), "<s>[INST] Hi") == "<s>[INST] Hi"
    assert without_begin(AutoTokenizer.from_pretrained(model), PROMPT) == PROMPT


@pytest.mark.parametrize("api", ["tgi", "chat"])
def test_errors_by_the_table(model, api):
    def raised(status, kind):
        server = Tgi()
        server.behave = lambda n, body: server.error(status, kind, "words")
        with pytest.raises((RetryableError, RowError)) as caught:
            ask(server, model, api=api)
        assert server.violations == []
        assert f"HTTP {status} ({kind}): words" in str(caught.value)
        return caught.value

    for kind in ("validation", "template_error", "missing_template_variable", "tool_error"):
        assert type(raised(422, kind)) is RowError
    assert raised(424, "generation").attempts == 2
    assert raised(429, "overloaded").overloaded
    assert raised(500, "incomplete_generation").attempts == 2
    assert type(raised(503, "healthcheck")) is UnavailableError


def test_an_empty_401_names_the_variable(model, monkeypatch):
    monkeypatch.setenv("MY_KEY", "wrong")
    for api in ("tgi", "chat"):
        with pytest.raises(TeacherDownError, match=r"refused the key.*check MY_KEY"):
            ask(Tgi(key="right"), model, api=api, api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "right")
    assert ask(Tgi(key="right"), model, api_key_env="MY_KEY").text.startswith("[")


def test_an_error_event_under_200_is_its_error_type(model):
    behave = lambda n, body: Response('data: {"error":"full","error_type":"overloaded"}\n\n')  # noqa: E731
    with pytest.raises(RetryableError, match=r"\(overloaded\): full") as caught:
        ask(Tgi(behave=behave), model)
    assert caught.value.overloaded


@pytest.mark.parametrize(
    "body",
    [{}, [], [1], {"generated_text": "x"}, {"generated_text": "x", "details": 3}, {"details": {}}, "text", None],
)
def test_what_is_no_answer_is_asked_again(model, body):
    with pytest.raises(RetryableError, match=r"completion|details|no content"):
        ask(Tgi(behave=lambda n, _: JSONResponse(body)), model)


def test_a_server_that_refuses_parameters_gets_no_request_without_them(model):
    """`text_generation` leaves out what a 400 names, and asks again: then the recorded sampling would be wrong."""
    words = "The following `model_kwargs` are not used by the model: ['details', 'seed']"
    behave = lambda n, body: JSONResponse({"error": words}, 400)  # noqa: E731
    server = Tgi(behave=behave)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RowError, match="HTTP 400: The following `model_kwargs`"):
            ask(server, model)
    assert len(server.requests) == 1


def test_a_model_without_a_chat_template_is_refused_before_anything_is_asked(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    server = Tgi(model_id=str(tmp_path))
    with pytest.raises(TeacherDownError, match=r"has no chat template.*use `api: chat`"):
        ask(server, str(tmp_path))
    with serve_app(server.app()) as url:
        teacher = {"name": "t", "model": str(tmp_path), "endpoint": url, "api": "tgi"}
        with pytest.raises(ConfigError, match=r"teacher `t`: .* has no chat template"):
            generate_parallel(["Hi"], [teacher], progress=False)
    assert server.requests == []


def test_a_prompt_that_the_template_refuses_is_an_error_of_its_row(model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RowError, match="the chat template refused the messages: no system role"):
        ask(Tgi(), str(tmp_path))


@pytest.mark.parametrize("api", ["tgi", "chat"])
def test_a_whole_run_against_a_capped_server(model, api):
    server = Tgi(model_id=model, cap=4, delay=0.05)
    with serve_app(server.app()) as url:
        teacher = {
            "name": "t", "model": model, "endpoint": url, "api": api, "sampling": {"max_tokens": 9, "top_p": 0.9},
            "system_prompt": "Be brief.", "leaks": "mark",  # the double says the rendered prompt
        }  # fmt: skip
        table = generate_parallel([f"prompt {n}" for n in range(60)], [teacher], progress=False, policy=FAST)
    assert table["error"][:] == [None] * 60
    assert all(f"prompt {n}" in text and "Be brief." in text for n, text in enumerate(table["completion"]))
    assert server.violations == []
    assert server.peak == 4


def test_the_repr_names_model_and_address_only(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    client = TgiClient(Teacher(name="t", model="m", endpoint="http://h:1", api="tgi", api_key_env="MY_KEY"))
    assert repr(client) == "TgiClient(model='m', endpoint='http://h:1')"
