"""The judge is a paid teacher of scores: ledger, purse and Ctrl-C as for teachers; only what failed is asked again."""

import itertools
import os
import signal
import threading
import time

import pytest
from datasets import Dataset
from starlette.responses import JSONResponse

from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.score import score
from tests.scoring.servers import Judge, Student, serve

#: 1 + 1 tokens at a dollar each; the worst case of a reply is the request's bytes + 64 + 10 tokens.
PRICED = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}


def batch(count):
    return {"prompt": [f"Question {n}" for n in range(count)], "completion": [f"Answer {n}" for n in range(count)]}


def asked(double):
    return [body["messages"][-1]["content"].rpartition("[Response]\n")[2].split("\n")[0] for body in double.bodies]


def judged(url, ledger, count=10, **more):
    judge = {"url": url, "model": "big", **more}
    return persyn_quality(batch(count), judge=judge, ledger=ledger)


def test_what_the_ledger_has_is_not_asked_again(tmp_path):
    double, path = Judge(reply=lambda text: f"Score: {len(text) % 9 + 1}"), tmp_path / "l.sqlite"
    with serve(double) as url:
        first = judged(url, path)
        assert judged(url, path) == first and len(double.bodies) == 10
        assert judged(url, path, 12)["quality"][:10] == first["quality"] and len(double.bodies) == 12
        # All that a reply depends on is part of its key; where the judge is, is not.
        for more in (
            {"temperature": 0.5},
            {"seed": 1},
            {"revision": "v2"},
            {"max_tokens": 7},
            {"template": "{{ completion }}"},
        ):
            before = len(double.bodies)
            judged(url, path, 1, **more)
            judged(url.replace("127.0.0.1", "localhost"), path, 1, **more)
            assert len(double.bodies) == before + 1
    with Ledger(path) as ledger:
        row = next(row for row in ledger.rows() if row["revision"] == "v2")
        assert (row["kind"], row["model"], row["prompt_tokens"], row["completion_tokens"]) == ("judge", "big", 1, 1)
        assert row["text"].startswith("Score: ")


def test_equal_questions_are_asked_once(tmp_path):
    double = Judge()
    with serve(double) as url:
        rows = {"prompt": ["p"] * 5, "completion": ["same"] * 5}
        assert persyn_quality(rows, judge={"url": url, "model": "m"})["quality"] == [7.0] * 5
    assert len(double.bodies) == 1


def test_only_failed_judgements_are_asked_again_and_were_paid_for(tmp_path):
    path, count = tmp_path / "l.sqlite", itertools.count()
    double = Judge(reply=lambda text: "I cannot say." if next(count) in (3, 5) else "8")
    with serve(double) as url:
        first = judged(url, path, max_concurrency=1, **PRICED)
        failed = [n for n, value in enumerate(first["quality"]) if value is None]
        assert len(failed) == 2 and "'I cannot say.'" in first["quality_error"][failed[0]]
        again = judged(url, path, max_concurrency=1, **PRICED)
    assert again["quality"] == [8.0] * 10 and again["quality_error"] == [None] * 10
    assert sorted(asked(double)[10:]) == sorted(f"Answer {n}" for n in failed)
    with Ledger(path) as ledger:
        totals = {line["kind"]: (line["answers"], line["cost"]) for line in ledger.totals()}
        assert totals == {"judge": (10, 20.0), "judge (no score)": (2, 4.0)}
        assert (ledger.spent(), ledger.lost()) == (24.0, 0.0)


def test_a_judge_that_never_gives_a_number_is_told_at_its_first_replies(tmp_path):
    double = Judge(reply=lambda text: "As an AI model,\x1b[2J I do not rate.")
    with serve(double) as url, pytest.raises(ScoringError) as raised:
        judged(url, tmp_path / "l.sqlite", 200)
    said = str(raised.value)
    assert len(double.bodies) == 8, "one by one, until one can be read"
    assert said.startswith(f"the judge `big` at {url} gave 8 replies in a row that are not scores")
    assert "0 of 200 answers have a score" in said and "As an AI model," in said and "\x1b" not in said
    assert "Expected: the last line must be the score alone, such as `7`" in said


def test_a_judge_that_refuses_everything_is_told_in_its_words():
    words = {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}}
    double = Judge()
    double.behave = lambda count, body: JSONResponse(words, 400) if "temperature" in body else None
    with serve(double) as url:
        with pytest.raises(ScoringError, match="'temperature' does not support 0"):
            judged(url, None, 100)
        assert len(double.bodies) <= 8
        assert judged(url, None, 3, temperature=None)["quality"] == [7.0] * 3


def test_the_request_says_what_is_configured():
    double = Judge()
    with serve(double) as url:
        judged(url, None, 1)
        judged(url, None, 1, temperature=None, seed=None, max_tokens=9, max_tokens_field="max_completion_tokens",
               extra_body={"reasoning_effort": "low"})  # fmt: skip
        plain, other = ({key: value for key, value in body.items() if key != "messages"} for body in double.bodies)
        assert plain == {"model": "big", "temperature": 0.0, "seed": 0, "max_tokens": 512, "stream": False}
        assert other == {"model": "big", "reasoning_effort": "low", "max_completion_tokens": 9, "stream": False}
        with pytest.raises(ConfigError, match="must not set seed"):
            judged(url, None, 1, extra_body={"seed": 3})


def test_some_unreadable_replies_between_readable_ones_stop_nothing(tmp_path):
    count = itertools.count()
    double = Judge(reply=lambda text: "5" if next(count) % 2 else "No.")
    with serve(double) as url:
        found = judged(url, tmp_path / "l.sqlite", 60)
    assert len(double.bodies) == 60 and sum(value is None for value in found["quality"]) == 30


def test_the_purse_is_not_passed_and_a_rerun_goes_on(tmp_path, llama):
    rows = Dataset.from_dict(batch(40) | {"prompt_id": [str(n) for n in range(40)], "teacher": ["t"] * 40})
    double, path = Judge(), tmp_path / "l.sqlite"
    with serve(double) as url:
        quality = {"judge": {"url": url, "model": "m", "template": "{{ completion }}", "max_tokens": 10, **PRICED}}
        how = {"ledger": path, "progress": False}
        scored = score(rows, llama, quality, **how, max_cost=110.0)
        # 2 USD each; the worst case is 84 or 85: nothing fits any more once 26 are spent.
        assert len(double.bodies) == 13 or len(double.bodies) == 14
        left = [error for error in scored["quality_error"] if error is not None]
        assert len(left) == 40 - len(double.bodies) and set(left) == {"`max_cost` (110 USD) would have been exceeded"}
        assert scored["reward"][:].count(None) == len(left)
        whole = score(rows, llama, quality, **how, max_cost=500.0)
        assert whole["quality"][:] == [7.0] * 40 and len(double.bodies) == 40
        with pytest.raises(ConfigError, match="`max_cost` needs prices"):
            score(rows, llama, "exact", **how, max_cost=1.0)
    with Ledger(path) as ledger:
        assert ledger.spent() == 80.0


def test_two_judgings_at_once_pay_for_no_reply_twice(tmp_path):
    double, path, found = Judge(), tmp_path / "l.sqlite", []
    with serve(double) as url:
        threads = [threading.Thread(target=lambda: found.append(judged(url, path, 100, **PRICED))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(double.bodies) == 100 and [one["quality"] for one in found] == [[7.0] * 100] * 3


def test_ctrl_c_lets_what_is_in_flight_end_and_the_next_run_goes_on(tmp_path, capsys):
    double, path = Judge(), tmp_path / "l.sqlite"

    def slowly(count, body):
        if count == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002 if count < 20 else 0.05)  # a busy machine may see the signal late
        return None

    double.behave = slowly
    with serve(double) as url:
        with pytest.raises(KeyboardInterrupt):
            judged(url, path, 200, max_concurrency=4)
        said, before = capsys.readouterr().err, len(double.bodies)
        assert "Ctrl-C: waiting for " in said and " requests in flight. Press it again to stop at once." in said
        assert "Interrupted. All answers received are in the ledger; run again to resume." in said
        assert 20 <= before < 60
        double.behave = None
        assert judged(url, path, 200)["quality"] == [7.0] * 200
    assert len(double.bodies) == 200, "nothing that was answered is asked again"


def test_rows_that_another_process_judges_are_waited_for(tmp_path):
    double, path = Judge(), tmp_path / "l.sqlite"
    with serve(double) as url:
        judged(url, path, 2)
        with Ledger(path) as ledger:
            keys = [row["key"] for row in ledger.rows()]
            ledger.prune("1", [])
            claims = Claims(ledger)
            assert claims.take(keys[:1])[1] == keys[:1]
            timer = threading.Timer(0.5, claims.close)
            timer.start()
            began = time.monotonic()
            assert judged(url, path, 2)["quality"] == [7.0, 7.0]
            assert time.monotonic() - began > 0.4
            timer.join()
    assert len(double.bodies) == 4


def test_scores_of_a_student_behind_a_server_are_kept_too(tmp_path, llama):
    rows = Dataset.from_dict(
        {"prompt_id": ["a", "a", "b"], "teacher": ["s", "t", "s"], "prompt": ["hello", "hello", "the"],
         "completion": ["hell", "the", "the"], "quality": [1.0, 0.0, 1.0]}
    )  # fmt: skip
    double, path = Student(llama), tmp_path / "l.sqlite"
    with serve(double) as url:
        server = {"url": url, "price_per_million_prompt_tokens": 1e6}
        how = {"quality": None, "student_endpoint": server, "ledger": path, "progress": False}
        first = score(rows, llama, **how)
        assert len(double.bodies) == 3
        second = score(rows, llama, **how)
        assert len(double.bodies) == 3 and second["learnability"][:] == first["learnability"][:]
        ranked = score(rows, llama, **how, metrics=("rsr",))
        assert len(double.bodies) == 6, "sums without ranks do not serve `rsr`"
        assert score(rows, llama, **how, metrics=("rsr",))["rsr"][:] == ranked["rsr"][:] and len(double.bodies) == 6
    tokens = sum(len(body["prompt"]) for body in double.bodies)
    with Ledger(path) as ledger:
        (line,) = ledger.totals()
        assert (line["kind"], line["answers"], line["prompt_tokens"], line["cost"]) == ("student", 6, tokens, tokens)


def test_a_verifier_that_gives_nothing_but_zeros_is_warned_of(llama, caplog):
    rows = {"prompt_id": ["a", "b"], "teacher": ["t", "t"], "prompt": ["1+1?", "1+2?"], "completion": ["hello", "the"]}
    score(Dataset.from_dict(rows | {"answer": ["2", "3"]}), llama, "exact", progress=False)
    assert "The verifier `exact` gives all 2 answers 0." in caplog.text
    caplog.clear()
    score(Dataset.from_dict(rows | {"answer": ["hello", "3"]}), llama, "exact", progress=False)
    assert "answers 0" not in caplog.text
