"""Each shape of prompts goes from its file to the published dataset, through teachers, scores, router and cards."""

import csv
import gzip
import json

import pytest
from datasets import load_dataset

from persyn_hf import RunConfig, run
from tests.generation.test_tools import CALL, TOOLS, server

__all__ = ["server"]

COUNT = 12
TOOL_TURN = {"role": "tool", "tool_call_id": "c1", "content": "5 C"}


def user(index):
    return {"role": "user", "content": f"What is the weather on day {index}?"}


def called(index):
    call = {**CALL, "function": {"name": "weather", "arguments": {"day": index} if index % 2 else {"city": "Oslo"}}}
    return [user(index), {"role": "assistant", "content": None, "tool_calls": [call]}, TOOL_TURN]


def uneven(index):
    return [{"role": "system", "content": "Help."}, user(index) | ({"name": "Ann"} if index % 2 else {})]


def text(index):
    return user(index)["content"]


#: By shape: a row of the file, the published prompt, and what the published row has beside it.
SHAPES = {
    "text": (lambda i: {"prompt": text(i)}, lambda i: [user(i)]),
    "messages": (lambda i: {"messages": [user(i), {"role": "assistant", "content": "Sun."}]}, lambda i: [user(i)]),
    "uneven": (
        lambda i: {
            "messages": [{"role": "system", "content": "Help."}, {**user(i), **({"name": "Ann"} if i % 2 else {})}]
        },
        lambda i: [{"role": "system", "content": "Help."}, {**user(i), **({"name": "Ann"} if i % 2 else {})}],
    ),
    "sharegpt": (
        lambda i: {"conversations": [{"from": "human", "value": text(i)}, {"from": "gpt", "value": "Sun."}]},
        lambda i: [user(i)],
    ),
    "alpaca": (
        lambda i: {"instruction": "Say.", "input": text(i)},
        lambda i: [{**user(i), "content": f"Say.\n\n{text(i)}"}],
    ),
    "question": (lambda i: {"question": text(i)}, lambda i: [user(i)]),
    "preference": (
        lambda i: {name: [user(i), {"role": "assistant", "content": name}] for name in ("chosen", "rejected")},
        lambda i: [user(i)],
    ),
    "tools": (lambda i: {"messages": called(i), "tools": TOOLS}, called),
    "parts": (
        lambda i: {"messages": [{"role": "user", "content": [{"type": "text", "text": text(i)}]}]},
        lambda i: [{"role": "user", "content": [{"type": "text", "text": text(i)}]}],
    ),
}


def published(server, tmp_path, tiny_lm, models, source):
    """Runs all stages with two teachers; gives the rows of the dataset."""
    address = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "output_dir": str(tmp_path / "run"),
        "prompts": {"source": str(source)},
        "probe": {"size": COUNT - 2},
        "teachers": [
            {"name": name, "model": name, "endpoint": address, "sampling": {"max_tokens": 64}} for name in ("a", "m")
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "exact"},
        "router": {"backbone": str(models / "all-MiniLM-L6-v2"), "folds": 2},
    }
    run(RunConfig.from_dict(settings), progress=False)
    data = load_dataset(str(tmp_path / "run/dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    return sorted(data, key=lambda row: int(row["id"]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_from_its_file_to_the_published_dataset(shape, server, tmp_path, tiny_lm, models):
    row, prompt = SHAPES[shape]
    rows = [{**row(index), "id": index, "answer": "Rain."} for index in range(COUNT)]
    source = tmp_path / "p.jsonl.gz"
    source.write_bytes(gzip.compress("".join(json.dumps(one) + "\n" for one in rows).encode()))
    made = published(server, tmp_path, tiny_lm, models, source)
    assert [one["prompt"] for one in made] == [prompt(index) for index in range(COUNT)]
    assert [one["id"] for one in made] == list(range(COUNT)) and {one["answer"] for one in made} == {"Rain."}
    assert all(one["completion"][0]["content"] == "Rain." for one in made)
    sent = [body["messages"] for body in server.seen]
    assert all(prompt(index) in sent for index in range(COUNT))
    assert (shape == "tools") == all(body.get("tools") == TOOLS for body in server.seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_answers_that_call_tools_from_file_to_the_published_dataset(server, tmp_path, tiny_lm, models):
    server.handler.reply = ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls")
    rows = [{"messages": [user(index)], "tools": TOOLS, "id": index, "answer": "x"} for index in range(COUNT)]
    source = tmp_path / "p.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in rows))
    for one in published(server, tmp_path, tiny_lm, models, source):
        assert one["completion"] == [{"role": "assistant", "content": None, "tool_calls": [CALL]}]
        assert one["tools"] == TOOLS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_table_of_text_from_file_to_the_published_dataset(server, tmp_path, tiny_lm, models):
    with (tmp_path / "p.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "id", "answer"])
        writer.writerows([text(index), f"00{index}", "Rain."] for index in range(COUNT))
    made = published(server, tmp_path, tiny_lm, models, tmp_path / "p.csv")
    assert [one["id"] for one in made] == [f"00{index}" for index in range(COUNT)]
    assert [one["prompt"] for one in made] == [[user(index)] for index in range(COUNT)]
