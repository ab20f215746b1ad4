"""What is checked before anything is paid for."""

import asyncio
import logging
import subprocess
import sys
import threading
import time

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import ConfigError, PromptTooLongError
from persyn_hf.generation.describe import EndpointLimits
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.generation.preflight import preflight
from tests.generation.servers import chat_body, free_port, serve_app
from tests.generation.tgi_server import Tgi

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=1.0, down_after_unseen=0.3)


class ChatServer:
    """Counts what is asked of it; `models` is the answer at `/v1/models`, or a status."""

    def __init__(self, models=404):
        self.models, self.checks, self.paid, self.named = models, 0, 0, []

    async def listed(self, request):
        self.checks += 1
        return Response(status_code=self.models) if isinstance(self.models, int) else JSONResponse(self.models)

    async def chat(self, request):
        self.paid += 1
        self.named.append((await request.json())["model"])
        return JSONResponse(chat_body("Words."))

    def app(self):
        routes = [Route("/v1/models", self.listed), Route("/v1/chat/completions", self.chat, methods=["POST"])]
        return Starlette(routes=routes)


def models(*served, **more):
    return {"object": "list", "data": [{"id": name, "object": "model", **more} for name in served]}


def run(url, model="org/model", prompts=("Hi",), **settings):
    teacher = {"name": "t", "model": model, "endpoint": url, "timeout": 2.0, **settings}
    return generate_parallel([*prompts], [teacher], progress=False, policy=FAST)


@pytest.mark.parametrize(
    ("listed", "model"),
    [
        (models("org/other", "org/model"), "org/model"),
        (models("alias", root="org/model"), "org/model"),
        (models("gpt", aliases=["org/model"]), "org/model"),
        (models("org/model"), "org/model:some-provider"),
        (models("Org/Model"), "org/model"),
        (models("/models/m"), "/models/m/"),
        ({"id": "org/model", "object": "model"}, "org/model"),
        ([{"id": "org/model"}], "org/model"),
    ],
)
def test_a_model_that_is_served_passes(listed, model):
    server = ChatServer(listed)
    with serve_app(server.app()) as url:
        assert run(url, model)["completion"][:] == ["Words."]
    assert (server.checks, server.paid) == (1, 1)


def provided(*names):
    """A router's list, as the Hub's has it: ids, and who provides them."""
    return models("org/model", providers=[{"provider": name, "status": "live"} for name in names])


@pytest.mark.parametrize(
    ("listed", "model", "sent"),
    [
        (models("org/model"), "org/model", "org/model"),
        (404, "org/model", "org/model"),
        (models("alias", root="org/model"), "org/model", "alias"),
        (models("gpt", aliases=["org/model"]), "org/model", "org/model"),
        (models("gpt", aliases=["Org/Model"]), "org/model", "Org/Model"),
        (models("Org/Model"), "org/model", "Org/Model"),
        (models("Org/Model", "org/model"), "org/model", "org/model"),
        (models("org/model"), "org/model:fireworks", "org/model"),
        (models("org/model", "org/model:free"), "org/model:free", "org/model:free"),
        (provided("fireworks", "novita"), "org/model:novita", "org/model:novita"),
        (provided("fireworks", "novita"), "org/model:fastest", "org/model:fastest"),
        (provided("fireworks"), "org/model:novita", "org/model"),
        (models("/models/m"), "/models/m/", "/models/m"),
    ],
)
def test_requests_name_the_model_as_the_server_lists_it(listed, model, sent):
    server = ChatServer(listed)
    with serve_app(server.app()) as url:
        assert run(url, model)["completion"][:] == ["Words."]
        assert run(url, model, ["a second call, without a second look"])["error"][:] == [None]
    assert server.named == [sent, sent]


def test_two_endpoints_may_call_one_model_differently():
    first, second = ChatServer(models("First", root="org/model")), ChatServer(models("org/model"))
    with serve_app(first.app()) as a, serve_app(second.app()) as b:
        table = run((a, b), prompts=[f"prompt {n}" for n in range(12)], max_concurrency=2)
    assert table["error"][:] == [None] * 12
    assert set(first.named) == {"First"} and set(second.named) == {"org/model"}


@pytest.mark.parametrize(
    "listed", [404, 405, 500, 501, models(), {"data": None}, [], "x", {"object": "list", "data": [3]}]
)
def test_a_server_that_lists_no_models_is_taken_at_its_word_with_a_note(listed, caplog):
    caplog.set_level(logging.INFO, logger="persyn_hf")
    server = ChatServer(listed)
    with serve_app(server.app()) as url:
        assert run(url)["completion"][:] == ["Words."]
        assert f"{url} lists no models; persyn_hf assumes that it serves `org/model`" in caplog.text


def test_another_model_is_an_error_that_names_what_is_served():
    server = ChatServer(models(*[f"org/m{n}" for n in range(8)]))
    with serve_app(server.app()) as url, pytest.raises(ConfigError, match="No requests were sent") as caught:
        run(url)
    served = "`org/m0`, `org/m1`, `org/m2`, `org/m3`, `org/m4` and 3 more"
    assert f"teacher `t`: {url} serves {served}, but `model` is `org/model`." in str(caught.value)
    assert "`preflight: false`" in str(caught.value)
    assert server.paid == 0


def test_all_problems_of_all_teachers_are_told_at_once(monkeypatch, tiny_lm):
    monkeypatch.setenv("MY_KEY", "sk-x")
    good, other, locked, tgi = ChatServer(), ChatServer(models("x")), ChatServer(401), Tgi(model_id="y")
    with (
        serve_app(good.app()) as a, serve_app(other.app()) as b,
        serve_app(locked.app()) as c, serve_app(tgi.app()) as d,
    ):  # fmt: skip
        teachers = [
            {"name": "good", "model": "m", "endpoint": a},
            {"name": "other", "model": "m", "endpoint": b},
            {"name": "locked", "model": "m", "endpoint": c, "api_key_env": "MY_KEY"},
            {"name": "tgi", "model": str(tiny_lm), "endpoint": d, "api": "tgi"},
            {"name": "no tgi", "model": str(tiny_lm), "endpoint": a, "api": "tgi"},
            {"name": "silent", "model": "m", "endpoint": f"http://127.0.0.1:{free_port()}"},
        ]
        with pytest.raises(ConfigError) as caught:
            generate_parallel(["Hi"], teachers, progress=False, policy=FAST)
    text = str(caught.value)
    assert "teacher `good`" not in text
    assert f"teacher `other`: {b} serves `x`, but `model` is `m`." in text
    assert f"teacher `locked`: {c} refused the key (HTTP 401): check MY_KEY" in text
    assert f"teacher `tgi`: {d} serves `y`, but `model` is `{tiny_lm}`." in text
    assert f"teacher `no tgi`: {a} has no `/info` with a `model_id`, so it is not TGI; set `api: chat`." in text
    assert "teacher `silent`: " in text
    assert "does not answer (cannot connect" in text
    assert good.paid + other.paid + locked.paid + len(tgi.requests) == 0


def test_without_the_checks_nothing_is_checked():
    server = ChatServer(models("another"))
    with serve_app(server.app()) as url:
        assert run(url, preflight=False)["completion"][:] == ["Words."]
    assert (server.checks, server.paid) == (0, 1)


@pytest.mark.parametrize("way", ["wait", "reroute"])
def test_a_silent_endpoint_is_no_error_where_its_teacher_may_be_down(way):
    server = ChatServer()
    silent = f"http://127.0.0.1:{free_port()}"
    teacher = Teacher(name="silent", model="m", endpoint=silent, on_teacher_down=way)
    assert asyncio.run(preflight([(teacher, lambda: [])], patience=0.2)) == {}
    with serve_app(server.app()) as url:
        two = Teacher(name="two", model="m", endpoint=(silent, url))
        assert asyncio.run(preflight([(two, lambda: [])], patience=0.2)) == {("two", url): EndpointLimits()}


@pytest.mark.parametrize("way", ["wait", "reroute"])
def test_a_refused_key_is_an_error_in_every_case(way):
    with serve_app(ChatServer(401).app()) as url, pytest.raises(ConfigError, match="refused the key"):
        run(url, on_teacher_down=way)


def test_short_prompts_load_no_tokenizer(tmp_path):
    """It would bring transformers with it: seconds, and a hundred megabytes."""
    server = ChatServer(models("org/model", max_model_len=4096))
    code = (
        "import sys; from persyn_hf import generate_parallel as g;"
        "t = g(['Hi'], [{'name': 't', 'model': 'org/model', 'endpoint': sys.argv[1]}], progress=False);"
        "print(t['completion'][0], 'transformers' in sys.modules)"
    )
    with serve_app(server.app()) as url:
        done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True)
    assert done.stdout == "Words. False\n"


def test_a_server_that_is_still_starting_is_waited_for():
    server, port = ChatServer(503), free_port()
    teacher = Teacher(name="t", model="m", endpoint=f"http://127.0.0.1:{port}")

    def story():
        time.sleep(0.3)
        with serve_app(server.app(), port):
            time.sleep(0.5)
            server.models = models("m")
            done.wait(10)

    done = threading.Event()
    thread = threading.Thread(target=story)
    thread.start()
    began = time.monotonic()
    try:
        limits = asyncio.run(preflight([(teacher, lambda: [])], patience=20))
    finally:
        done.set()
        thread.join()
    assert [address for _, address in limits] == [teacher.endpoint]
    assert 0.7 < time.monotonic() - began < 10


def test_a_rerun_with_nothing_to_ask_needs_no_endpoint(tmp_path):
    server = ChatServer()
    teacher = {"name": "t", "model": "m"}
    with serve_app(server.app()) as url:
        first = generate_parallel(["Hi"], [{**teacher, "endpoint": url}], tmp_path / "l", progress=False)
    away = {**teacher, "endpoint": f"http://127.0.0.1:{free_port()}"}
    assert generate_parallel(["Hi"], [away], tmp_path / "l", progress=False).to_list() == first.to_list()


def test_an_endpoint_that_passed_is_not_asked_again_for_every_row():
    server = ChatServer(models("org/model"))
    with serve_app(server.app()) as url:
        for n in range(3):
            run(url, prompts=[f"prompt {n}"])
    assert (server.checks, server.paid) == (1, 3)


# Limits ---------------------------------------------------------------------------------------------------------


def tgi_run(server, tiny_lm, prompts, max_tokens=16, **settings):
    server.model_id = str(tiny_lm)
    sampling = {"max_tokens": max_tokens, **settings}
    with serve_app(server.app()) as url:
        return run(url, str(tiny_lm), prompts, api="tgi", sampling=sampling)


def test_prompts_that_do_not_fit_are_counted_before_anything_is_asked(tiny_lm):
    server = Tgi(max_input_tokens=600, max_total_tokens=1000)
    prompts = ["x" * 700, "x" * 900, *[f"short {n}" for n in range(8)]]
    with pytest.raises(PromptTooLongError) as caught:
        tgi_run(server, tiny_lm, prompts)
    # `<|user|> … <|end|>\n<|assistant|> `: one token per byte, and three special ones.
    assert str(caught.value).startswith(
        "teacher `t`: 2 of 10 prompts do not fit. The server accepts 600 tokens in addition to `max_tokens` 16, "
        "the longest prompt has 907."
    )
    assert server.requests == []


def test_max_tokens_counts_where_the_limit_is_on_both_together(tiny_lm):
    server = Tgi(max_input_tokens=1000, max_total_tokens=1000)
    assert tgi_run(server, tiny_lm, ["x" * 700], max_tokens=200)["error"][:] == [None]
    with pytest.raises(PromptTooLongError, match=r"1 of 1 prompts do not fit\. The server accepts 600 tokens"):
        tgi_run(server, tiny_lm, ["x" * 700], max_tokens=400)
    with pytest.raises(ConfigError, match=r"`max_tokens` must be under 1000, .* got 1000"):
        tgi_run(server, tiny_lm, ["Hi"], max_tokens=1000)


def test_more_stop_strings_than_the_server_takes(tiny_lm):
    with pytest.raises(ConfigError, match="accepts at most 4 `stop` strings, got 5"):
        tgi_run(Tgi(), tiny_lm, ["Hi"], stop=list("abcde"))


def test_the_length_that_vllm_reports_is_a_limit_too(tiny_lm):
    server = ChatServer(models(str(tiny_lm), max_model_len=600))
    with serve_app(server.app()) as url:
        with pytest.raises(PromptTooLongError, match=r"1 of 2 prompts do not fit\. The server accepts 584 tokens"):
            run(url, str(tiny_lm), ["x" * 700, "Hi"], sampling={"max_tokens": 16})
        assert server.paid == 0
        assert run(url, str(tiny_lm), ["x" * 500, "Hi"], sampling={"max_tokens": 16})["error"][:] == [None, None]


def test_without_a_tokenizer_at_hand_long_prompts_are_left_to_the_server():
    server = ChatServer(models("org/model", max_model_len=600))
    with serve_app(server.app()) as url:
        assert run(url, prompts=["x" * 5000], sampling={"max_tokens": 16})["error"][:] == [None]


@pytest.mark.parametrize("api", ["chat", "tgi"])
def test_the_limits_of_tgi_are_read_in_both_protocols(api, tiny_lm):
    server = Tgi(model_id=str(tiny_lm), cap=7)
    with serve_app(server.app()) as url:
        teacher = Teacher(name="t", model=str(tiny_lm), endpoint=url, api=api, sampling=Sampling(max_tokens=9))
        limits = asyncio.run(preflight([(teacher, lambda: [])]))
    assert limits == {("t", url): EndpointLimits(1024, 2048, 7, 4)}
    assert server.violations == []


def test_another_revision_is_an_error(tiny_lm):
    server = Tgi(model_id=str(tiny_lm), model_sha="a" * 40)
    with serve_app(server.app()) as url:
        assert run(url, str(tiny_lm), api="tgi", revision="a" * 40, sampling={"max_tokens": 9})["error"][:] == [None]
        with pytest.raises(ConfigError, match=f"serves revision {'a' * 40} of .*, but `revision` is {'b' * 40}"):
            run(url, str(tiny_lm), api="tgi", revision="b" * 40)


def test_a_lora_has_the_context_of_the_model_that_it_stands_on(tiny_lm):
    base = models("org/base", max_model_len=600)["data"]
    adapter = {"id": "my-lora", "object": "model", "root": "/adapters/x", "parent": "org/base", "max_model_len": None}
    server = ChatServer({"data": [*base, adapter]})
    with (
        serve_app(server.app()) as url,
        pytest.raises(PromptTooLongError, match=r"1 of 1 prompts do not fit\. The server accepts 584 tokens"),
    ):
        run(url, "my-lora", ["x" * 700], tokenizer=str(tiny_lm), sampling={"max_tokens": 16})
    assert server.paid == 0


@pytest.mark.parametrize("parent", ["my-lora", "gone", None])
def test_a_parent_that_leads_nowhere_is_no_limit(parent):
    server = ChatServer(models("my-lora", parent=parent))
    with serve_app(server.app()) as url:
        assert run(url, "my-lora", ["x" * 700])["error"][:] == [None]


@pytest.mark.parametrize("about", [{"max_input_tokens": 600}, {"model_info": {"max_input_tokens": 600}}])
def test_a_gateway_s_limit_of_the_input_is_a_limit(tiny_lm, about):
    server = ChatServer(models("alias", **about))
    with serve_app(server.app()) as url:
        with pytest.raises(PromptTooLongError, match=r"1 of 2 prompts do not fit\. The server accepts 600 tokens"):
            run(url, "alias", ["x" * 700, "Hi"], tokenizer=str(tiny_lm), sampling={"max_tokens": 16})
        assert run(url, "alias", ["x" * 500, "Hi"], tokenizer=str(tiny_lm))["error"][:] == [None, None]


@pytest.mark.parametrize(("listed", "fits"), [("openai/*", True), ("*", True), ("*/gpt-4o", True), ("azure/*", False)])
def test_a_gateway_s_wildcard_stands_for_what_it_matches(listed, fits):
    server = ChatServer(models("org/other", listed))
    with serve_app(server.app()) as url:
        if fits:
            run(url, "openai/gpt-4o")
            assert server.named == ["openai/gpt-4o"]
        else:
            with pytest.raises(ConfigError, match=r"serves `org/other`, `azure/\*`, but"):
                run(url, "openai/gpt-4o")


@pytest.mark.parametrize("status", [200, 404])
def test_an_open_port_that_is_no_model_server_is_told(status):
    page = PlainTextResponse("<!doctype html><h1>A page</h1>", status)

    async def everything(request):
        return page

    app = Starlette(routes=[Route("/{path:path}", everything, methods=["GET", "POST"])])
    with serve_app(app) as url, pytest.raises(ConfigError) as caught:
        run(url)
    assert f"{url}/v1/models is a web page, so it is not a model server; check `endpoint`." in str(caught.value)


REFUSED = r"refused the key \(HTTP 400 \(auth_error\): Authentication Error\): check MY_KEY"


def test_a_wrong_key_that_a_gateway_answers_with_400_is_told(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-wrong-1234567890")

    async def refuse(request):
        return JSONResponse({"error": {"message": "Authentication Error", "type": "auth_error", "code": "400"}}, 400)

    app = Starlette(routes=[Route("/v1/models", refuse)])
    with serve_app(app) as url, pytest.raises(ConfigError, match=REFUSED):
        run(url, api_key_env="MY_KEY")


def test_a_tokenizer_that_is_not_there_is_told_before_anything_is_asked(tmp_path):
    server = ChatServer(models("alias", max_model_len=600))
    with serve_app(server.app()) as url, pytest.raises(ConfigError, match="cannot be loaded"):
        run(url, "alias", ["Hi"], tokenizer=str(tmp_path))
    assert server.paid == 0


@pytest.mark.parametrize(
    ("listed", "fits"),
    [
        ({"data": [{"name": "m"}]}, True),
        ({"data": [{"object": "model"}]}, True),  # it says nothing
        ({"data": [{"name": "x"}, {"object": "model"}]}, False),
    ],
)
def test_a_list_without_ids_is_read_as_far_as_it_says_anything(listed, fits):
    with serve_app(ChatServer(listed).app()) as url:
        if fits:
            assert run(url, "m")["error"][:] == [None]
        else:
            with pytest.raises(ConfigError, match="serves `x`, but `model` is `m`"):
                run(url, "m")
