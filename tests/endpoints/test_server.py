"""One address is one server: what all that ask it share, and whose turn it is."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from persyn_hf.endpoints import server as servers
from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.endpoints.gate import gate
from persyn_hf.endpoints.server import Server, server, server_name
from persyn_hf.endpoints.slots import Slots
from persyn_hf.errors import RetryableError


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://host:8000", "HTTP://HOST:8000/v1/", True),
        ("http://host", "http://host:80/v1/chat/completions", True),
        ("https://host", "https://host:443/generate", True),
        ("http://localhost:1", "http://127.0.0.1:1", True),
        ("http://[::2]:1/", "http://[::2]:1/v1", True),
        ("http://host:8000", "http://host:8001", False),
        ("http://host", "https://host", False),
        ("http://host/a/v1", "http://host/b/v1", False),
        ("http://host/Model", "http://host/model", False),
    ],
)
def test_an_address_has_one_spelling(one, other, same):
    assert (server_name(one) == server_name(other)) is same
    assert (server(one) is server(other)) is same


def fill(share, most=1000):
    """Requests that a caller can start."""
    return sum(share.enter() for _ in range(most))


def test_the_least_known_limit_holds_for_all_together(caplog):
    shared = server("http://a")
    first, second, unknown = shared.join(8), shared.join(3), shared.join()
    assert (
        "http://a:80 is one server, so one `max_concurrency` applies to all of its callers: 3, the smallest of 3, 8"
        in caplog.text
    )
    assert [fill(first), fill(second), fill(unknown)] == [3, 0, 0]
    second.close()
    assert [fill(unknown), fill(first)] == [5, 0]
    assert first.beside == 8
    first.close()
    assert (fill(unknown), unknown.beside) == (8 - 5, 8)  # what is borne stays known
    unknown.close()


def test_an_unknown_limit_is_learnt_once():
    shared = server("http://a")
    first, second = shared.join(), shared.join()
    assert [fill(first), fill(second)] == [16, 0]
    first.overloaded()
    assert first.current == second.current == 15
    first.close()
    second.close()
    again = server("http://a/v1").join()
    assert again.current == 15
    again.close()
    known = server("http://a").join(64)
    assert known.current == 15  # what it has shown counts more than what is written
    known.close()


def test_a_limit_that_was_only_written_is_forgotten_with_its_writer():
    low = server("http://a").join(4)
    assert fill(low) == 4
    low.close()
    high = server("http://a").join(64)
    assert fill(high) == 64
    high.close()


def test_what_is_not_asked_for_long_is_forgotten(monkeypatch):
    one = server("http://a").join()
    fill(one)
    one.overloaded()
    one.close()
    monkeypatch.setattr(servers, "_FRESH", -1.0)
    assert server("http://a").join().current == 16


def test_whoever_has_least_comes_first_and_nobody_waits_for_ever():
    async def main():
        shared = Server(AdaptiveLimit(4))
        rich, poor = shared.join(), shared.join()
        woken = []
        assert fill(rich) == 4
        poor.wait(lambda: woken.append("poor"))
        rich.wait(lambda: woken.append("rich"))
        rich.exit()
        assert (woken, rich.free, poor.free) == (["poor"], 0, 1)
        assert poor.enter()
        poor.wait(lambda: woken.append("poor"))
        rich.exit()
        assert (rich.free, poor.enter()) == (0, True)
        rich.exit()  # 1 and 2: now the other one has less
        assert (rich.free, poor.free) == (1, 0)
        rich.waits_no_more()
        poor.waits_no_more()
        assert poor.free == 1
        rich.close()
        poor.close()
        assert shared.limit.in_flight == 0

    asyncio.run(main())


def test_a_single_place_goes_round():
    async def main():
        shared = Server(AdaptiveLimit(1))
        shares = [shared.join() for _ in range(3)]
        order = []

        async def ask(name):
            changed = asyncio.Event()
            for _ in range(4):
                while not shares[name].enter():
                    changed.clear()
                    shares[name].wait(changed.set)
                    await changed.wait()
                shares[name].waits_no_more()
                order.append(name)
                await asyncio.sleep(0)
                shares[name].wait(changed.set)
                shares[name].exit()
            shares[name].waits_no_more()

        await asyncio.wait_for(asyncio.gather(*map(ask, range(3))), 5)
        assert order == [0, 1, 2] * 4

    asyncio.run(main())


def test_a_gate_lets_so_many_through_in_their_order():
    async def main():
        inside, peak, order = 0, 0, []

        async def one(name, places):
            nonlocal inside, peak
            async with places:
                order.append(name)
                inside += 1
                peak = max(peak, inside)
                await asyncio.sleep(0.002)
                inside -= 1

        with gate("http://a", 5) as first, gate("http://A/v1", 3) as second:
            work = [one(n, first) for n in range(30)] + [one(100 + n, second) for n in range(30)]
            await asyncio.wait_for(asyncio.gather(*work), 5)
        assert peak == 3
        assert [name for name in order if name < 100] == list(range(30))
        assert [name for name in order if name >= 100] == list(range(100, 130))
        middle = [name >= 100 for name in order[:30]]
        assert 10 <= sum(middle) <= 20  # both went on beside each other
        assert server("http://a").idle and server("http://a").limit.in_flight == 0

    asyncio.run(main())


def test_a_gate_learns_from_refusals_and_survives_those_who_give_up():
    async def main():
        with gate("http://a", 4) as places:

            async def refused():
                async with places:
                    await asyncio.sleep(0.01)
                    raise RetryableError("full", overloaded=True)

            async def forever():
                async with places:
                    await asyncio.sleep(60)

            assert len(await asyncio.gather(*[refused() for _ in range(2)], return_exceptions=True)) == 2
            assert server("http://a").limit.current == 1
            tasks = [asyncio.create_task(forever()) for _ in range(3)]
            await asyncio.sleep(0.01)
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert server("http://a").limit.in_flight == 0
            async with places:
                assert server("http://a").limit.in_flight == 1

    asyncio.run(main())


def test_event_loops_in_two_threads_share_a_server():
    peak, inside, lock, done = 0, 0, threading.Lock(), []

    async def one(places):
        nonlocal peak, inside
        async with places:
            with lock:
                inside += 1
                peak = max(peak, inside)
            await asyncio.sleep(0.005)
            with lock:
                inside -= 1

    def loop():
        async def main():
            with gate("http://a", 2) as places:
                await asyncio.gather(*[one(places) for _ in range(40)])
            done.append(True)

        asyncio.run(main())

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert done == [True, True]
    assert peak == 2


def test_other_models_behind_an_address_are_not_taken_for_a_slower_server():
    shared = Server(AdaptiveLimit(64))
    quick, slow = shared.join(), shared.join()
    shared.limit.in_flight = 64
    for share, seconds in ((quick, 0.25), (slow, 2.5)):
        for _ in range(640):
            share.answered(seconds, 64, 5)
    assert shared.limit.current == 64
    for _ in range(640):  # that the server does get slower is seen by whoever asks
        slow.answered(10.0, 64, 5)
    assert shared.limit.current < 64


def test_the_first_requests_are_counted_beside_those_that_follow_them():
    # A server that loses a third when it is asked for more than 16 at once. What gave the first rate were the 16 that
    # ran; 8.5 had begun when a request began, in the middle.
    limit, seen = AdaptiveLimit(1024, 16), []
    for beside in range(1, 17):
        limit.in_flight = 16
        limit.answered(0.25, beside, 5)
    for _ in range(200):
        seen.append(limit.current)
        limit.in_flight = limit.current
        limit.answered(0.25 * limit.current / 16 * (1.5 if limit.current > 16 else 1.0), limit.current, 5)
    assert max(seen) > 16
    assert min(seen[seen.index(max(seen)) :]) == 16


HOLD = (
    "import os, sys, time; from persyn_hf.endpoints.slots import Slots; s = Slots(sys.argv[1], int(sys.argv[2]));"
    "print(sum(s.acquire() for _ in range(int(sys.argv[2]))), flush=True); time.sleep(60)"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path / "cache" / "persyn-hf" / "slots"


def test_a_stopped_process_is_named_and_keeps_nobody_waiting(cache, monkeypatch, caplog):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, "http://a:80", "2"], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "2\n"
            monkeypatch.setattr(servers, "_PATIENCE", 0.05)
            share = server("http://a").join(2)
            end = time.monotonic() + 10
            while "slots" not in caplog.text:
                assert not share.enter()
                assert time.monotonic() < end
                time.sleep(0.02)
            assert f"http://a:80: other processes hold all 2 slots: {other.pid} (running); waiting" in caplog.text
            other.send_signal(signal.SIGSTOP)
            end = time.monotonic() + 10
            while not share.enter():
                assert time.monotonic() < end
                time.sleep(0.02)
            assert fill(share) == 1
            third = Slots("http://a:80", 2)
            assert not third.acquire()  # no more than one stands in for each
            share.exit()
            share.settle()
            assert third.acquire()
            third.close()
            share.close()
        finally:
            other.kill()


def test_slots_lie_in_a_folder_of_the_users_own(cache, tmp_path):
    cache.mkdir(parents=True, mode=0o755)
    Slots("http://a", 1).close()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in cache.iterdir()] == [0o600]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_link_in_the_place_of_the_folder_is_not_followed(cache, tmp_path):
    cache.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    slots = Slots("http://a", 1)
    assert slots.acquire()
    slots.close()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    folder = tmp_path / "tmp" / f"persyn-hf-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 1


def test_where_no_folder_can_be_used_the_limit_still_holds_in_the_process(cache, tmp_path, caplog):
    cache.parent.mkdir(parents=True)
    for place in (cache, tmp_path / "tmp" / f"persyn-hf-{os.getuid()}"):
        place.write_text("in the way")
    share = server("http://a").join(2)
    assert fill(share) == 2
    assert "http://a:80: parallel processes do not share the limit of this server" in caplog.text
    share.close()


def test_a_process_that_is_forked_counts_for_itself(cache):
    share = server("http://a").join(3)
    assert fill(share, 2) == 2
    child = os.fork()
    if child == 0:
        own = server("http://a").join(3)
        os._exit(fill(own))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert fill(share) == 1
    share.close()
