"""Answers that are asked for again until one is good enough."""

import pytest
from datasets import Dataset
from starlette.responses import JSONResponse

from persyn_hf.columns import prompt_id
from persyn_hf.config import Accept, Quality, Teacher
from persyn_hf.generation import preflight
from persyn_hf.run.accept import accepted_answers, answer_until_accepted
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve


@pytest.fixture(autouse=True)
def _no_endpoint_is_known() -> None:
    preflight._passed.clear()


def routed(count, names=("a", "b", "c")):
    """Prompts `n 0`, `n 1` …, all routed to the first teacher, the others behind it in their order."""
    texts = [f"n {row}" for row in range(count)]
    return Dataset.from_dict(
        {
            "prompt_id": [prompt_id(text) for text in texts],
            "prompt": texts,
            "answer": ["yes"] * count,
            "route": [names[0]] * count,
            "route_scores": [[float(-place) for place in range(len(names))]] * count,
        }
    )


def right_on(*numbers, reason="stop"):
    """A teacher that says `yes` to these prompts and `no` to the others."""

    def behave(n, body):
        number = int(body["messages"][-1]["content"].split()[1])
        return JSONResponse(chat_body("yes" if number in numbers else "no", reason))

    return behave


@pytest.fixture
def teachers():
    """Starts doubles by their behaviour; gives the teachers and the doubles."""
    running = []

    def start(*behaviours, **settings):
        doubles = [Double(behave=behave) for behave in behaviours]
        for double in doubles:
            context = serve(double)
            context.__enter__()
            running.append(context)
        return [
            Teacher(name=name, model=f"m-{name}", endpoint=double.url, **settings)
            for name, double in zip("abc", doubles, strict=False)
        ], doubles

    yield start
    for context in running:
        context.__exit__(None, None, None)


def asked(doubles):
    return [sorted(int(body["messages"][-1]["content"].split()[1]) for body in one.bodies) for one in doubles]


def attempts(table):
    return [(row["prompt"], row["teacher"], row["attempt"], row["accepted"]) for row in table]


EXACT = Quality(verifier="exact")


def test_the_next_teacher_is_asked_until_one_is_right(teachers, tmp_path):
    chosen, doubles = teachers(right_on(0), right_on(1), right_on(0, 1, 2))
    table = answer_until_accepted(
        routed(4), teachers=chosen, seed=0, accept=Accept(min_quality=1.0), quality=EXACT, progress=False
    )
    assert attempts(table) == [
        ("n 0", "a", 0, True),
        ("n 1", "a", 0, False),
        ("n 1", "b", 0, True),
        ("n 2", "a", 0, False),
        ("n 2", "b", 0, False),
        ("n 2", "c", 0, True),
        ("n 3", "a", 0, False),
        ("n 3", "b", 0, False),
        ("n 3", "c", 0, False),
    ]
    assert asked(doubles) == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert table["quality"][:] == [1, 0, 1, 0, 0, 1, 0, 0, 0]
    assert accepted_answers(table)["prompt"][:] == ["n 0", "n 1", "n 2"]
    assert table["accept_error"][:] == [None] * 9


def test_the_same_teacher_is_asked_with_another_seed(teachers):
    chosen, doubles = teachers(right_on(0), right_on(0, 1))
    table = answer_until_accepted(
        routed(2, "ab"), teachers=chosen, seed=0, accept=Accept(min_quality=1.0, retry="same"), quality=EXACT,
        progress=False,
    )  # fmt: skip
    assert attempts(table) == [("n 0", "a", 0, True)] + [("n 1", "a", number, False) for number in range(3)]
    assert asked(doubles) == [[0, 1, 1, 1], []]
    seeds = [body["seed"] for body in doubles[0].bodies if body["messages"][-1]["content"] == "n 1"]
    assert len(set(seeds)) == 3


def test_more_attempts_than_teachers_go_round_but_for_one_whose_answer_is_fixed(teachers):
    chosen, doubles = teachers(right_on(), right_on())
    cold = chosen[0].model_copy(update={"sampling": chosen[0].sampling.model_copy(update={"temperature": 0.0})})
    table = answer_until_accepted(
        routed(1, "ab"), teachers=[cold, chosen[1]], seed=0, accept=Accept(min_quality=1.0, attempts=4), quality=EXACT,
        progress=False,
    )  # fmt: skip
    assert attempts(table) == [
        ("n 0", "a", 0, False), ("n 0", "b", 0, False), ("n 0", "b", 1, False), ("n 0", "b", 2, False),
    ]  # fmt: skip
    assert asked(doubles) == [[0], [0, 0, 0]]


def test_a_cut_answer_is_not_good_enough_whatever_its_quality(teachers):
    chosen, _ = teachers(right_on(0, reason="length"), right_on(0))
    table = answer_until_accepted(
        routed(1, "ab"), teachers=chosen, seed=0, accept=Accept(min_quality=1.0), quality=EXACT, progress=False
    )
    assert attempts(table) == [("n 0", "a", 0, False), ("n 0", "b", 0, True)]


def test_the_run_stops_at_the_rows_that_are_wanted(teachers, tmp_path):
    chosen, doubles = teachers(right_on(*range(0, 40, 2)), right_on())
    accept = Accept(min_quality=1.0, attempts=2, target_rows=7)
    ledger = tmp_path / "ledger.sqlite"
    table = answer_until_accepted(
        routed(40, "ab"), teachers=chosen, seed=0, accept=accept, quality=EXACT, ledger=ledger, progress=False
    )
    kept = accepted_answers(table)
    assert kept["prompt"][:] == [f"n {number}" for number in range(0, 14, 2)]
    assert asked(doubles)[0] == list(range(13))  # the thirteenth prompt has the seventh good answer
    again = answer_until_accepted(
        routed(40, "ab"), teachers=chosen, seed=0, accept=accept, quality=EXACT, ledger=ledger, progress=False
    )
    assert attempts(again) == attempts(table)
    assert sum(map(len, asked(doubles))) == 13 + 6


def test_a_prompt_that_nobody_answers_says_why_and_one_that_another_answers_does_not(teachers):
    def broken(n, body):
        return JSONResponse({"error": {"message": "No answer to that."}}, 422)

    chosen, _ = teachers(broken, right_on(0))
    table = answer_until_accepted(
        routed(2, "ab"), teachers=chosen, seed=0, accept=Accept(min_quality=1.0, attempts=2), quality=EXACT,
        progress=False,
    )  # fmt: skip
    assert [row["accept_error"] for row in table] == [None] * 4
    alone = answer_until_accepted(
        routed(1, "a"), teachers=chosen[:1], seed=0, accept=Accept(min_quality=1.0, attempts=1), quality=EXACT,
        progress=False,
    )  # fmt: skip
    assert "No answer to that." in alone["accept_error"][0]


def test_no_prompt_gives_no_row(teachers):
    chosen, doubles = teachers(right_on())
    table = answer_until_accepted(
        routed(1, "a").select([]), teachers=chosen, seed=0, accept=Accept(min_quality=1.0), quality=EXACT,
        progress=False,
    )  # fmt: skip
    assert len(table) == 0 and {"accepted", "accept_error", "quality", "attempt"} <= set(table.column_names)
    assert asked(doubles) == [[]]
