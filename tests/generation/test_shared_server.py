"""Several teachers at one address, over real sockets: they share its limit, and both go on."""

import asyncio
import multiprocessing
import time

import pytest
from starlette.responses import JSONResponse

from persyn_hf.generation.generate import generate_parallel, generate_routed
from persyn_hf.generation.pool import RetryPolicy
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve

FAST = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=5, down_after_unseen=5)


def teacher(name, server, **settings):
    return {"name": name, "model": "m", "endpoint": server.url, "system_prompt": name, **settings}


def asked(server):
    """The teachers in the order of their requests."""
    return [body["messages"][0]["content"] for body in server.bodies]


@pytest.mark.parametrize(("caps", "cap"), [((6, 6), 6), ((3, 12), 3), ((None, 4), 4), ((1, 1), 1)])
def test_teachers_at_one_address_share_the_smallest_limit(caps, cap):
    prompts, delay = 30 if cap > 1 else 8, 0.05
    with serve(Double(delay=delay, cap=cap)) as server:
        teachers = [teacher(name, server, max_concurrency=own) for name, own in zip("ab", caps, strict=True)]
        began = time.monotonic()
        table = generate_parallel([f"p{n}" for n in range(prompts)], teachers, progress=False, policy=FAST)
        took = time.monotonic() - began
    assert table["error"][:] == [None] * 2 * prompts
    assert (server.peak, server.refused) == (cap, 0)
    middle = asked(server)[: prompts + prompts // 2]
    assert prompts // 2 - 2 <= middle.count("a") <= prompts + 2  # neither waits for the other's end
    assert prompts // 2 - 2 <= middle.count("b") <= prompts + 2
    ideal = 2 * prompts * delay / cap
    assert took < 3 * ideal + 10  # and no place stays empty


def test_a_limit_that_nobody_knows_is_learnt_once_for_all():
    with serve(Double(delay=0.03, cap=8)) as server:
        teachers = [teacher(name, server) for name in "abc"]
        table = generate_parallel([f"p{n}" for n in range(60)], teachers, progress=False, policy=FAST)
        first = server.refused
        again = generate_parallel([f"q{n}" for n in range(60)], teachers, progress=False, policy=FAST)
    assert table["error"][:] == again["error"][:] == [None] * 180
    assert server.peak == 8
    # 16 at once are tried in the beginning, and one more now and then; not 3 x 16, 40 too many, in each run.
    assert first < 30
    assert server.refused - first < 30


def test_a_teacher_that_is_through_leaves_its_places_to_the_other():
    now, most = {"a": 0, "b": 0}, {"a": 0, "b": 0}

    async def behave(body):
        name = body["messages"][0]["content"]
        now[name] += 1
        most[name] = max(most[name], now[name])
        await asyncio.sleep(0.04)
        now[name] -= 1
        return JSONResponse(chat_body("x"))

    rows = [{"prompt": f"p{n}", "route": "b" if n % 5 else "a"} for n in range(100)]
    with serve(Double(lambda n, body: behave(body))) as server:
        teachers = [teacher(name, server, max_concurrency=8) for name in "ab"]
        table = generate_routed(rows, teachers, progress=False, policy=FAST)
    assert table["error"][:] == [None] * 100
    # On a busy machine the server may see one fewer at once; half of the places would be 4.
    assert 7 <= server.peak <= 8
    assert 7 <= most["b"] <= 8
    assert 3 <= most["a"] <= 8


def test_the_teachers_of_a_failing_model_do_not_hold_the_others_up():
    def behave(n, body):
        return JSONResponse({"error": "cannot"}, 503) if body["messages"][0]["content"] == "bad" else None

    with serve(Double(behave, delay=0.01)) as server:
        teachers = [teacher(name, server, max_concurrency=4) for name in ("bad", "good")]
        policy = RetryPolicy(base_delay=0.005, max_delay=0.05, down_after=0.5, down_after_unseen=0.5, breaker_after=4)
        table = generate_parallel([f"p{n}" for n in range(60)], teachers, progress=False, policy=policy)
    errors = dict.fromkeys(("bad", "good"), 0)
    for name, error in zip(table["teacher"], table["error"], strict=True):
        errors[name] += error is not None
    assert errors == {"bad": 60, "good": 0}


def _generate(url, name, ledger):
    one = {"name": name, "model": "m", "endpoint": url, "system_prompt": name, "max_concurrency": 3}
    table = generate_parallel([f"p{n}" for n in range(40)], [one], ledger, progress=False, policy=FAST)
    raise SystemExit(sum(error is not None for error in table["error"]))


def test_processes_with_other_teachers_share_it_too(tmp_path):
    context = multiprocessing.get_context("spawn")
    with serve(Double(delay=0.03)) as server:
        runs = [
            context.Process(target=_generate, args=(address, name, str(tmp_path / name)))
            for address, name in ((server.url, "a"), (server.url.replace("127.0.0.1", "localhost") + "/v1", "b"))
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert server.peak == 3
    assert len(server.bodies) == 80
