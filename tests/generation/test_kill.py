"""`kill -9` at any instant: the rerun sends again at most what was in flight, and the table comes out the same."""

import collections
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest

from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

PROMPTS, CONCURRENCY = 300, 8
SCRIPT = """
import sys
from persyn_hf.generation.generate import generate_parallel
url, ledger, output, prompts, concurrency = sys.argv[1:]
common = {"model": "m", "endpoint": url, "max_concurrency": int(concurrency)}
teachers = [{"name": name, "system_prompt": name, **common} for name in ("a", "b")]
table = generate_parallel([f"prompt {n}" for n in range(int(prompts))], teachers, ledger=ledger, progress=False)
table.to_parquet(output)
"""


def start(server, folder):
    files = [str(folder / "ledger.sqlite"), str(folder / "table.parquet")]
    command = [sys.executable, "-c", SCRIPT, server.url, *files, str(PROMPTS), str(CONCURRENCY)]
    # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
    return subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def kill_loop(folder, kills):
    """Kills `kills` runs after random numbers of requests, then finishes; the server's view of it."""
    rng = random.Random(0)
    resent = []
    with serve(Double(delay=0.01)) as server:
        share = 2 * PROMPTS // (kills + 1)
        for _ in range(kills):
            before = len(server.bodies)
            known = {request_of(body) for body in server.bodies}
            run = start(server, folder)
            target = before + rng.randint(1, share)
            while len(server.bodies) < target and run.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
            run.send_signal(signal.SIGKILL)
            run.wait()
            time.sleep(0.05)
            resent.append(sum(request_of(body) in known for body in server.bodies[before:]))
        known = {request_of(body) for body in server.bodies}
        before = len(server.bodies)
        assert start(server, folder).wait() == 0
        resent.append(sum(request_of(body) in known for body in server.bodies[before:]))
        counts = collections.Counter(request_of(body) for body in server.bodies)
    assert len(counts) == 2 * PROMPTS
    return resent


def request_of(body):
    return body["messages"][0]["content"], body["messages"][1]["content"]


def check(tmp_path, kills):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    with serve(Double()) as server:
        assert start(server, whole).wait() == 0
    resent = kill_loop(killed, kills)
    assert (killed / "table.parquet").read_bytes() == (whole / "table.parquet").read_bytes()
    assert pyarrow.parquet.read_table(killed / "table.parquet")["error"].null_count == 2 * PROMPTS
    # Two teachers, each with so many in flight.
    assert max(resent) <= 2 * CONCURRENCY
    return resent


def test_a_kill(tmp_path):
    check(tmp_path, 1)


def test_control_c_stops_at_once_and_keeps_what_was_answered(tmp_path):
    with serve(Double(delay=0.05)) as server:
        run = start(server, tmp_path)
        while len(server.bodies) < 60:
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) != 0
        asked = len(server.bodies)
        assert asked < 2 * PROMPTS
        with Ledger(tmp_path / "ledger.sqlite") as ledger:
            assert asked - 2 * CONCURRENCY <= len(ledger) <= asked


@pytest.mark.slow
def test_thirty_kills(tmp_path):
    print("sent again after each kill:", check(tmp_path, 30))
