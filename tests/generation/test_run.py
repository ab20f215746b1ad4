"""What a run does over real sockets: several endpoints, teachers that die, money, hedging, shared limits."""

import asyncio
import threading
import time

import pytest
from datasets import Dataset
from starlette.responses import JSONResponse

from persyn_hf import columns
from persyn_hf.errors import ConfigError
from persyn_hf.generation.generate import generate_parallel, generate_routed, persyn_generate
from persyn_hf.generation.jobs import row_seed
from persyn_hf.generation.pool import RetryPolicy
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, free_port, serve

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=0.3, down_after_unseen=0.2, breaker_after=4)


def teacher(name, *servers, **settings):
    urls = [one if isinstance(one, str) else one.url for one in servers]
    return {"name": name, "model": "m", "endpoint": urls, "system_prompt": name, **settings}


def test_requests_go_to_the_endpoint_with_the_smallest_load():
    with serve(Double(delay=0.04)) as quick, serve(Double(delay=0.4)) as slow:
        table = generate_parallel(
            [f"p{n}" for n in range(90)], [teacher("t", quick, slow, max_concurrency=4)], progress=False
        )
    assert table["error"][:] == [None] * 90
    assert len(quick.bodies) + len(slow.bodies) == 90
    assert quick.peak == slow.peak == 4
    assert len(quick.bodies) > 2 * len(slow.bodies) >= 8


def test_an_endpoint_that_is_down_leaves_its_rows_to_the_others():
    nobody = f"http://127.0.0.1:{free_port()}"
    refusing = Double(lambda n, body: JSONResponse({}, 401))
    with serve(Double(delay=0.01)) as well, serve(refusing):
        table = generate_parallel(
            [f"p{n}" for n in range(80)], [teacher("t", nobody, refusing, well, max_concurrency=4)], progress=False,
            policy=FAST,
        )  # fmt: skip
    assert table["error"][:] == [None] * 80
    assert len(well.bodies) == 80
    assert len(refusing.bodies) <= 4


def test_the_cap_of_one_endpoint_is_its_own():
    with serve(Double(delay=0.1, cap=2)) as small, serve(Double(delay=0.1, cap=8)) as large:
        table = generate_parallel([f"p{n}" for n in range(300)], [teacher("t", small, large)], progress=False)
    assert table["error"][:] == [None] * 300
    assert (small.peak, large.peak) == (2, 8)
    assert large.served > 2 * small.served


def kill_and_return(server, port, after, away):
    """Ends a server after some requests and starts it again on its port after a while."""

    def life():
        with serve(server, port):
            while len(server.bodies) < after:
                time.sleep(0.005)
        time.sleep(away)
        with serve(server, port):
            done.wait(60)

    done = threading.Event()
    thread = threading.Thread(target=life, daemon=True)
    thread.start()
    while not server.url:
        time.sleep(0.005)
    return done, thread


@pytest.mark.parametrize("mode", ["wait", "error"])
def test_a_teacher_that_dies_is_waited_for_or_given_up(mode):
    server = Double(delay=0.005)
    done, thread = kill_and_return(server, free_port(), after=40, away=1.5)
    with serve(Double(delay=0.005)) as other:
        teachers = [teacher("a", server, on_teacher_down=mode, max_concurrency=4), teacher("b", other)]
        table = generate_parallel([f"p{n}" for n in range(120)], teachers, progress=False, policy=FAST)
    done.set()
    thread.join()
    errors = [error for name, error in zip(table["teacher"], table["error"], strict=True) if name == "a" and error]
    assert not any(error for name, error in zip(table["teacher"], table["error"], strict=True) if name == "b")
    if mode == "wait":
        assert errors == []
    else:
        assert 60 <= len(errors) <= 90
        assert all(error.startswith("the teacher is down: no answer for 0.3 seconds") for error in errors)


def test_a_teacher_says_how_long_its_server_may_be_away():
    server = Double(delay=0.005)
    done, thread = kill_and_return(server, free_port(), after=40, away=1.5)
    one = teacher("a", server, max_concurrency=4, down_after=30)
    table = generate_parallel([f"p{n}" for n in range(120)], [one], progress=False, policy=FAST)
    done.set()
    thread.join()
    assert table["error"][:] == [None] * 120


def test_by_default_a_server_may_start_again():
    assert RetryPolicy().down_after == 300


def routed(count):
    """Prompts that all go to `a`; the next best is `dead` for every fifth, then `b` for the even ones, else `c`."""
    scores = [[9.0, 1.0 + (n % 2 == 0), 1.0 + (n % 2), 5.0 * (n % 5 == 0)] for n in range(count)]
    return Dataset.from_dict(
        {"prompt": [f"p{n}" for n in range(count)], "route": ["a"] * count, "route_scores": scores}
    )


def test_rows_of_a_teacher_that_dies_go_to_the_next_best(tmp_path):
    names, nobody = ["a", "b", "c", "dead"], f"http://127.0.0.1:{free_port()}"
    with serve(Double()) as b, serve(Double()) as c:
        with serve(Double(delay=0.005)) as a:
            dying = a.url
            a.behave = lambda n, body: JSONResponse({}, 503) if n > 20 else None
            teachers = [
                teacher("dead", nobody, on_teacher_down="reroute"), teacher("c", c), teacher("b", b),
                teacher("a", dying, on_teacher_down="reroute", max_concurrency=4),
            ]  # fmt: skip
            table = generate_routed(
                routed(60), teachers, tmp_path / "l", progress=False, policy=FAST, score_names=names
            )
        assert table["error"][:] == [None] * 60
        own = [n for n, name in enumerate(table["teacher"]) if name == "a"]
        assert len(own) == 20
        for n, (name, source, text) in enumerate(
            zip(table["teacher"], table["rerouted_from"], table["completion"], strict=True)
        ):
            wanted = "a" if n in own else "b" if n % 2 == 0 else "c"
            assert (name, source) == (wanted, None if n in own else "a")
            assert text.startswith(f"system:{wanted}|user:p{n}|")
        assert table["route"][:] == ["a"] * 60
        asked = len(b.bodies) + len(c.bodies)
        assert asked == 40
        again = generate_routed(routed(60), teachers, tmp_path / "l", progress=False, policy=FAST, score_names=names)
        assert again.to_list() == table.to_list()
        assert len(b.bodies) + len(c.bodies) == asked


def test_rerouting_needs_scores_of_these_teachers():
    teachers = [teacher(name, "http://127.0.0.1:9", on_teacher_down="reroute") for name in "ab"]
    with pytest.raises(ConfigError, match="needs the column `route_scores`"):
        generate_routed([{"prompt": "x", "route": "a"}], teachers, progress=False)
    row = {"prompt": "x", "route": "a", "route_scores": [1.0, 2.0, 3.0]}
    with pytest.raises(ConfigError, match="has 3 scores per row for the 2 teachers a, b; pass"):
        generate_routed([row], teachers, progress=False)


PRICED = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}


def test_a_budget_is_not_passed_and_a_rerun_goes_on(tmp_path):
    # 3 + 5 tokens at a dollar each; the worst case of a row is (2 + 64) + (1 + 64) + 20 tokens.
    settings = {**PRICED, "max_concurrency": 8, "sampling": {"max_tokens": 20}}
    prompts, most = [f"p{n % 10}" + "." * (n // 10) for n in range(100)], 500.0
    with serve(Double(delay=0.005)) as server:
        teachers = [teacher("t", server, **settings), teacher("u", server, **PRICED, sampling={"max_tokens": 30})]
        table = generate_parallel(prompts, teachers[:1], tmp_path / "l", progress=False, max_cost=most)
        answered = [row for row in table if row["error"] is None]
        left = [row["error"] for row in table if row["error"] is not None]
        assert set(left) == {"`max_cost` (500 USD) would have been exceeded"}
        # What is left is less than one worst case.
        assert most - 160 < 8 * len(answered) <= most
        assert len(server.bodies) == len(answered)
        with Ledger(tmp_path / "l") as ledger:
            assert ledger.spent() == 8 * len(answered)
        same = generate_parallel(prompts, teachers[:1], tmp_path / "l", progress=False, max_cost=most)
        assert same.to_list() == table.to_list()
        assert len(server.bodies) == len(answered)
        whole = generate_parallel(prompts, teachers, tmp_path / "l", progress=False, max_cost=5000)
        assert whole["error"][:] == [None] * 200
        assert len(server.bodies) == 200


def test_what_may_have_been_charged_counts(tmp_path):
    def hang(n, body):
        return asyncio.sleep(1, JSONResponse(chat_body("late"))) if n <= 2 else None

    settings = {**PRICED, "timeout": 0.1, "max_concurrency": 1, "sampling": {"max_tokens": 100}}
    with serve(Double(hang)) as server:
        table = generate_parallel(
            ["a", "b", "c"],
            [teacher("t", server, **settings)],
            tmp_path / "l",
            progress=False,
            max_cost=500,
            policy=FAST,
        )
    # Two worst cases of 230 each may have been spent without an answer; a third one does not fit.
    assert len(server.bodies) == 2
    assert [error is None for error in table["error"]] == [False] * 3


def test_a_budget_wants_prices():
    with pytest.raises(ConfigError, match="`max_cost` needs prices"):
        generate_parallel(["x"], [teacher("t", "http://127.0.0.1:9")], max_cost=1.0)
    with pytest.raises(ConfigError, match="must be more than 0 USD, got -1"):
        generate_parallel(["x"], [teacher("t", "http://127.0.0.1:9", **PRICED)], max_cost=-1)


def test_every_row_says_how_it_was_asked_and_cut_ones_are_dropped_on_request():
    def behave(n, body):
        return JSONResponse(chat_body("cut", "length")) if body["messages"][-1]["content"] == "two" else None

    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 7, "stop": ["x", "y"]}
    with serve(Double(behave)) as server:
        teachers = [teacher("t", server, sampling=sampling)]
        whole = generate_parallel(["one", "two"], teachers, seed=3, progress=False)
        kept = generate_parallel(["one", "two"], teachers, seed=3, progress=False, drop_truncated=True)
    row = whole[1]
    assert {name: row[name] for name in sampling} == sampling
    assert row["seed"] == row_seed(3, columns.prompt_id("two")) == server.bodies[1]["seed"]
    assert (row["system_prompt"], row["finish_reason"]) == ("t", "length")
    assert kept.to_list() == whole.select([0]).to_list()


def test_a_hedge_is_sent_only_where_asked_for_and_the_first_answer_counts():
    def first_hangs(n, body):
        return asyncio.sleep(3, JSONResponse(chat_body("late"))) if n == 1 else None

    with serve(Double(first_hangs)) as server:
        began = time.monotonic()
        table = generate_parallel(["x"], [teacher("t", server, hedge_after=0.1)], progress=False)
        assert time.monotonic() - began < 2
    assert table["completion"][0].startswith("system:t|user:x")
    assert len(server.bodies) == 2


def test_processes_share_the_limit(tmp_path):
    prompts = Dataset.from_dict({"prompt": [f"p{n}" for n in range(60)]})
    with serve(Double(delay=0.03)) as server:
        kwargs = {"teacher": teacher("t", server, max_concurrency=3), "ledger": str(tmp_path / "l")}
        mapped = prompts.map(persyn_generate, batched=True, batch_size=15, num_proc=2, fn_kwargs=kwargs)
    assert mapped["error"][:] == [None] * 60
    assert server.peak == 3
    assert len(server.bodies) == 60
