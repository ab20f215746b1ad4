"""What reaches an endpoint of what is configured, over real sockets, and what the table and the ledger say of it."""

import json

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from persyn_hf import Teacher, generate_parallel
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.generation.client import Request
from persyn_hf.generation.jobs import completion_key, resolved
from persyn_hf.generation.lane import RetryPolicy
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve, serve_app
from tests.generation.tgi_server import Tgi

FAST = RetryPolicy(base_delay=0.01, max_delay=0.05)


class Service:
    """Keeps every request; `reply(body)` answers it."""

    def __init__(self, reply=None, path="/v1", listed=None):
        self.bodies, self.queries, self.headers, self.looks = [], [], [], []
        self.reply, self.path, self.listed = reply, path, listed

    async def chat(self, request):
        self.bodies.append(await request.json())
        self.queries.append(request.url.query)
        self.headers.append(request.headers)
        return (self.reply and self.reply(self.bodies[-1])) or JSONResponse(chat_body("Words."))

    async def models(self, request):
        self.looks.append((request.url.query, request.headers))
        return Response(status_code=404) if self.listed is None else JSONResponse({"data": self.listed})

    def app(self):
        return Starlette(
            routes=[
                Route(f"{self.path}/chat/completions", self.chat, methods=["POST"]),
                Route(f"{self.path}/models", self.models),
            ]
        )


def ask(url, prompts=("Hi",), ledger=None, seed=0, **settings):
    teacher = {"name": "t", "model": "m", "endpoint": url, "timeout": 5.0, **settings}
    return generate_parallel([*prompts], [teacher], ledger=ledger, seed=seed, progress=False, policy=FAST)


def key(sampling=None, own_body=None, **more):
    asked = resolved(
        Teacher.model_validate({"name": "t", "model": "m", "endpoint": "http://h", "sampling": sampling or {}} | more)
    )
    return asked.job("Hi", "0" * 16, 0, own_body=own_body).key


def test_the_body_holds_what_is_configured_and_nothing_that_is_null():
    extra = {"top_k": 20, "min_p": 0, "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}
    service = Service()
    with serve_app(service.app()) as url:
        row = ask(url, sampling={"temperature": None, "max_tokens": 9, "seed": None, "extra_body": extra})[0]
        ask(url, sampling={"temperature": 0.5, "max_tokens": 9, "seed": 77, "top_p": None})
    messages = [{"role": "user", "content": "Hi"}]
    assert service.bodies == [
        {"model": "m", "messages": messages, "max_tokens": 9, "stream": False, "top_p": 1.0, **extra},
        {"model": "m", "messages": messages, "max_tokens": 9, "stream": False, "temperature": 0.5, "seed": 77},
    ]
    assert row["completion"] == "Words." and row["error"] is None
    assert (row["temperature"], row["top_p"], row["seed"]) == (None, 1.0, None)
    assert json.loads(row["extra_body"]) == extra


def test_the_table_has_no_more_columns_where_nothing_more_is_sent():
    service = Service()
    with serve_app(service.app()) as url:
        assert "extra_body" not in ask(url).column_names


def test_what_is_sent_is_a_part_of_the_ledger_s_key_and_what_is_not_set_is_none():
    assert key() == key({"seed": "per-row", "extra_body": {}, "max_tokens_field": "max_tokens"})
    assert key() == "537e73f6b29fba77df61ef80604fd2da28c8866b705c7f25e632693e1a7ef972"
    keys = [
        key(), key({"temperature": None}), key({"top_p": None}), key({"seed": None}), key({"seed": 0}),
        key({"extra_body": {"top_k": 20}}), key({"extra_body": {"top_k": 21}}), key({"extra_body": {"top_k": 20.0}}),
        key({"max_tokens_field": "max_completion_tokens"}), key(own_body={"response_format": {"type": "json_object"}}),
        key(own_body={"response_format": {"type": "text"}}), key(dialect="openai-reasoning"),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    reached = {"stream": True, "stream_usage": False, "extra_headers": {"x-a": "b"}, "extra_query": {"v": "1"}}
    assert key(**reached, dialect="azure", tokenizer="org/t") == key()


def test_the_ledger_says_that_a_draw_is_not_fixed(tmp_path):
    service = Service()
    with serve_app(service.app()) as url:
        ask(url, ledger=tmp_path / "l.sqlite", sampling={"seed": None})
        ask(url, ledger=tmp_path / "l.sqlite", sampling={"seed": None}, seed=5)
    assert len(service.bodies) == 1  # no seed of the run is in it
    with Ledger(tmp_path / "l.sqlite") as ledger:
        (row,) = ledger.rows()
    assert row["seed"] is None
    assert json.loads(row["sampling"]) == {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 1024,
        "stop": [],
        "seed": None,
    }


def test_headers_and_query_go_with_every_request_and_the_look_at_the_models(monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "key-1234567890")
    monkeypatch.setenv("MY_ORG", "org-0987654321")
    path = "/openai/deployments/gpt-4o"

    def refuse(body):
        return JSONResponse({"error": {"message": "no, key-1234567890 of org-0987654321"}}, 400)

    service = Service(refuse, path)
    settings = {
        "dialect": "azure", "api_key_env": "AZURE_KEY", "extra_query": {"api-version": "2024-10-21"},
        "extra_headers": {"x-org": "${MY_ORG}"},
    }  # fmt: skip
    with serve_app(service.app()) as url:
        error = ask(url + path, **settings)["error"][0]
    assert service.queries == ["api-version=2024-10-21"]
    for query, headers in [(service.queries[0], service.headers[0]), *service.looks]:
        assert query == "api-version=2024-10-21"
        assert headers["api-key"] == "key-1234567890" and headers["x-org"] == "org-0987654321"
        assert "authorization" not in headers
    assert error == "HTTP 400: no, *** of ***"


@pytest.mark.parametrize("full", [False, True])
def test_a_base_with_a_path_is_asked_there_and_a_wrong_one_is_named(full):
    service = Service(path="/api/paas/v4")
    with serve_app(service.app()) as url:
        assert ask(f"{url}/api/paas/v4{'/chat/completions' * full}")["error"][0] is None
        wrong = ask(f"{url}/api")["error"][0]
    assert f"{url}/api/chat/completions does not serve `m` there (HTTP 404" in wrong


def test_a_teacher_s_system_prompt_and_the_prompt_s_own_are_one_message():
    service = Service()
    prompt = [{"role": "system", "content": "You are a poet."}, {"role": "user", "content": "Hello"}]
    with serve_app(service.app()) as url:
        row = ask(url, [{"prompt": prompt}], system_prompt="Be brief.")[0]
        ask(url, ["Hello"], system_prompt="Be brief.")
    assert service.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief.\n\nYou are a poet."}, {"role": "user", "content": "Hello"},
    ]  # fmt: skip
    assert service.bodies[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert row["prompt"] == prompt and row["system_prompt"] == "Be brief."


SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


def test_a_prompt_s_own_form_goes_before_the_teacher_s():
    service = Service()
    rows = [
        {"prompt": "one", "response_format": json.dumps(SCHEMA)}, {"prompt": "two", "response_format": None},
        {"prompt": "three", "response_format": '{"type": "text"}'},
    ]  # fmt: skip
    with serve_app(service.app()) as url:
        made = ask(url, rows, sampling={"extra_body": {"response_format": {"type": "json_object"}}}, max_concurrency=1)
    sent = {body["messages"][0]["content"]: body["response_format"] for body in service.bodies}
    assert sent == {"one": SCHEMA, "two": {"type": "json_object"}, "three": {"type": "text"}}
    assert made["error"][:] == [None] * 3


def test_forms_as_objects_reach_the_server_without_what_arrow_added():
    service = Service()
    rows = [{"prompt": "one", "response_format": SCHEMA}, {"prompt": "two", "response_format": {"type": "text"}}]
    with serve_app(service.app()) as url:
        ask(url, rows, max_concurrency=1)
    assert {body["messages"][0]["content"]: body["response_format"] for body in service.bodies} == {
        "one": SCHEMA, "two": {"type": "text"},
    }  # fmt: skip


def test_forms_that_cannot_be_kept_are_told_before_anything_is_asked(tiny_lm):
    rows = [{"prompt": "one", "response_format": None}, {"prompt": "two", "response_format": "{"}]
    service = Service()
    with serve_app(service.app()) as url, pytest.raises(DataError, match="Row 1: `response_format` must be JSON"):
        ask(url, rows)
    local = {"name": "l", "model": str(tiny_lm), "backend": "local"}
    with pytest.raises(ConfigError, match="teacher `l`: generation in this process does not support"):
        generate_parallel([{"prompt": "one", "response_format": '{"type": "json_object"}'}], [local], progress=False)
    assert service.bodies == []


def test_equal_refusals_stop_the_teacher_and_name_the_line():
    def refuse(body):
        words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return JSONResponse({"error": {"message": words, "param": "max_tokens"}}, 400)

    service = Service(refuse)
    with serve_app(service.app()) as url:
        errors = ask(url, [f"Question {n}?" for n in range(100)], max_concurrency=4)["error"][:]
    assert len(service.bodies) <= 11
    assert all("set `sampling.max_tokens_field: max_completion_tokens`" in error for error in errors)
    assert sum("8 requests in a row were refused in the same words" in error for error in errors) >= 89


def test_a_few_refused_rows_among_answers_stop_nothing():
    def some(body):
        odd = int(body["messages"][0]["content"]) % 3 == 0
        return JSONResponse({"error": {"message": "no"}}, 400) if odd else None

    service = Service(some)
    with serve_app(service.app()) as url:
        errors = ask(url, [str(n) for n in range(90)], max_concurrency=4)["error"][:]
    assert len(service.bodies) == 90 and sum(error is not None for error in errors) == 30


def events(*parts, end=True):
    lines = [{"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in parts]
    if end:
        usage = {"prompt_tokens": 7, "completion_tokens": 5}
        lines.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": usage})
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in lines)
    return Response(body + ("data: [DONE]\n\n" if end else ""), media_type="text/event-stream")


def test_a_stream_is_an_answer_and_half_of_one_is_asked_for_again():
    replies = [events("Half an", end=False), events("An ", "answer.")]
    service = Service(lambda body: replies.pop(0))
    with serve_app(service.app()) as url:
        row = ask(url, stream=True)[0]
    assert (row["completion"], row["finish_reason"], row["prompt_tokens"], row["completion_tokens"]) == (
        "An answer.", "stop", 7, 5,
    )  # fmt: skip
    assert [body["stream"] for body in service.bodies] == [True, True]
    assert service.bodies[0]["stream_options"] == {"include_usage": True}


def test_a_stream_may_answer_whole_and_errors_in_it_have_their_meaning():
    refusal = Response('data: {"error": {"message": "bad", "type": "validation"}, "error_type": "validation"}\n\n')
    replies = [JSONResponse(chat_body("Whole.")), refusal]
    service = Service(lambda body: replies.pop(0))
    with serve_app(service.app()) as url:
        assert ask(url, stream=True, stream_usage=False)["completion"][0] == "Whole."
        assert "validation" in ask(url, stream=True)["error"][0]
    assert "stream_options" not in service.bodies[0]


@pytest.mark.parametrize("api", ["chat", "tgi"])
def test_tgi_is_not_sent_a_top_p_of_one(tiny_lm, api):
    server = Tgi(model_id=str(tiny_lm))
    with serve_app(server.app()) as url:
        teacher = {"name": "t", "model": str(tiny_lm), "endpoint": url, "api": api, "sampling": {"max_tokens": 5}}
        table = generate_parallel(["Hi"], [teacher], progress=False, policy=FAST)
    assert table["error"][:] == [None] and table["top_p"][:] == [1.0]


def test_the_identity_of_a_request_does_not_depend_on_the_order_of_its_keys():
    def made(form):
        return completion_key(
            "m",
            "",
            Request(
                "p",
                ({"role": "user", "content": "Hi"},),
                Teacher(name="t", model="m", endpoint="http://h").sampling,
                1,
                own_body={"response_format": form},
            ),
        )

    assert made({"a": 1, "b": 2}) == made({"b": 2, "a": 1})


@pytest.mark.parametrize(("pieces", "size", "room"), [(300, 1, True), (300, 8, False), (3000, 1, False)])
def test_a_stream_has_room_for_its_events_and_its_answer_the_same_bound(pieces, size, room):
    def stream(n, body):
        events = [
            {"id": "x" * 40, "model": "m" * 40, "choices": [{"index": 0, "delta": {"content": "a" * size}}]}
        ] * pieces + [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        assert len(text) > 40_000
        return Response(text, media_type="text/event-stream")

    with serve(Double(stream)) as double:
        one = {"name": "t", "model": "m", "endpoint": double.url, "stream": True, "max_response_bytes": 1024}
        made = generate_parallel(["q"], [one | {"preflight": False}], progress=False)
    assert (made["completion"][0] == "a" * 300 * size) is room
    assert room or "`max_response_bytes`" in made["error"][0]
