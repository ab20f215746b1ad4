"""Tools and tool calls go through generation, the table and the training set as they were."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from datasets import Dataset, IterableDataset
from starlette.responses import Response
from transformers import AutoTokenizer

import persyn_hf
from persyn_hf.config import Teacher
from persyn_hf.errors import DataError, PromptTooLongError
from persyn_hf.generation.describe import EndpointLimits
from persyn_hf.generation.preflight import require_fit
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
TALK = [
    {"role": "user", "content": "Weather?", "name": "Ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "5 C"},
]


@pytest.fixture
def server():
    """A teacher that answers with what `replies` holds, and keeps the bodies that it was asked with."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        reply = ({"role": "assistant", "content": "Rain."}, "stop")

        def log_message(self, *_):
            pass

        def do_POST(self):
            seen.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            message, reason = self.reply
            usage = {"prompt_tokens": 7, "completion_tokens": 5}
            choices = [{"index": 0, "finish_reason": reason, "message": message}]
            self._send({"choices": choices, "usage": usage})

        def do_GET(self):
            self._send({"object": "list", "data": [{"id": name, "object": "model"} for name in "am"]})

        def _send(self, value):
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    listening.seen, listening.handler = seen, Handler
    yield listening
    listening.shutdown()
    listening.server_close()


def answered(server, prompts, ledger=None):
    teacher = {"name": "t", "model": "m", "endpoint": f"http://127.0.0.1:{server.server_port}"}
    return persyn_hf.generate_parallel(prompts, [teacher], ledger=ledger, progress=False)


def test_tools_and_tool_turns_are_sent_as_they_were(server):
    rows = [{"prompt": TALK, "tools": TOOLS, "id": 1}, {"prompt": "Hi", "tools": None, "id": 2}]
    made = answered(server, [rows[0]])
    assert server.seen[0]["messages"] == TALK and server.seen[0]["tools"] == TOOLS
    assert made["prompt"][0] == TALK and made["tools"][0] == TOOLS and made["id"][:] == [1]
    assert made["tool_calls"][:] == [None] and made["completion"][:] == ["Rain."]
    answered(server, [rows[1]])
    assert "tools" not in server.seen[1]


def test_nulls_that_arrow_adds_are_not_sent(server):
    """A struct column gives every message, call and argument the keys of all others."""
    other = [
        {"role": "user", "content": "Add"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c2", "type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
    ]
    first = [TALK[0], {**TALK[1], "tool_calls": [{**CALL, "function": {"name": "w", "arguments": {"city": "O"}}}]}]
    table = Dataset.from_list([{"prompt": [*first, TALK[2]]}, {"prompt": other}])
    assert table[1]["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"city": None, "a": 2}
    answered(server, table)
    sent = {body["messages"][0]["content"]: body["messages"] for body in server.seen}
    assert sent["Add"] == other and sent["Weather?"] == [*first, TALK[2]]


def test_an_answer_that_calls_tools_is_an_answer(server, tmp_path):
    server.handler.reply = ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls")
    for _ in range(2):  # the second time from the ledger
        made = answered(server, [{"prompt": TALK[:1], "tools": TOOLS}], tmp_path / "ledger.sqlite")
        assert made["error"][:] == [None] and made["finish_reason"][:] == ["stop"]
        assert made["tool_calls"][0] == [CALL]
        shown = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        assert made["completion"][:] == [shown]
    assert len(server.seen) == 1
    row = persyn_hf.personalize(made)[0]
    assert row["completion"] == [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert row["prompt"] == TALK[:1] and row["tools"] == TOOLS


def test_words_beside_a_call_are_kept(server):
    server.handler.reply = ({"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}, "tool_calls")
    made = answered(server, [{"prompt": "Weather?", "tools": TOOLS}])
    assert made["completion"][0].startswith("Let me look.\n<tool_call>")
    assert persyn_hf.personalize(made)[0]["completion"][0]["content"] == "Let me look."


def test_a_call_that_was_cut_is_no_answer(server):
    broken = {**CALL, "function": {"name": "weather", "arguments": '{"ci'}}
    server.handler.reply = ({"role": "assistant", "content": None, "tool_calls": [broken]}, "length")
    made = answered(server, [{"prompt": "Weather?", "tools": TOOLS}])
    assert made["completion"][:] == made["tool_calls"][:] == [None] and "call of a tool" in made["error"][0]


def test_content_parts_reach_the_teacher_unharmed(server):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "data:image/png,x"}}]
    rows = [{"prompt": [{"role": "user", "content": parts}]}, {"prompt": [{"role": "user", "content": "Hi"}]}]
    made = answered(server, rows)
    assert {json.dumps(body["messages"]) for body in server.seen} == {json.dumps(row["prompt"]) for row in rows}
    assert made["prompt"][:] == [row["prompt"] for row in rows]
    server.seen.clear()
    union = Dataset.from_list([{"prompt": rows[0]["prompt"]}])  # parts as structs, with nulls
    answered(server, union)
    assert server.seen[0]["messages"] == rows[0]["prompt"]


def test_a_prompt_that_ends_with_an_answer_is_never_sent(server):
    talk = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(DataError, match=r"Row 1: A prompt ends with an assistant's turn, '4'.*Drop the last message"):
        answered(server, [{"prompt": "Hi"}, {"prompt": talk}])
    assert server.seen == []


def test_rows_generators_and_streams_are_taken(server):
    made = [
        answered(server, given)["prompt"][:]
        for given in (
            ["Hi"],
            ({"prompt": "Hi"} for _ in range(1)),
            IterableDataset.from_generator(lambda: iter([{"prompt": "Hi"}])),
            [[{"role": "user", "content": "Hi"}]],
        )
    ]
    assert made == [["Hi"], ["Hi"], ["Hi"], [[{"role": "user", "content": "Hi"}]]]


def test_one_shape_of_row_that_is_none_is_named(server):
    with pytest.raises(DataError, match="Row 1: expected a mapping with `prompt`, or a prompt, got int"):
        answered(server, ["Hi", 5])


def test_calls_of_a_stream_are_put_together_by_index():
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET"}'}},
    ]

    def piece(index, **function):
        return {"index": index, "function": function}

    def delta(*pieces, **more):
        return {"choices": [{"index": 0, "delta": {"tool_calls": list(pieces), **more}}]}

    events = [
        delta(piece(0, name="weather", arguments="") | {"id": "c1", "type": "function"}, role="assistant"),
        delta(piece(0, arguments='{"city"')),
        delta(piece(1, name="time", arguments="") | {"id": "c2", "type": "function"}),
        delta(piece(1, arguments='{"zone": '), piece(0, arguments=': "Oslo"}')),  # both in one event
        delta(piece(1, arguments='"CET"}')),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}},
    ]
    body = "".join(f"data: {json.dumps(one)}\n\n" for one in events) + "data: [DONE]\n\n"

    def stream(n, asked):
        assert asked["stream"] is True and asked["tools"] == TOOLS
        return Response(body, media_type="text/event-stream")

    with serve(Double(stream)) as double:
        teacher = {"name": "t", "model": "m", "endpoint": double.url, "stream": True, "preflight": False}
        rows = [{"prompt": "Weather?", "tools": TOOLS}]
        made = persyn_hf.generate_parallel(rows, [teacher], progress=False)
    assert made["error"][:] == [None] and made["tool_calls"][0] == calls
    assert made["completion_tokens"][:] == [5]


def test_a_call_that_max_tokens_cut_names_max_tokens(server):
    broken = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}
    server.handler.reply = ({"role": "assistant", "content": None, "tool_calls": [broken]}, "length")
    made = answered(server, [{"prompt": "Weather?", "tools": TOOLS}])
    assert made["error"][:] == ["`max_tokens` (1024) cut the answer in a call of a tool (`weather`); raise it"]


def test_what_tools_take_of_the_context_counts_before_anything_is_asked(tiny_lm, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path)
    long = [{"type": "function", "function": {"name": "f", "description": "a word " * 200, "parameters": {}}}]
    teacher = Teacher(name="t", model="m", tokenizer=str(tmp_path), endpoint="http://h", sampling={"max_tokens": 4})
    question, limits = ({"role": "user", "content": "Hi"},), EndpointLimits(max_total_tokens=1204)
    require_fit(teacher, limits, [(question, {})])
    with pytest.raises(PromptTooLongError, match="1 of 2 prompts do not fit"):
        require_fit(teacher, limits, [(question, {}), (question, {"tools": long})])
