"""Ctrl-C and SIGTERM, once and twice, and what is seen of a run, on a terminal and elsewhere."""

import asyncio
import functools
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml
from starlette.responses import JSONResponse

from persyn_hf.endpoints.event_loop import run_to_end
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, serve

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
    return launch(SCRIPT, server.url, str(ledger), str(prompts), str(int(progress)), **settings)


def launch(script, *arguments, **settings):
    command = [sys.executable, "-c", script, *arguments]
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
    assert "Ctrl-C: waiting for 8 requests in flight. Press it again to stop at once." in said
    assert "Interrupted. The answers so far are in the ledger; run again to resume." in said
    did = re.findall(r"^(first|second): (\d+) of 400 rows, (\d+) \+ (\d+) tokens", said, re.MULTILINE)
    counts = {name: int(rows) for name, rows, _, _ in did}
    assert set(counts) == {"first", "second"} and sum(counts.values()) == asked
    assert abs(counts["first"] - counts["second"]) <= 8  # they share the eight places of their server
    assert [(int(read), int(written)) for _, _, read, written in did] == [(3 * n, 5 * n) for n in counts.values()]
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


def test_one_line_per_teacher_on_a_terminal_and_plain_lines_elsewhere(tmp_path):
    with serve(Double(delay=0.1)) as server:
        assert start(server, tmp_path / "quiet", 20).communicate(timeout=60)[1] == ""
        said = start(server, tmp_path / "plain", 20, progress=True).communicate(timeout=60)[1]
        lines = [
            r"2 teachers, 40 rows: sending requests",
            r"first: 20 of 20 rows, 60 \+ 100 tokens, 20\.0000 USD",
            r"second: 20 of 20 rows, 60 \+ 100 tokens, 20\.0000 USD",
            r"2 teachers: 0:00:\d\d in total",
        ]
        assert re.fullmatch("\n".join(lines) + "\n", said)
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


def test_a_log_has_a_line_every_so_often(capsys, monkeypatch):
    from persyn_hf.generation import progress
    from persyn_hf.generation.generate import generate_parallel

    monkeypatch.setattr(progress, "_LINE", 0.1)
    with serve(Double(delay=0.1)) as server:
        teachers = [{"name": "bad\x1b[2J\r", "model": "m", "endpoint": server.url, "max_concurrency": 2}]
        generate_parallel([f"p{n}" for n in range(10)], teachers)
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert lines[0] == "1 teacher, 10 rows: sending requests"
    shape = r"0:00:0\d: (\d+) of 10 rows \(\d+%\), [0-2] in flight, \d+ tokens/s, 0 errors(, about 0:00:\d\d left)?"
    counts = [int(match[1]) for line in lines[1:-2] if (match := re.fullmatch(shape, line))]
    assert len(counts) >= 3
    assert counts == sorted(counts) and 0 <= counts[0] < counts[-1] <= 10
    assert lines[-2] == "bad: 10 of 10 rows, 30 + 50 tokens"
    assert "\r" not in said and "\x1b" not in said


def test_sigterm_drains_and_a_second_run_goes_on(tmp_path):
    with serve(Double(delay=0.4)) as server:
        run = start(server, tmp_path / "l", 30)
        until(lambda: len(server.bodies) >= 12 and server.in_flight == 8)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
        asked = len(server.bodies)
        with Ledger(tmp_path / "l") as ledger:
            assert len(ledger) == asked == server.served
        assert run.returncode == 143
        assert "SIGTERM: waiting for 8 requests in flight. A second one stops at once." in said
        assert "Interrupted. The answers so far are in the ledger; run again to resume." in said
        assert "Traceback" not in said
        server.delay = 0
        assert start(server, tmp_path / "l", 30).wait(60) == 0
        assert len(server.bodies) == 60


def test_sigterm_and_then_control_c_stop_at_once(tmp_path):
    with serve(Double(delay=30)) as server:
        run = start(server, tmp_path / "l", 400)
        until(lambda: server.in_flight == 8)
        run.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert run.poll() is None
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=20)
    assert run.returncode == 143


COMMAND = """
import sys
from persyn_hf.cli import main
sys.argv = ["persyn-hf", *sys.argv[1:]]
main()
"""


def test_sigterm_ends_the_command_with_what_was_in_flight_kept(tmp_path):
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "p{n}", "answer": "a"}}\n' for n in range(40)))
    with serve(Double(delay=0.4)) as server:
        config = {
            "output_dir": str(tmp_path / "run"),
            "prompts": {"source": str(tmp_path / "prompts.jsonl")},
            "teachers": [
                {"name": name, "model": name, "endpoint": server.url, "max_concurrency": 6} for name in ("a", "b")
            ],
            "probe": {"size": 20},
            "student": {"model": "org/student"},
            "quality": {"verifier": "exact"},
            "router": {"backbone": "org/backbone"},
        }
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        run = launch(COMMAND, "run", str(tmp_path / "run.yaml"), "--until", "probe")
        until(lambda: (len(server.bodies) >= 12 and server.in_flight == 6) or run.poll() is not None)
        run.send_signal(signal.SIGTERM)
        _, said = run.communicate(timeout=60)
        assert run.returncode == 143, said
        assert "SIGTERM: waiting for 6 requests in flight." in said
        with Ledger(tmp_path / "run" / "ledger.sqlite") as ledger:
            assert len(ledger) == server.served == len(server.bodies) < 40
        server.delay = 0
        again = launch(COMMAND, "run", str(tmp_path / "run.yaml"), "--until", "probe")
        assert again.wait(60) == 0
        assert len(server.bodies) == 40


def test_sigterm_outside_of_an_event_loop_ends_the_command_with_a_line():
    script = """
import time
from persyn_hf.endpoints.event_loop import exit_on_sigterm
exit_on_sigterm()
try:
    print("here", flush=True)
    time.sleep(60)
finally:
    print("cleaned up", flush=True)
"""
    run = launch(script, stdout=subprocess.PIPE)
    assert run.stdout.readline() == "here\n"
    run.send_signal(signal.SIGTERM)
    out, said = run.communicate(timeout=20)
    assert (run.returncode, out) == (143, "cleaned up\n")
    assert said == "SIGTERM: stopped. Finished work is kept; run again to resume.\n"


JUDGE = """
import sys
from persyn_hf.config import Judge
from persyn_hf.scoring.judge import judge_answers
count = int(sys.argv[2])
prompts = [f"p{n}" for n in range(count)]  # equal questions are asked once
judge_answers(Judge(url=sys.argv[1], model="m", max_concurrency=4), prompts, ["c"] * count, [None] * count)
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_judge_is_given_up_with_a_word(number, name):
    judge = Double(lambda n, body: JSONResponse(chat_body("7")), delay=0.1)
    with serve(judge) as server:
        run = launch(JUDGE, server.url, "200")
        until(lambda: len(server.bodies) >= 12)
        began = time.monotonic()
        run.send_signal(number)
        _, said = run.communicate(timeout=20)
        assert time.monotonic() - began < 10
        assert len(server.bodies) < 100
    assert run.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
    assert f"{name}: cancelling the requests in flight." in said
    answered = re.search(r"http://\S+: (\d+) of 200 requests were answered; the next run sends all again\.", said)
    assert 4 <= int(answered[1]) < 100
    assert "CancelledError" not in said


async def gives(value, interrupt):
    await asyncio.sleep(0)
    return value


async def raises(interrupt):
    raise ValueError("of the work")


def test_the_result_and_errors_come_through_with_and_without_a_running_loop():
    async def main():
        return run_to_end(functools.partial(gives, 2))

    async def failing():
        return run_to_end(raises)

    assert run_to_end(functools.partial(gives, 1)) == 1
    assert asyncio.run(main()) == 2
    for work in (lambda: run_to_end(raises), lambda: asyncio.run(failing())):
        with pytest.raises(ValueError, match="of the work"):
            work()


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_the_first_signal_drains_also_where_a_loop_is_running(number, error, running, monkeypatch):
    # As in a program of its own, whatever runs the tests has set.
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    drained = []

    async def work(interrupt):
        end = asyncio.Event()
        interrupt.attach(lambda: (drained.append(interrupt.name), end.set()))
        asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), number)
        await asyncio.wait_for(end.wait(), 10)

    async def cell():
        run_to_end(work)

    try:
        with pytest.raises(error):
            asyncio.run(cell()) if running else run_to_end(work)
        assert drained == ["Ctrl-C" if number == signal.SIGINT else "SIGTERM"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_a_handler_of_the_callers_own_stays(monkeypatch):
    seen = []
    before = {one: signal.signal(one, lambda *_: seen.append(1)) for one in (signal.SIGINT, signal.SIGTERM)}

    async def work(interrupt):
        interrupt.attach(lambda: seen.append("drained"))
        for number in before:
            os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        return interrupt.pressed

    try:
        assert run_to_end(work) == 0
        assert seen == [1, 1]
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def test_another_thread_takes_no_signals():
    found = []
    before = signal.getsignal(signal.SIGTERM)

    async def work(interrupt):
        found.append(signal.getsignal(signal.SIGTERM) is before)
        return 3

    thread = threading.Thread(target=lambda: found.append(run_to_end(work)))
    thread.start()
    thread.join()
    assert found == [True, 3]
