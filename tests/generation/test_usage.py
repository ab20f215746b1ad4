"""Token counts with the oddities of real servers, what they cost, and a budget that reasoning does not pass."""

import logging

import pytest
from starlette.responses import JSONResponse

from persyn_hf.config import Teacher
from persyn_hf.generation.generate import generate_parallel, summarize_generation
from persyn_hf.generation.usage import Usage, count, read_usage
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(10, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015}, Usage(10, 1005)),
        (
            {
                "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 1015,
                "completion_tokens_details": {"reasoning_tokens": 1000}, "prompt_tokens_details": {"cached_tokens": 8},
            },
            Usage(10, 1005, 8, 1000),
        ),
        # Inside of the completion, as OpenAI counts it.
        (
            {
                "prompt_tokens": 10, "completion_tokens": 700, "total_tokens": 710,
                "completion_tokens_details": {"reasoning_tokens": 600},
            },
            Usage(10, 700, None, 600),
        ),
        # No total: more reasoning than completion cannot be inside of it.
        (
            {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 64}},
            Usage(10, 69, None, 64),
        ),
        ({"input_tokens": 10, "output_tokens": 5}, Usage(10, 5)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}, Usage(9, 2, 4)),
        ({"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 40}}, Usage(9, 2, 9)),
        ({"prompt_tokens": "12", "completion_tokens": 4.0, "total_tokens": None}, Usage(12, 4)),
        ({"completion_tokens": 4, "total_tokens": 16}, Usage(12, 4)),
        ({"prompt_tokens": 10, "total_tokens": 16}, Usage(10, 6)),
        ({"prompt_tokens": -3, "completion_tokens": float("nan"), "total_tokens": 2}, Usage()),
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 3}, Usage(10, 5)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage()),
        ({"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": None}, Usage(3, 5)),
        (None, Usage()), ([], Usage()), ("many", Usage()),
    ],
)  # fmt: skip
def test_usage_is_read_as_services_count_it(usage, expected):
    assert read_usage(usage) == expected


def test_counts_that_cannot_be_believed_are_none():
    assert [count(value) for value in (7, 7.0, "7", 0)] == [7, 7, 7, 0]
    assert [count(v) for v in (-1, 7.5, "7.5", "", True, None, float("inf"), 10**9, "9" * 30, [7])] == [None] * 10


def test_a_price_counts_what_is_cached_and_what_is_thought():
    common = {"name": "t", "model": "m", "endpoint": "http://h"}
    teacher = Teacher(**common, price_per_million_prompt_tokens=2, price_per_million_completion_tokens=10)
    assert teacher.price(1e6, 1e6, 5e5, 5e5) == 12
    teacher = Teacher(
        **common,
        price_per_million_prompt_tokens=2,
        price_per_million_completion_tokens=10,
        price_per_million_cached_tokens=0.5,
        price_per_million_reasoning_tokens=4,
    )
    assert teacher.price(1e6, 1e6, 5e5, 5e5) == 1 + 0.25 + 5 + 2
    assert Teacher(**common, price_per_million_reasoning_tokens=4).has_price


def reasoning(tokens, prompt=10):
    body = chat_body("4")
    body["usage"] = {
        "prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5 + tokens,
        "completion_tokens_details": {"reasoning_tokens": tokens}, "prompt_tokens_details": {"cached_tokens": 4},
    }  # fmt: skip
    return JSONResponse(body)


def generate(behave, count, ledger, max_cost=None, **settings):
    with serve(Double(behave)) as server:
        one = {
            "name": "t", "model": "m", "endpoint": server.url, "sampling": {"max_tokens": 64},
            "price_per_million_completion_tokens": 1000.0, **settings,
        }  # fmt: skip
        table = generate_parallel([f"q{n}" for n in range(count)], [one], ledger, progress=False, max_cost=max_cost)
    return table, server


def test_what_was_thought_is_in_table_ledger_and_sums(tmp_path):
    table, _ = generate(
        lambda n, body: reasoning(100), 3, tmp_path / "l",
        price_per_million_reasoning_tokens=2000.0, price_per_million_prompt_tokens=100.0,
        price_per_million_cached_tokens=0.0,
    )  # fmt: skip
    assert table["completion_tokens"][:] == [105] * 3
    assert (table["reasoning_tokens"][0], table["cached_tokens"][0]) == (100, 4)
    summary = summarize_generation(table)["t"]
    assert (summary.completion_tokens, summary.reasoning_tokens, summary.cached_tokens) == (315, 300, 12)
    with Ledger(tmp_path / "l") as ledger:
        (line,) = ledger.totals()
        assert (line["completion_tokens"], line["reasoning_tokens"], line["cached_tokens"]) == (315, 300, 12)
        assert line["cost"] == pytest.approx(3 * (6 * 100 + 5 * 1000 + 100 * 2000) / 1e6)


@pytest.mark.parametrize(
    "lengths", [[1000], [10, 10, 10, 1000], [200, 400, 1000]], ids=["at once", "later", "growing"]
)
def test_reasoning_beyond_max_tokens_does_not_pass_the_budget(lengths, tmp_path, caplog):
    # USD 0.001 a token: an answer of 64 tokens is 0.064, one with 1,000 tokens of reasoning 1.005.
    with caplog.at_level(logging.WARNING):
        _, server = generate(
            lambda n, body: reasoning(lengths[min(n, len(lengths)) - 1]), 60, tmp_path / "l", 5.0, max_concurrency=2
        )
    with Ledger(tmp_path / "l") as ledger:
        spent = ledger.spent()
    assert spent <= 5.0
    assert spent > 2.0  # what is left is less than two answers' worst case
    assert len(server.bodies) < 60
    told = [r.getMessage() for r in caplog.records if "reasoning is charged in addition" in r.getMessage()]
    assert len(told) == 1


def test_one_request_goes_ahead_where_there_is_a_limit(tmp_path):
    _, server = generate(lambda n, body: reasoning(4000), 40, tmp_path / "l", 3.0)
    assert len(server.bodies) == 1  # not sixteen
