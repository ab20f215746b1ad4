"""Ctrl-C, once and twice, and what is seen of a run on a terminal."""

import os
import pty
import signal
import subprocess
import sys
import time

from persyn_hf.generation.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

SCRIPT = """
import sys
from persyn_hf.generation.generate import generate_parallel
url, ledger, prompts, progress = sys.argv[1:]
common = {"model": "m", "endpoint": url, "max_concurrency": 8, "price_per_million_completion_tokens": 2e5}
teachers = [{"name": name, "system_prompt": name, **common} for name in ("first", "second")]
table = generate_parallel([f"prompt {n}" for n in range(int(prompts))], teachers, ledger, progress=progress == "1")
print(len(table), "rows")
"""


def start(server, ledger, prompts, progress=False, **settings):
    command = [sys.executable, "-c", SCRIPT, server.url, str(ledger), str(prompts), str(int(progress))]
    # A shell that runs the tests in the background has them ignore SIGINT, and children inherit that.
    free = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    return subprocess.Popen(command, preexec_fn=free, stderr=subprocess.PIPE, text=True, **settings)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_one_control_c_drains_and_reports(tmp_path):
    with serve(Double(delay=0.4)) as server:
        run = start(server, tmp_path / "l", 400)
        until(lambda: len(server.bodies) >= 20 and server.in_flight == 8)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=60)
        asked = len(server.bodies)
    with Ledger(tmp_path / "l") as ledger:
        assert len(ledger) == asked == server.served
    assert 20 <= asked < 100
    assert run.returncode not in (0, 3)
    assert "Ctrl-C: 8 requests in flight are waited for. Press it again to stop at once." in said
    assert "Interrupted. What was answered is in the ledger; run again to go on." in said
    assert f"second: {asked // 2:,} of 400 rows, {3 * (asked // 2)} + {5 * (asked // 2)} tokens" in said
    assert "KeyboardInterrupt" in said


def test_a_second_control_c_stops_at_once(tmp_path):
    with serve(Double(delay=0.05)) as server:
        run = start(server, tmp_path / "l", 400)
        until(lambda: len(server.bodies) >= 20)
        server.delay = 30
        until(lambda: server.in_flight == 8)
        time.sleep(0.2)  # those that were answered quickly are through
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=20)
        assert time.monotonic() - began < 10
        with Ledger(tmp_path / "l") as ledger:
            assert len(ledger) == len(server.bodies) - 8
    assert run.returncode != 0
    assert "Interrupted." in said


def test_one_line_per_teacher_on_a_terminal_and_silence_elsewhere(tmp_path):
    with serve(Double(delay=0.1)) as server:
        assert start(server, tmp_path / "quiet", 20, progress=True).communicate(timeout=60)[1] == ""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "shown"), "60", "1"]
        wide = {**os.environ, "COLUMNS": "160", "TERM": "xterm"}
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=wide) as run:
            os.close(theirs)
            seen = b""
            while True:
                try:
                    part = os.read(ours, 65536)
                except OSError:  # the other side is closed
                    break
                if not part:
                    break
                seen += part
            assert run.wait(60) == 0
    shown = seen.decode()
    for name in ("first", "second"):
        assert name in shown
    assert "4 in flight" in shown
    assert "tokens/s" in shown
    assert "60/60" in shown
    assert "0 errors" in shown
    assert "60.0000 USD" in shown  # 60 answers of 5 tokens at 0.2
