"""The same strangers' servers for everyone who asks one: teachers, judges, students and routers, over real sockets."""

import ast
import base64
import datetime
import gzip
import traceback
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import set_async_client_factory
from huggingface_hub.utils import _http

import persyn_hf
from persyn_hf.endpoints import requests
from persyn_hf.errors import ConfigError
from persyn_hf.generation import preflight
from persyn_hf.routing import tei
from tests.endpoints.callers import CALLERS, Server
from tests.generation import faulty as f
from tests.generation.servers import free_port

KEY = "sk-canary-0123456789"
#: What a terminal obeys: colour, title, clear, C1, a direction, a carriage return.
CONTROLS = "\x1b[31mX\x1b]0;title\x07\x1b[2J\x9b5m\u202e\r\n\x08\x00"


@pytest.fixture(autouse=True)
def _quick_and_unknown(monkeypatch):
    monkeypatch.setattr(requests, "_FIRST_PAUSE", 0.005)
    monkeypatch.setattr(tei, "_MAX_BYTES", 2**20)
    monkeypatch.setattr(tei, "_ATTEMPTS", 3)
    preflight._passed.clear()
    tei._describe_once.cache_clear()
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=CALLERS)
def caller(request, tiny_lm):
    """Asks for one answer at a URL; what went wrong as its words, `None` where nothing did."""
    model = str(tiny_lm) if request.param == "TGI teacher" else "m"

    def ask(url, **settings):
        return CALLERS[request.param](url, model, **settings)

    return ask


@pytest.fixture(params=["aiohttp", "the user's sessions"])
def way(request):
    """Both ways to send a request."""
    before = _http._GLOBAL_ASYNC_CLIENT_FACTORY
    if request.param != "aiohttp":
        set_async_client_factory(lambda: httpx2.AsyncClient(follow_redirects=True))
    yield request.param
    set_async_client_factory(before)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    return {"api_key_env": "MY_KEY"}


def always(fault):
    return Server(when=lambda *_: fault)


def at_first(*faults):
    return Server(when=lambda n, *_: faults[n - 1] if n <= len(faults) else None)


def test_the_right_answer_is_an_answer(caller, way):
    with f.faulty(Server()) as server:
        assert caller(server.url) is None
    assert len(server.times) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_is_sent_on_to_another_address(caller, way, key, status):
    with f.faulty(Server()) as target:
        away = f.status(f"{status} Elsewhere", location=f"{target.url}/v1/chat/completions?k={KEY}")
        with f.faulty(always(away)) as server:
            said = caller(server.url, **key)
    assert target.heads == []
    assert len(server.times) == 1
    assert f"redirects to {target.url}" in said and "configure the final one as `" in said
    assert KEY not in said


@pytest.mark.parametrize("chunked", [False, True])
def test_an_endless_answer_is_not_read(caller, way, chunked):
    endless = f.Endless(chunked)
    with f.faulty(always(endless)) as server:
        said = caller(server.url, max_response_bytes=2**20)
    assert "the answer is longer than 1048576 bytes (`max_response_bytes`)" in said
    assert len(server.times) == 1
    assert endless.sent < 20_000_000  # the bound and what the sockets' buffers hold


def test_an_endless_error_is_not_read_to_its_end_either(caller, way):
    endless = f.Endless(chunked=True)

    async def fault(server, writer):
        write, writer.write = writer.write, lambda data: write(data.replace(b"200 OK", b"400 No"))
        await endless(server, writer)

    with f.faulty(always(fault)) as server:
        assert "HTTP 400" in caller(server.url)
    assert len(server.times) == 1
    assert endless.sent < 20_000_000


def packed(status):
    """A hundred megabytes in a hundred kilobytes."""

    async def fault(server, writer):
        writer.write(f.http(status, BOMB, content_encoding="gzip"))

    return fault


BOMB = gzip.compress(b"x" * 100_000_000)


@pytest.mark.parametrize("status", ["200 OK", "400 No"])
def test_a_compressed_body_is_not_unpacked(caller, way, status):
    with f.faulty(always(packed(status))) as server:
        said = caller(server.url)
    assert ("compresses its answers" if status == "200 OK" else "HTTP 400") in said
    assert len(said) < 400 and said.isprintable()
    assert len(server.times) == 1
    assert {headers["accept-encoding"] for headers in server.sent} == {"identity"}


def dated(seconds):
    """A `Retry-After` that is a date long ago, but not to the server."""
    date = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    later = date + datetime.timedelta(seconds=seconds)
    written = [one.strftime("%a, %d %b %Y %H:%M:%S GMT") for one in (date, later)]
    return f.status("429 Too Many", "", date=written[0], retry_after=written[1])


@pytest.mark.parametrize(
    ("fault", "seconds"),
    [
        (f.status("429 Too Many", "", retry_after="0.3"), 0.3),
        (dated(1), 1.0),
        (f.status("429 Too Many", "", retry_after_ms="300", retry_after="0"), 0.3),
        (f.status("429 Too Many", "", x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="300ms"), 0.3),
        (f.status("498 Capacity", "", retry_after="0.3"), 0.3),
        (f.status("529 Overloaded", "", retry_after="0.3"), 0.3),
        (f.status("400 No", {"error": {"type": "overloaded_error"}}, retry_after="0.3"), 0.3),
        (f.status("400 No", {"error": {"type": "x", "code": "capacity_exceeded"}}, retry_after="0.3"), 0.3),
        (f.status("503 Busy", "<h1>busy</h1>", retry_after="0.3"), 0.3),
        (f.status("524 A Timeout", "<h1>Cloudflare</h1>", retry_after="0.3"), 0.3),
        (f.status("530 Origin", "", retry_after="0.3"), 0.3),
    ],
    ids=[
        "seconds",
        "date",
        "milliseconds",
        "rate limit",
        "498",
        "529",
        "overloaded_error",
        "capacity_exceeded",
        "503",
        "524",
        "530",
    ],
)
def test_what_a_server_asks_to_wait_is_waited(caller, fault, seconds):
    with f.faulty(at_first(fault)) as server:
        assert caller(server.url) is None
    first, second = server.times
    assert second - first >= seconds - 0.01


@pytest.mark.parametrize(
    "fault",
    [
        f.status("500 Oh", ""),
        f.reset_in_the_middle,
        f.reset_at_once,
        f.no_http,
        f.cut_chunks,
        f.deep_json,
        f.status("200 OK", "<p>portal</p>", "text/html"),
        f.status("200 OK", "[]"),
        f.status("200 OK", '{"error": "x"}'),
        f.status("200 OK", 'data: {"error":"full","error_type":"overloaded"}\n\n'),
    ],
    ids=[
        "500",
        "reset in the middle",
        "reset at once",
        "no HTTP",
        "cut chunks",
        "deep JSON",
        "page",
        "empty list",
        "error under 200",
        "error event",
    ],
)
def test_what_passes_is_asked_again(caller, fault):
    with f.faulty(at_first(fault)) as server:
        assert caller(server.url) is None
    assert len(server.times) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "temperature must be 0"}}, "temperature must be 0"),
        ({"error": "max_tokens is 9 at most"}, "max_tokens is 9 at most"),
        ({"detail": "no such field"}, "no such field"),
        ("plain words", "plain words"),
    ],
)
def test_a_400_is_asked_once_and_its_reason_kept(caller, body, words):
    with f.faulty(always(f.status("400 Bad Request", body))) as server:
        said = caller(server.url)
    assert f"HTTP 400: {words}" in said
    assert len(server.times) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (f.status("401 No"), "refused the key (HTTP 401): check MY_KEY"),
        (f.status("403 No"), "refused the request (HTTP 403): moderation or a firewall rejected it"),
        (f.status("402 Pay"), "requires payment"),
        (f.status("404 No"), "does not serve"),
        (f.status("429 Too Many", {"error": {"code": "insufficient_quota", "message": "spent"}}), "requires payment"),
    ],
)
def test_what_no_request_can_change_ends_at_once(caller, key, fault, words):
    with f.faulty(always(fault)) as server:
        said = caller(server.url, **key)
    assert words in said
    assert len(server.times) == 1


def test_nobody_listens(caller):
    assert "cannot connect to http" in caller(f"http://127.0.0.1:{free_port()}")


def test_what_never_ends_is_ended(caller, monkeypatch):
    monkeypatch.setattr(tei, "_TIMEOUT", 0.3)
    for fault in (f.hang, f.slow_drip):
        with f.faulty(at_first(fault)) as server:
            assert caller(server.url, timeout=0.3) is None
        assert len(server.times) == 2


# Keys -------------------------------------------------------------------------------------------------------------


def test_a_key_goes_to_the_server_that_it_is_for(caller, way, key):
    with f.faulty(Server()) as server:
        assert caller(server.url, **key) is None
    assert {headers["authorization"] for headers in server.sent} == {f"Bearer {KEY}"}


def test_no_token_is_sent_that_nobody_named(caller, way, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(KEY)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {KEY}")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with f.faulty(Server()) as server:
        assert caller(server.url) is None
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    assert server.heads and all(KEY not in head and basic not in head for head in server.heads)
    if way == "aiohttp":  # the user's own client may add what the user likes
        assert {headers.get("authorization") for headers in server.sent} == {None}


@pytest.mark.parametrize(
    "fault",
    [
        f.status("400 Bad", {"error": f"bad key {KEY}", "error_type": KEY}, x_key=KEY),
        f.status("400 Bad", f"bad key {KEY[:9]}\x00{KEY[9:]}"),
        f.status("400 Bad", " " * 60_000 + KEY),
        f.status("307 Away", "", location=f"http://127.0.0.1:9/{KEY}"),
        f.status("401 Unauthorized", {"error": f"bad key {KEY}"}),
        f.status("404 Not Found", f"no {KEY} here"),
        f.status("503 Busy", {"detail": KEY}),
        f.status("200 OK", f'data: {{"error":"{KEY}","error_type":"{KEY}"}}\n\n'),
        f.status("200 OK", {"error": {"message": KEY, "type": KEY}}),
        f.status(
            "200 OK",
            {
                "choices": [
                    {
                        "message": {"content": KEY},
                        "logprobs": {"tokens": [KEY] * 5, "token_logprobs": [0] * 5},
                        "prompt_logprobs": [{KEY: {}}] * 5,
                    }
                ]
            },
        ),
        f.status("200 OK", [[{"label": KEY, "score": 1}]]),
        f.status("200 OK", {"details": {"prefill": [{"id": KEY, "logprob": 0}] * 5, "finish_reason": f"abort {KEY}"}}),
    ],
)
def test_a_key_that_the_server_says_back_is_blotted_out(caller, key, fault):
    with f.faulty(always(fault)) as server:
        said = caller(server.url, **key) or ""
    assert "canary" not in said


def test_a_line_break_behind_a_key_is_taken_off(caller, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY + "\r\n")
    with f.faulty(Server()) as server:
        assert caller(server.url, api_key_env="MY_KEY") is None
    assert {headers["authorization"] for headers in server.sent} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("value", [KEY + "\r\nx-injected: yes", KEY + " x", "Bearer " + KEY, KEY + "é"])
def test_a_key_with_white_space_in_it_is_not_sent(caller, monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with f.faulty(Server()) as server, pytest.raises(ConfigError, match="MY_KEY contains white space") as caught:
        caller(server.url, api_key_env="MY_KEY")
    assert server.heads == []
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_a_variable_that_is_not_set_is_named_and_nothing_sent(caller):
    with f.faulty(Server()) as server, pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        caller(server.url, api_key_env="NO_SUCH_KEY")
    assert server.heads == []


def test_a_pasted_key_is_not_repeated(caller):
    with f.faulty(Server()) as server, pytest.raises(ValueError, match="must be the name of an env") as caught:
        caller(server.url, api_key_env=KEY)
    assert server.heads == []
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "address",
    [
        "http://me:canary@127.0.0.1:9",
        "http://canary@127.0.0.1:9",
        "http://127.0.0.1:9/?api_key=canary",
        "http://127.0.0.1:9/#canary",
        "http://127.0.0.1:canary",
        "ftp://127.0.0.1/canary",
        "http://",
        "127.0.0.1:9",
        "http://[canary",
        "http://127.0.0.1:9\r\nx: canary",
    ],
)
def test_an_address_that_holds_a_secret_or_is_none_is_refused_unrepeated(caller, address):
    with pytest.raises(ValueError, match=r"base URL|no user, password|String should match|must be"):
        caller(address)
    with pytest.raises(ValueError) as caught:
        caller(address)
    assert "canary" not in str(caught.value)


# Proxies ----------------------------------------------------------------------------------------------------------


def test_a_proxy_gets_no_key(caller, way, key, monkeypatch):
    with f.faulty(Server()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(
            ConfigError, match=r"HTTP_PROXY.*can read the key \(MY_KEY\).*add models.invalid to NO_PROXY"
        ):
            caller("http://models.invalid", **key)
    assert proxy.heads == []


def test_without_a_key_a_proxy_is_used(caller, monkeypatch):
    with f.faulty(Server()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert caller("http://models.invalid") is None
    assert {headers["host"] for headers in proxy.sent} == {"models.invalid"}
    assert {head.split()[1].startswith("http://models.invalid/") for head in proxy.heads} == {True}


@pytest.mark.parametrize("named", [False, True])
def test_this_machine_is_never_asked_through_a_proxy(caller, key, monkeypatch, named):
    with f.faulty(Server()) as proxy, f.faulty(Server()) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        address = server.url.replace("127.0.0.1", "localhost") if named else server.url
        assert caller(address, **key) is None
    assert proxy.heads == []


# Shells -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        f.status("400 No", {"error": CONTROLS, "error_type": CONTROLS}),
        f.status("400 No", CONTROLS, "text/plain"),
        f.status("404 No", {"error": {"message": CONTROLS, "type": CONTROLS}}),
        f.status("402 No", {"detail": [CONTROLS]}),
        f.status("307 Away", "", location="http://x/\x1b[2J\x9b5m"),
        f.status("200 OK", {"error": {"message": CONTROLS, "type": "validation"}}),
        f.status(
            "200 OK",
            {
                "choices": [
                    {
                        "message": {"content": CONTROLS},
                        "finish_reason": CONTROLS,
                        "logprobs": {"tokens": [CONTROLS] * 5, "token_logprobs": [0] * 5},
                        "prompt_logprobs": [{CONTROLS: {}}] * 5,
                    }
                ]
            },
        ),
        f.status("200 OK", {"choices": [{"message": {"content": ""}, "finish_reason": "abort" + CONTROLS}]}),
        f.status("200 OK", [[{"label": CONTROLS, "score": 1}]]),
        f.status("200 OK", {"details": {"prefill": [{"id": CONTROLS, "logprob": 0}] * 5, "finish_reason": CONTROLS}}),
    ],
)
def test_nothing_that_a_server_says_moves_a_terminal(caller, fault):
    with f.faulty(always(fault)) as server:
        said = caller(server.url) or ""
    assert said.isprintable()
    assert len(said) < 1500


# The house --------------------------------------------------------------------------------------------------------


def test_nobody_else_speaks_http_to_models():
    """The Hub's own API is another matter: `HfApi` and `get_session` in `publishing` and `models`."""
    clients = {
        "AsyncInferenceClient",
        "InferenceClient",
        "AsyncClient",
        "Client",
        "ClientSession",
        "get_async_session",
    }
    modules = {"aiohttp", "requests", "urllib3", "http.client", "socket"}
    package = Path(persyn_hf.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        names, imported = set(), set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names |= {alias.name for alias in node.names}
                imported |= {getattr(node, "module", None)} | {alias.name for alias in node.names}
        if names & clients or imported & modules:
            found.add(path.relative_to(package).as_posix())
    assert found == {"endpoints/aiohttp_wire.py", "endpoints/wire.py"}
