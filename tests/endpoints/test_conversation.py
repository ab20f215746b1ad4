"""A chat request's body, and a stream of events read to the answer that it is."""

import json

import pytest

from persyn_hf.config import Sampling
from persyn_hf.endpoints.conversation import assembled, chat_body, is_stream
from persyn_hf.errors import RetryableError

DONE = b"data: [DONE]\n\n"


def chunk(finish=None, usage=None, index=0, **delta):
    event = {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}
    return event | ({"usage": usage} if usage else {})


def stream(*events, end=DONE, line=b"\n"):
    body = b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n" for one in events) + end
    return body.replace(b"\n", line)


def message(content):
    return assembled(content)["choices"][0]["message"]


def test_what_is_configured_is_sent_and_null_is_left_out():
    messages = [{"role": "user", "content": "Hi"}]
    assert chat_body("m", messages, Sampling(), 7, {}) == {
        "model": "m", "messages": messages, "max_tokens": 1024, "stream": False, "temperature": 1.0, "top_p": 1.0,
        "seed": 7,
    }  # fmt: skip
    sampling = Sampling(
        temperature=None, top_p=None, max_tokens=9, stop=("x",), max_tokens_field="max_completion_tokens",
        seed_field="random_seed",
    )  # fmt: skip
    assert chat_body("m", messages, sampling, 7, {"top_k": 20, "min_p": 0}, stream=True) == {
        "model": "m", "messages": messages, "max_completion_tokens": 9, "stream": True, "random_seed": 7,
        "stop": ["x"], "stream_options": {"include_usage": True}, "top_k": 20, "min_p": 0,
    }  # fmt: skip
    plain = chat_body("m", messages, Sampling(), None, {}, stream=True, stream_usage=False)
    assert not {"seed", "stream_options"} & set(plain)
    assert chat_body("m", messages, Sampling(temperature=0.0), None, {})["temperature"] == 0.0


def test_pieces_become_one_answer():
    usage = {"prompt_tokens": 3, "completion_tokens": 5}
    events = [
        chunk(role="assistant", content=""), chunk(reasoning_content="two "), chunk(reasoning_content="and two"),
        chunk(content="An "), chunk(content="answer."), chunk("stop"), {"choices": [], "usage": usage},
    ]  # fmt: skip
    assert assembled(stream(*events)) == {
        "id": "c", "model": "m", "usage": usage,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {
            "role": "assistant", "content": "An answer.", "reasoning_content": "two and two"}}],
    }  # fmt: skip


@pytest.mark.parametrize("line", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_in_three_ways_and_comments_are_none(line):
    body = b": keep-alive\n\n" + stream(chunk(content="a"), end=b"") + b": ping\n\nevent: x\nid: 3\nretry: 5\n\n"
    body += stream(chunk(content="b"), chunk("length"))
    content = body.replace(b"\n", line)
    assert is_stream(content)
    assert message(content)["content"] == "ab"
    assert assembled(content)["choices"][0]["finish_reason"] == "length"


def test_characters_of_any_width_stay_whole():
    assert message(stream(chunk(content="Grüße, "), chunk(content="世界 🌍\u2028."), chunk("stop")))["content"] == (
        "Grüße, 世界 🌍\u2028."
    )


@pytest.mark.parametrize(
    "body",
    [
        stream(chunk(content="a"), chunk("stop"), end=b""),  # no end mark
        stream(chunk(content="a"), chunk("stop"), end=b"data: [DONE]"),
        stream(chunk(content="a"), chunk("stop"), end=b"data:[DONE]\n"),
        stream(chunk(content="a"), chunk("stop")).replace(b"\n\n", b"\n"),  # one line break between events
        stream(chunk(content="a"), chunk("stop")).replace(b"data: ", b"data:"),
        b"\xef\xbb\xbf" + stream(chunk(content="a"), chunk("stop")),
        stream({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}),  # whole, in one event
        stream(chunk(content="a"), chunk(index=1, content="another"), chunk("stop")),
        stream(chunk(content=[{"type": "text", "text": "a"}]), chunk("stop")),
        b'data: {"choices": [{"delta":\ndata:  {"content": "a"}, "finish_reason": "stop"}]}\n\n',  # two lines
    ],
)
def test_servers_habits_are_borne(body):
    assert is_stream(body)
    assert message(body)["content"] == "a"
    assert assembled(body)["choices"][0]["finish_reason"] == "stop"


def test_an_end_mark_without_a_reason_is_an_end():
    assert assembled(stream(chunk(content="a")))["choices"][0] == {
        "index": 0, "finish_reason": None, "message": {"role": "assistant", "content": "a"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        stream(chunk(content="Half an"), end=b""),
        stream(chunk(content="Half an"), end=b'data: {"choices": [{"del'),
        stream(chunk(content="Half an"), end=b": keep-alive\n\n"),
        b": keep-alive\n\n",
        b"data: nonsense\n\n" + DONE,
    ],
)
def test_a_stream_that_broke_off_is_no_answer(body):
    with pytest.raises(RetryableError, match="broke off"):
        assembled(body)


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_no_cut_gives_half_an_answer(cut):
    whole = stream(chunk(content="An "), chunk(content="answer."), chunk("stop"), end=b"")
    try:
        made = assembled(whole[:-cut])
    except RetryableError:
        return
    assert made["choices"][0]["message"]["content"] == "An answer."


def test_an_error_in_the_middle_is_the_answer_s_error():
    error = {"error": {"message": "overloaded", "type": "overloaded_error"}}
    assert assembled(stream(chunk(content="Half"), error)) == error


def test_pieces_of_tool_calls_go_by_their_index():
    events = [
        chunk(content=None, tool_calls=[{"index": 0, "id": "a", "type": "function",
                                         "function": {"name": "now", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}]),
        chunk(tool_calls=[{"index": 1, "id": "b", "function": {"name": "later", "arguments": "{}"}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '"Oslo"}'}}]),
        chunk("tool_calls"),
    ]  # fmt: skip
    made = message(stream(*events))
    assert made["content"] is None
    assert [(one["id"], one["type"], one["function"]) for one in made["tool_calls"]] == [
        ("a", "function", {"name": "now", "arguments": '{"city": "Oslo"}'}),
        ("b", "function", {"name": "later", "arguments": "{}"}),
    ]


def test_json_is_no_stream():
    assert not is_stream(b'{"choices": []}') and not is_stream(b"  [1]") and not is_stream(b"<html>")
