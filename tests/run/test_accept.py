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
from tests.scoring.servers import Judge
from tests.scoring.servers import serve as serve_scorer


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


class Lost(Exception):
    """What ends a run in the middle."""


def test_a_run_that_ends_in_a_wave_asks_nothing_twice(teachers, tmp_path, monkeypatch):
    """The run dies after the answers of its second wave, before the third: the next one asks the third's only."""
    from persyn_hf.run import accept as module

    chosen, doubles = teachers(right_on(0, 1), right_on(2, 3), right_on(4))
    how = {"seed": 0, "accept": Accept(min_quality=1.0), "quality": EXACT, "ledger": tmp_path / "l", "progress": False}
    answered, waves = module._answered, []

    def dies(*arguments):
        waves.append(answered(*arguments))
        if len(waves) == 2:
            raise Lost
        return waves[-1]

    monkeypatch.setattr(module, "_answered", dies)
    with pytest.raises(Lost):
        answer_until_accepted(routed(6), teachers=chosen, **how)
    assert asked(doubles) == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], []]
    monkeypatch.setattr(module, "_answered", answered)
    table = answer_until_accepted(routed(6), teachers=chosen, **how)
    assert asked(doubles) == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5], [4, 5]]
    assert accepted_answers(table)["prompt"][:] == ["n 0", "n 1", "n 2", "n 3", "n 4"]


@pytest.mark.parametrize("limit", [{"temperature": 0.0}, {"seed": 7}])
def test_a_teacher_whose_answer_is_fixed_is_asked_once(teachers, limit):
    chosen, doubles = teachers(right_on(), sampling=limit)
    accept = Accept(min_quality=1.0, retry="same")
    table = answer_until_accepted(
        routed(1, "a"), teachers=chosen, seed=0, accept=accept, quality=EXACT, progress=False
    )
    assert attempts(table) == [("n 0", "a", 0, False)] and asked(doubles) == [[0]]


def test_a_teacher_that_is_shut_out_is_asked_by_no_retry(teachers):
    chosen, doubles = teachers(right_on(), right_on(0), right_on(0))
    table = answer_until_accepted(
        routed(1), teachers=chosen, seed=0, accept=Accept(min_quality=1.0), quality=EXACT, never=["b"], progress=False
    )
    assert attempts(table) == [("n 0", "a", 0, False), ("n 0", "c", 0, True)] and asked(doubles)[1] == []


#: A token costs a dollar; an answer has 3 + 5 of them, and sets 3 + 64 + 5 aside at most.
PRICED = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}


def test_without_money_prompts_are_left_and_the_next_run_goes_on(teachers, tmp_path):
    chosen, doubles = teachers(right_on(0, 1), right_on(2), sampling={"max_tokens": 5}, max_concurrency=1, **PRICED)
    how = {
        "teachers": chosen, "seed": 0, "accept": Accept(min_quality=1.0, attempts=2), "quality": EXACT,
        "ledger": tmp_path / "l", "progress": False,
    }  # fmt: skip
    table = answer_until_accepted(routed(4, "ab"), max_cost=100.0, **how)
    paid = asked(doubles)
    assert sum(map(len, paid)) * 8 <= 100 and paid == [[0, 1, 2, 3], []]
    assert attempts(table) == [
        ("n 0", "a", 0, True),
        ("n 1", "a", 0, True),
        ("n 2", "a", 0, False),
        ("n 2", "b", 0, False),
        ("n 3", "a", 0, False),
        ("n 3", "b", 0, False),
    ]
    left = {row["prompt"]: row["accept_error"] for row in table if row["accept_error"] is not None}
    assert list(left) == ["n 2", "n 3"] and left["n 2"].startswith("`max_cost` (100 USD)")
    more = answer_until_accepted(routed(4, "ab"), max_cost=1000.0, **how)
    assert asked(doubles) == [[0, 1, 2, 3], [2, 3]]
    assert accepted_answers(more)["prompt"][:] == ["n 0", "n 1", "n 2"] and more["accept_error"][:] == [None] * 6


def test_no_money_begins_no_further_prompt_for_the_target(teachers, tmp_path):
    chosen, doubles = teachers(right_on(1), right_on(), sampling={"max_tokens": 5}, max_concurrency=1, **PRICED)
    table = answer_until_accepted(
        routed(9, "ab"), teachers=chosen, seed=0, accept=Accept(min_quality=1.0, target_rows=2), quality=EXACT,
        ledger=tmp_path / "l", max_cost=80.0, progress=False,
    )  # fmt: skip
    assert asked(doubles) == [[0, 1], []]  # 16 USD are spent, and 72 + 16 would be too many
    assert sorted(set(table["prompt"])) == ["n 0", "n 1"] and len(accepted_answers(table)) == 1


def test_an_answer_that_the_judge_did_not_score_costs_no_attempt(teachers, tmp_path):
    """Two judgements fail: no teacher is asked again for these prompts, and the next run asks the judge alone."""
    chosen, doubles = teachers(right_on(0, 1, 2, 3), right_on())
    dumb = {1, 2}

    def reply(text):
        number = int(text.split("[Request]\nn ")[1].split("\n")[0])
        return "Hm." if number in dumb else "9" if number != 2 else "3"

    judge = Judge(reply=reply)
    with serve_scorer(judge) as url:
        quality = Quality.model_validate({"judge": {"url": url, "model": "j", "max_concurrency": 1, "attempts": 1}})
        how = {
            "teachers": chosen, "seed": 0, "accept": Accept(min_quality=5.0, attempts=2), "quality": quality,
            "ledger": tmp_path / "l", "progress": False,
        }  # fmt: skip
        table = answer_until_accepted(routed(4, "ab"), **how)
        assert attempts(table) == [(f"n {n}", "a", 0, n not in dumb) for n in range(4)]
        assert [row["prompt"] for row in table if "Hm." in (row["accept_error"] or "")] == ["n 1", "n 2"]
        assert asked(doubles) == [[0, 1, 2, 3], []] and len(judge.bodies) == 4
        dumb.clear()
        again = answer_until_accepted(routed(4, "ab"), **how)
    assert len(judge.bodies) == 4 + 2 + 1  # the two, and the next teacher's answer to the one that got 3
    assert asked(doubles) == [[0, 1, 2, 3], [2]]
    assert accepted_answers(again)["prompt"][:] == ["n 0", "n 1", "n 3"] and again["accept_error"][:] == [None] * 5


def test_an_answer_without_a_score_may_be_one_of_the_rows_that_are_wanted(teachers):
    """As long as it is not known whether it is good, no further prompt is begun in its place."""
    chosen, doubles = teachers(right_on(*range(9)), right_on())
    judge = Judge(reply=lambda text: "Hm." if "n 0\n" in text else "9")
    with serve_scorer(judge) as url:
        quality = Quality.model_validate({"judge": {"url": url, "model": "j", "max_concurrency": 1, "attempts": 1}})
        table = answer_until_accepted(
            routed(9, "ab"), teachers=chosen, seed=0, accept=Accept(min_quality=5.0, target_rows=3), quality=quality,
            progress=False,
        )  # fmt: skip
    assert asked(doubles) == [[0, 1, 2], []] and len(accepted_answers(table)) == 2


def test_a_teacher_that_took_over_is_not_asked_the_same_again(monkeypatch):
    """`a` is down and `b` answers in its place, so that the next try is another draw and not `b`'s same answer."""
    from persyn_hf.run import accept as module

    def taken_over(asked, *_):
        made = {
            "teacher": ["b"] * len(asked), "quality": [0.0] * len(asked), "finish_reason": ["stop"] * len(asked),
            "quality_error": [None] * len(asked), "error": [None] * len(asked),
        }  # fmt: skip
        for name, values in made.items():
            asked = module.set_column(asked, name, values, "float64" if name == "quality" else "string")
        return asked

    monkeypatch.setattr(module, "_answered", taken_over)
    both = [Teacher(name=name, model=name, endpoint="http://127.0.0.1:1") for name in "ab"]
    table = answer_until_accepted(
        routed(1, "ab"), teachers=both, seed=0, accept=Accept(min_quality=1.0), quality=EXACT, progress=False
    )
    assert [(row["route"], row["teacher"], row["attempt"]) for row in table] == [("a", "b", 0), ("a", "b", 1)]
