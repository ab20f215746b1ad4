"""Several processes and threads with one ledger: no row is paid for twice, and all of them keep to one purse."""

import collections
import json
import multiprocessing
import threading
import time

import pytest
from starlette.responses import JSONResponse

from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

#: 3 + 5 tokens at a dollar each; the worst case of a row is its bytes + 64 + 12.
PRICED = {"price_per_million_prompt_tokens": 1e6, "price_per_million_completion_tokens": 1e6}
#: Processes are forked from one that has imported everything.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["persyn_hf.generation.run", "persyn_hf.generation.generate"])


def ask(url, folder, name, rows, most):
    teacher = {"name": "a", "model": "m", "endpoint": url, "max_concurrency": 8, "sampling": {"max_tokens": 12}}
    limit = {"max_cost": most} if most else {}
    prompts = [f"p{n}" for n in range(rows)]
    table = generate_parallel(prompts, [teacher | PRICED], ledger=folder / "l.sqlite", progress=False, **limit)
    (folder / name).write_text(json.dumps({"answers": table["completion"][:], "errors": table["error"][:]}))


def start(server, folder, name, rows, most=0.0):
    process = PROCESSES.Process(target=ask, args=(server.url, folder, name, rows, most))
    process.start()
    return process


def finished(process, folder, name):
    process.join(60)
    assert process.exitcode == 0
    return json.loads((folder / name).read_text())


def asked(server):
    return collections.Counter(body["messages"][-1]["content"] for body in server.bodies)


def test_two_processes_pay_for_no_row_twice(tmp_path):
    rows = 300
    with serve(Double(delay=0.005)) as server:
        both = [start(server, tmp_path, name, rows) for name in ("one", "two")]
        tables = [finished(process, tmp_path, name) for process, name in zip(both, ("one", "two"), strict=True)]
        assert asked(server) == {f"p{n}": 1 for n in range(rows)}
    one, two = tables
    assert one == two and one["errors"] == [None] * rows
    assert [text.split("|")[0] for text in one["answers"]] == [f"user:p{n}" for n in range(rows)]


def test_two_processes_keep_to_one_purse(tmp_path):
    rows, most = 300, 900.0
    with serve(Double(delay=0.005)) as server:
        both = [start(server, tmp_path, name, rows, most) for name in ("one", "two")]
        tables = [finished(process, tmp_path, name) for process, name in zip(both, ("one", "two"), strict=True)]
        assert most - 80 < 8 * len(server.bodies) <= most, "what is left is less than one worst case"
        assert set(asked(server).values()) == {1}
        answered = len(server.bodies)
        again = finished(start(server, tmp_path, "three", rows, most), tmp_path, "three")
        assert len(server.bodies) == answered, "nothing fits any more"
    reason = "`max_cost` (900 USD) would have been exceeded"
    assert {error for table in (*tables, again) for error in table["errors"]} == {None, reason}
    assert again["errors"].count(None) == answered
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert (ledger.spent(), ledger.lost()) == (8.0 * answered, 0.0)


def test_a_killed_process_leaves_its_rows_to_the_other(tmp_path):
    rows = 300
    with serve(Double(delay=0.01)) as server:
        victim = start(server, tmp_path, "one", rows, 1e5)
        while len(server.bodies) < 30:
            time.sleep(0.005)
        other = start(server, tmp_path, "two", rows, 1e5)
        while len(server.bodies) < 60:
            time.sleep(0.005)
        victim.kill()
        table = finished(other, tmp_path, "two")
        victim.join()
        counts = asked(server)
    assert table["errors"] == [None] * rows
    again = sum(counts.values()) - rows
    assert len(counts) == rows and again <= 8 + 3, "what was in flight, or not yet committed, and nothing else"
    with Ledger(tmp_path / "l.sqlite") as ledger:
        assert ledger.spent() == 8.0 * rows
        assert ledger.lost() >= 8.0 * again, "it may have been charged for"


def test_threads_on_one_ledger_pay_for_no_row_twice(tmp_path):
    prompts, tables = [f"p{n}" for n in range(100)], []
    with serve(Double(delay=0.002)) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        teacher = {"name": "a", "model": "m", "endpoint": server.url, "sampling": {"max_tokens": 12}, **PRICED}

        def work():
            tables.append(
                generate_parallel(prompts, [teacher], ledger, progress=False, max_cost=2000)["completion"][:]
            )

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked(server) == dict.fromkeys(prompts, 1)
        assert ledger.spent() == 800.0
    assert len(tables) == 6 and all(table == tables[0] and None not in table for table in tables)


def test_two_names_of_one_model_pay_once(tmp_path):
    with serve(Double(delay=0.005)) as server:
        teachers = [{"name": name, "model": "m", "endpoint": server.url} for name in ("a", "b")]
        table = generate_parallel([f"p{n}" for n in range(20)], teachers, tmp_path / "l", progress=False)
        assert len(server.bodies) == 20 and table["error"][:] == [None] * 40


def test_rows_that_failed_for_another_run_are_asked(tmp_path):
    """They are free again once they have failed, as they would be in a run after it."""
    prompts, refused = [f"p{n}" for n in range(20)], set()

    def behave(count, body):
        prompt = body["messages"][-1]["content"]
        if prompt in prompts[:10] and prompt not in refused:
            refused.add(prompt)
            return JSONResponse({"error": {"message": "no"}}, 400)
        return None

    with serve(Double(behave, delay=0.01)) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        teacher = {"name": "a", "model": "m", "endpoint": server.url, "max_concurrency": 4}
        threads = [
            threading.Thread(target=generate_parallel, args=(prompts, [teacher], ledger, 0, False)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert asked(server) == {prompt: 2 if prompt in prompts[:10] else 1 for prompt in prompts}
        assert len(ledger) == 20


@pytest.mark.slow
def test_five_processes_and_three_kills(tmp_path):
    rows, names = 1500, ["a", "b", "c", "d", "e"]
    with serve(Double(delay=0.01)) as server:
        several = [start(server, tmp_path, name, rows, 1e6) for name in names]
        for number, victim in enumerate(several[:3], 1):
            while len(server.bodies) < 300 * number:
                time.sleep(0.005)
            victim.kill()
        tables = [finished(process, tmp_path, name) for process, name in zip(several[3:], names[3:], strict=True)]
        for victim in several[:3]:
            victim.join()
        assert len(asked(server)) == rows
        assert sum(asked(server).values()) <= rows + 3 * (8 + 3)
    assert all(table["errors"] == [None] * rows for table in tables)
