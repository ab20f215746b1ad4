"""Refusals that may be meant for one row or for all, and failures that are the endpoint's and not the rows'."""

import logging

import pytest
from starlette.responses import HTMLResponse, JSONResponse

from persyn_hf.errors import RetryableError, TeacherDownError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.pool import RetryPolicy
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve
from tests.generation.test_pool import FAST, Client, jobs, run

MODERATION = {"error": {"message": "Your input was flagged\x1b[31m by sk-mine", "metadata": {"reasons": ["violence"]}}}
PAGE = "<!DOCTYPE html><html><title>Attention Required! | Cloudflare</title><p>ray</p></html>"


def generate(behave, count=24, **settings):
    with serve(Double(behave)) as server:
        one = {"name": "t", "model": "m", "endpoint": server.url, "max_concurrency": 4, **settings}
        table = generate_parallel([f"p{n}." for n in range(count)], [one], progress=False, policy=FAST)
    return table, server


def asks(body, number):
    return f"p{number}." in body["messages"][-1]["content"]


@pytest.mark.parametrize("flagged", [0, 7, 23])
@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        (lambda: JSONResponse(MODERATION, 403), "(HTTP 403: Your input was flagged by ***)"),
        (lambda: HTMLResponse(PAGE, 403), "(HTTP 403: Attention Required! | Cloudflare)"),
        (lambda: JSONResponse({"error": "legal"}, 451), "HTTP 451: legal"),
    ],
    ids=["moderation", "firewall", "451"],
)
def test_one_flagged_prompt_costs_its_row_alone(refusal, words, flagged, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-mine")
    table, server = generate(lambda n, body: refusal() if asks(body, flagged) else None, api_key_env="MY_KEY")
    errors = {n: error for n, error in enumerate(table["error"]) if error}
    assert list(errors) == [flagged]
    assert words in errors[flagged]
    assert "refused the key" not in errors[flagged]
    assert len(server.bodies) == 24


def test_before_any_answer_other_rows_are_tried_one_by_one():
    table, server = generate(lambda n, body: JSONResponse(MODERATION, 403), count=40)
    assert len(server.bodies) <= 6
    assert all("flagged" in error for error in table["error"])


def test_a_set_of_one_row_tells_the_servers_words():
    table, _ = generate(lambda n, body: JSONResponse(MODERATION, 403), count=1)
    assert "Your input was flagged" in table["error"][0]


def test_a_key_that_is_revoked_on_the_way_stops_the_teacher_and_fails_no_row_by_itself():
    table, server = generate(lambda n, body: JSONResponse({"error": "expired"}, 401) if n > 20 else None, count=400)
    answered = table["error"][:].count(None)
    assert answered == 20
    assert len(server.bodies) <= 20 + 16 + 4
    assert all("refused the key (HTTP 401: expired)" in error for error in table["error"] if error)
    assert all(error.startswith("the teacher is down") for error in table["error"] if error)


@pytest.mark.parametrize("status", [401, 404])
def test_a_lapse_of_a_gateway_is_got_over(status):
    table, server = generate(lambda n, body: JSONResponse({}, status) if n in (9, 10) else None)
    assert table["error"][:] == [None] * 24
    assert len(server.bodies) == 26


def test_no_credit_stops_the_teacher_at_once():
    table, server = generate(lambda n, body: JSONResponse({"error": "no credit"}, 402) if n > 8 else None, count=200)
    assert table["error"][:].count(None) == 8
    assert len(server.bodies) <= 12


def doubtful(words):
    error = TeacherDownError(words)
    error.doubtful, error.status = True, 403
    return error


def test_many_refusals_in_a_row_are_believed_and_their_rows_stay_open():
    def plan(prompt, attempt):
        if int(prompt) >= 30:
            raise doubtful("no access")

    answers, errors, pool = run(Client(plan, 0.001), jobs(200), limit=4)
    assert len(answers) == 30
    assert errors == {}  # another teacher may take them
    assert pool.down == "no access"


def test_another_endpoint_takes_the_rows_of_one_that_refuses_all():
    refusing = Client(lambda prompt, attempt: (_ for _ in ()).throw(doubtful("no access")))
    well = Client(delay=0.001)
    answers, _, pool = run([refusing, well], jobs(60))
    assert len(answers) == 60
    assert len(refusing.asked) <= 6
    assert pool.down is None


# An endpoint that fails, and not its rows -------------------------------------------------------------------------


def failing(status):
    error = RetryableError(f"HTTP {status}", attempts=4)
    error.status = status
    return error


def test_rows_do_not_fail_for_good_while_the_endpoint_answers_nobody():
    state = {"asked": 0}

    def plan(prompt, attempt):
        state["asked"] += 1
        if 10 < state["asked"] < 200:
            raise failing(500)

    policy = RetryPolicy(base_delay=0.001, max_delay=0.002, down_after=30)
    answers, errors, _ = run(Client(plan), jobs(40), limit=8, policy=policy, patient=True)
    assert len(answers) == 40
    assert errors == {}


def test_a_row_that_always_breaks_the_server_fails_beside_others_that_are_answered():
    def plan(prompt, attempt):
        if prompt == "3":
            raise failing(500)

    client = Client(plan)
    answers, errors, _ = run(client, jobs(40))
    assert len(answers) == 39
    assert errors == {"3": "HTTP 500 (after 4 attempts)"}


def test_an_endpoint_that_answers_500_to_everything_is_down():
    def plan(prompt, attempt):
        raise failing(500)

    client = Client(plan)
    answers, errors, pool = run(client, jobs(1000), limit=8)
    assert (answers, errors) == ([], {})
    assert pool.down == "no answer for 0.1 seconds; the last error: HTTP 500"
    assert len(client.asked) < 200


@pytest.mark.parametrize(
    "words", ["litellm.InternalServerError: Connection error.", "no healthy upstream", "Cannot connect to host"]
)
def test_a_dead_server_behind_a_gateway_is_waited_for(words):
    dead = range(12, 60)
    table, server = generate(
        lambda n, body: JSONResponse({"error": {"message": words}}, 500) if n in dead else None, on_teacher_down="wait"
    )
    assert table["error"][:] == [None] * 24
    assert len(server.bodies) == 24 + len(dead)


def test_names_from_a_configuration_reach_the_log_tame(caplog):
    with caplog.at_level(logging.WARNING), serve(Double(lambda n, body: JSONResponse({"error": "no"}, 400))) as server:
        one = {"name": "t\x1b[2J\x07", "model": "m", "endpoint": server.url}
        generate_parallel(["p"], [one], progress=False)
    assert caplog.records[-1].getMessage() == "teacher t: 1 of 1 rows have no answer"
