"""What comes back, from a server's words to the table: only what is understood counts as a whole answer."""

import json
import logging

import pytest
from starlette.responses import JSONResponse, Response

from persyn_hf.errors import RetryableError, RowError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel, summarize_generation
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.personalize import count_kept, personalize
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve
from tests.generation.test_chat import ask

USER = ({"role": "user", "content": "Hi"},)


def generate(behave, count=1, ledger=None, teacher=None, **options):
    with serve(Double(behave)) as server:
        asked = {"name": "t", "model": "m", "endpoint": server.url, "max_concurrency": 1, **(teacher or {})}
        table = generate_parallel([f"p{n}" for n in range(count)], [asked], ledger=ledger, progress=False, **options)
    return table, server


def said(text, reason="stop", usage=None, **choice):
    body = chat_body(text, reason)
    body["choices"][0] |= choice
    return JSONResponse(body if usage is None else {**body, "usage": usage})


def test_an_unknown_reason_stays_in_the_table_counts_as_cut_and_is_told_once(caplog, tmp_path):
    reasons = ["stop", "dreamy", "dreamy", {"type": "length", "length": 3}]
    with caplog.at_level(logging.WARNING):
        table, _ = generate(lambda n, body: said("The first of three", reasons[n - 1]), 4, tmp_path / "l")
    assert table["finish_reason"][:] == ["stop", "dreamy", "dreamy", "length"]
    assert summarize_generation(table)["t"].truncated == 3
    told = [record.getMessage() for record in caplog.records if "dreamy" in record.getMessage()]
    assert told == ["teacher t ended an answer for the unknown reason `dreamy`; it counts as truncated"]
    assert (count_kept(table).rows, count_kept(table).truncated) == (1, 3)
    assert personalize(table)["finish_reason"][:] == ["stop"]
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.totals()[0]["truncated"] == 3


def test_cut_answers_are_left_out_whatever_cut_them():
    reasons = ["stop", "content_filter", "odd"]
    table, _ = generate(lambda n, body: said("Words", reasons[n - 1]), 3, drop_truncated=True)
    assert table["finish_reason"][:] == ["stop"]


def test_a_limit_of_the_servers_own_is_in_the_table_and_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        table, _ = generate(lambda n, body: said("Half of", "length"), 2, teacher={"sampling": {"max_tokens": 64}})
    assert table["finish_reason"][:] == ["length", "length"]
    assert (table["completion_tokens"][0], table["max_tokens"][0]) == (5, 64)
    told = [r.getMessage() for r in caplog.records if "lower limit" in r.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("teacher t was cut off after 5 tokens, although `max_tokens` is 64")


def test_leaks_are_cut_in_the_table_counted_and_kept_in_the_ledger(tmp_path):
    texts = ["42<|im_end|>", "42", "42<|im_end|>\n<|im_start|>user\nMore?", "42\nUser: more?"]
    table, server = generate(lambda n, body: said(texts[n - 1]), 4, tmp_path / "l")
    assert table["completion"][:] == ["42", "42", "42", "42\nUser: more?"]
    assert table["leak"][:] == ["end-token", None, "invented-turn", "turn-words"]
    assert summarize_generation(table)["t"].leaks == 3
    with Ledger(tmp_path / "l") as ledger:
        assert sorted(row["text"] for row in ledger.rows()) == sorted(texts)
    again = generate_parallel(
        [f"p{n}" for n in range(4)],
        [{"name": "t", "model": "m", "endpoint": server.url, "leaks": "mark"}],
        ledger=tmp_path / "l",
        progress=False,
    )
    assert again["completion"][:] == texts
    assert again["leak"][:] == table["leak"][:]


def test_an_answer_of_nothing_but_tokens_is_none(tmp_path):
    table, server = generate(lambda n, body: said("<|im_end|>\n"))
    assert table["error"][:] == ["the answer contains only special tokens ('<|im_end|>')"]
    assert len(server.bodies) == 1


def test_thoughts_with_a_leak_leave_the_answer():
    table, _ = generate(lambda n, body: said("<think>6 times 7</think>42<|im_end|>"), teacher={"reasoning": "keep"})
    assert table["completion"][:] == ["<think>\n6 times 7\n</think>\n\n42"]


# Failures that would come again -----------------------------------------------------------------------------------


def refused(message, reason="stop", usage=None, request=None, **choice):
    body = chat_body(message.pop("content", None), reason, **message)
    body["choices"][0] |= choice
    body |= {} if usage is None else {"usage": usage}
    with serve(Double(lambda n, _: JSONResponse(body))) as server, pytest.raises((RowError, RetryableError)) as caught:
        ask(server.url, **({} if request is None else {"request": request}))
    return type(caught.value), str(caught.value)


def asked(seed=7, **sampling):
    from persyn_hf.config import Sampling

    return Request("p", USER, Sampling(**{"max_tokens": 64, **sampling}), seed)


def test_a_stop_string_that_comes_first_is_named_and_not_asked_twice():
    one = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    kind, words = refused({"content": ""}, usage=one, request=asked(stop=["\n\n"]))
    assert (kind, words) == (
        RowError,
        "the answer is empty: one of the `stop` strings came first (finish reason 'stop'); change `stop`",
    )
    kind, words = refused({"content": ""}, request=asked(stop=["\n\n", "a"]), stop_reason="\n\n")
    assert kind is RowError
    assert r"the stop string '\n\n' came first" in words
    # Five tokens are more than the one byte of the stop string: something else was there.
    assert refused({"content": ""}, request=asked(stop=["a"]))[0] is RetryableError


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_an_answer_that_a_reasoning_parser_ate_is_told_so(field):
    kind, words = refused({"content": None, field: "It is 42."}, request=asked())
    assert kind is RowError
    assert "put the whole answer (9 characters) into `reasoning`" in words
    assert "without a reasoning parser" in words


def test_what_may_differ_is_asked_once_more():
    request = asked(stop=["\n"])
    object.__setattr__(request, "seed", None)  # no seed is sent
    kind, _ = refused({"content": ""}, request=request, stop_reason="\n")
    assert kind is RetryableError
    object.__setattr__(request, "sampling", asked(stop=["\n"], temperature=0).sampling)
    assert refused({"content": ""}, request=request, stop_reason="\n")[0] is RowError


def test_refusals_and_calls_of_tools_are_told_as_what_they_are():
    kind, words = refused({"content": None, "refusal": "I cannot help with that."})
    assert (kind, words) == (RowError, "the model refused to answer: I cannot help with that.")
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    kind, words = refused({"content": None, "tool_calls": calls}, "tool_calls")
    assert (kind, words) == (RowError, "the teacher called a tool and wrote no text (`weather`)")


def test_an_error_beside_an_answer_is_no_answer():
    died = {"code": 502, "message": "the model died"}
    kind, words = refused({"content": "half of"}, error=died)  # in the choice
    assert kind is RetryableError
    assert "the model died" in words
    whole = {**chat_body("half of"), "error": died}
    with (
        serve(Double(lambda n, _: JSONResponse(whole))) as server,
        pytest.raises(RetryableError, match="the model died"),
    ):
        ask(server.url)
    with serve(Double(lambda n, _: JSONResponse({**chat_body("all of it"), "error": None}))) as server:
        assert ask(server.url).text == "all of it"


def test_the_first_choice_is_the_one_with_index_0():
    body = chat_body("first")
    second = {**chat_body("second")["choices"][0], "index": 1}
    with serve(Double(lambda n, _: JSONResponse({**body, "choices": [second, *body["choices"]]}))) as server:
        assert ask(server.url).text == "first"
    with serve(Double(lambda n, _: JSONResponse({**body, "choices": [second]}))) as server:
        assert ask(server.url).text == "second"


def test_a_stream_that_nobody_asked_for_is_read():
    delta = {"choices": [{"index": 0, "delta": {"content": "four"}}], "error": None}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "error": None}
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in (delta, end)) + "data: [DONE]\n\n"
    with serve(Double(lambda n, _: Response(stream, media_type="text/event-stream"))) as server:
        completion = ask(server.url)
    assert (completion.text, completion.finish_reason) == ("four", "stop")
    broken = f"data: {json.dumps({'choices': [{'error': {'message': 'the model died'}}]})}\n\ndata: [DONE]\n\n"
    with (
        serve(Double(lambda n, _: Response(broken, media_type="text/event-stream"))) as server,
        pytest.raises(RetryableError, match="the model died"),
    ):
        ask(server.url)


def test_a_page_in_place_of_an_answer_is_called_a_page():
    page = "<html><head><title>Sign in</title></head></html>"
    with (
        serve(Double(lambda n, _: Response(page, media_type="text/html"))) as server,
        pytest.raises(RetryableError, match=r"the answer is a web page \('Sign in'\) and no completion"),
    ):
        ask(server.url)
