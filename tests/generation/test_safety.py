"""Where keys go, and where they never go."""

import asyncio
import http.server
import logging
import threading
import traceback

import pytest
import trustme
from pydantic import ValidationError
from starlette.responses import RedirectResponse

from persyn_hf.config import Sampling, Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import ConfigError, RowError, TeacherDownError, TeacherError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.generation.run import endpoint_client
from tests.generation import faulty as f
from tests.generation.servers import serve_app
from tests.generation.tgi_server import Tgi

CANARY = "sk-canary-0123456789"
REQUEST = Request("p", ({"role": "user", "content": "prompt 1"},), Sampling(max_tokens=9), 7)
FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=1.0, down_after_unseen=0.3)


@pytest.fixture(params=["chat", "tgi"])
def api(request):
    return request.param


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("MY_KEY", CANARY)
    return "MY_KEY"


def ask(url, model, api, **settings):
    async def main():
        client = endpoint_client(Teacher(name="t", model=str(model), endpoint=url, api=api, **settings), url)
        try:
            return await client.complete(REQUEST)
        finally:
            await client.aclose()

    return asyncio.run(main())


class Catcher:
    """A server that notes every request, and answers none."""

    def __enter__(self):
        seen = self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                seen.append({name.title(): value for name, value in self.headers.items()})
                self.send_error(400)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(api, key, tiny_lm, status):
    route = "/generate" if api == "tgi" else "/v1/chat/completions"
    with Catcher() as target:
        away = f.status(f"{status} Elsewhere", location=target.url + route)
        with (
            f.faulty(f.Faulty(api, str(tiny_lm), lambda *_: away)) as server,
            pytest.raises(TeacherDownError, match=f"redirects to {target.url}.*configure the final one as `endpoint`"),
        ):
            ask(server.url, tiny_lm, api, api_key_env=key)
    assert target.seen == []


def test_the_checks_follow_no_redirect_either(api, key, tiny_lm):
    with Catcher() as target:

        async def app(scope, receive, send):
            await RedirectResponse(target.url + scope["path"], 307)(scope, receive, send)

        teacher = {"name": "t", "model": str(tiny_lm), "api": api, "api_key_env": key}
        with serve_app(app) as url, pytest.raises(ConfigError, match="redirects to"):
            generate_parallel(["Hi"], [{**teacher, "endpoint": url}], progress=False, policy=FAST)
    assert target.seen == []


def test_no_token_is_sent_that_the_teacher_does_not_name(api, monkeypatch, tmp_path, tiny_lm):
    (tmp_path / "token").write_text(CANARY)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {CANARY}")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", CANARY)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    seen = []

    async def app(scope, receive, send):
        seen.append({name.decode(): value.decode() for name, value in scope["headers"]})
        await tgi(scope, receive, send)

    tgi = Tgi(model_id=str(tiny_lm)).app()
    teacher = {"name": "t", "model": str(tiny_lm), "api": api, "sampling": {"max_tokens": 9}}
    with serve_app(app) as url:
        table = generate_parallel(["Hi"], [{**teacher, "endpoint": url}], progress=False)
    assert table["error"][:] == [None]
    assert len(seen) >= 2
    assert {headers.get("authorization") for headers in seen} <= {None, "Bearer -"}
    assert CANARY not in str(seen)


def test_the_hub_token_goes_where_the_teacher_says(api, monkeypatch, tiny_lm):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    server = Tgi(model_id=str(tiny_lm), key="hf_x")
    with serve_app(server.app()) as url:
        assert ask(url, tiny_lm, api, use_hub_token=True).text
    assert server.violations == []


def told(server, api, key, fault, folder, variables):
    """All that a run and a single request tell about themselves; `variables` as the most talkative reports do."""
    settings = {"api": api, "api_key_env": key}
    teacher = Teacher(name="t", model=server.model, endpoint=server.url, **settings)
    yield from (repr(teacher), teacher.model_dump_json(), repr(Endpoint.of(teacher)))
    yield repr(endpoint_client(teacher, server.url))
    table = generate_parallel(["prompt 1", "prompt 2"], [teacher], folder / "ledger", policy=FAST, progress=True)
    assert any(table["error"])
    yield str(table.to_list())
    server.when = lambda *_: fault
    with pytest.raises(TeacherError) as caught:
        ask(server.url, server.model, **settings)
    yield from (str(caught.value), repr(caught.value.args), "".join(traceback.format_exception(caught.value)))
    if variables:
        yield from traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()


def only_the_first(fault):
    return lambda n, prompt, attempt: fault if prompt == "prompt 1" else None


@pytest.mark.parametrize(
    "fault",
    [f.status("401 Unauthorized"), f.error("422 No", "validation"), f.reset_in_the_middle, f.truncated_json],
    ids=["401", "422", "reset", "truncated"],
)
def test_a_key_that_is_sent_is_seen_nowhere_else(api, key, fault, tiny_lm, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with f.faulty(f.Faulty(api, str(tiny_lm), only_the_first(fault))) as server:
        shown = [*told(server, api, key, fault, tmp_path, variables=True)]
    shown += [caplog.text, *capfd.readouterr()]
    assert "asyncio" in caplog.text
    assert [text for text in shown if CANARY in text] == []
    assert all(CANARY.encode() not in file.read_bytes() for file in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "fault",
    [
        f.status("400 Bad", {"error": f"bad key {CANARY}", "error_type": CANARY}, x_key=CANARY),
        f.status("307 Away", "", location=f"http://127.0.0.1:9/{CANARY}"),
        f.status("401 Unauthorized", {"error": f"bad key {CANARY}"}),
        f.status("404 Not Found", f"no {CANARY} here"),
        f.status("200 OK", f'data: {{"error":"{CANARY}","error_type":"{CANARY}"}}\n\n'),
        f.status("503 Busy", {"detail": CANARY}),
        f.answer("", f"abort {CANARY}"),
    ],
    ids=["400", "307", "401", "404", "SSE", "503", "finish reason"],
)
def test_a_key_that_the_server_says_back_is_blotted_out(api, key, fault, tiny_lm, tmp_path, caplog, capfd):
    with f.faulty(f.Faulty(api, str(tiny_lm), only_the_first(fault))) as server:
        shown = [*told(server, api, key, fault, tmp_path, variables=False)]
    shown += [caplog.text, *capfd.readouterr()]
    assert [text for text in shown if CANARY in text] == []
    assert all(CANARY.encode() not in file.read_bytes() for file in tmp_path.rglob("*"))


def test_an_address_with_a_password_in_it_is_refused():
    for address in ("http://me:pass@host", "http://host/?key=pass", "http://host/#pass", "host:8000", "ftp://host"):
        with pytest.raises(ValidationError, match="an endpoint must"):
            Teacher(name="t", model="m", endpoint=address)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path):
    path = tmp_path / "server.pem"
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(path))
    return str(path)


def test_a_certificate_that_nobody_vouches_for_is_refused(api, key, certificate, tiny_lm):
    server = Tgi(model_id=str(tiny_lm), key=CANARY)
    with (
        serve_app(server.app(), ssl_certfile=certificate) as url,
        pytest.raises(TeacherDownError, match=r"the certificate of .* cannot be trusted"),
    ):
        ask(url, tiny_lm, api, api_key_env=key)
    assert server.headers == []


def test_a_certificate_that_the_user_trusts_is_taken(api, key, certificate, authority, tiny_lm, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = Tgi(model_id=str(tiny_lm), key=CANARY)
    with serve_app(server.app(), ssl_certfile=certificate) as url:
        assert ask(url, tiny_lm, api, api_key_env=key).text


def test_a_proxy_of_the_environment_is_used(api, tiny_lm, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Catcher() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(RowError, match="HTTP 400"):
            ask(f"http://{api}.invalid", tiny_lm, api)
    assert [headers["Host"] for headers in proxy.seen] == [f"{api}.invalid"]
