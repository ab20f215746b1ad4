"""The number in flight that an endpoint bears, found from refusals and from waiting."""

import pytest

from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.endpoints.slots import Slots


def serve(limit, latency, answers):
    """Lets a saturated client get `answers` answers from a server whose latency depends on what is in flight."""
    for _ in range(answers):
        limit.in_flight = limit.current
        limit.answered(latency(limit.current), limit.current, 5)


def queueing(cap, service=0.25):
    """A server that refuses nothing: beyond `cap` requests wait in line (Little's law)."""
    return lambda number: service * max(1.0, number / cap)


def test_an_unknown_limit_doubles_in_every_round_trip_until_refused():
    limit = AdaptiveLimit(1024, 16)
    serve(limit, queueing(10**6), 16 + 32 + 64)
    assert limit.current == 128
    limit.in_flight = 129
    limit.overloaded()
    assert limit.current == 128


def test_answers_that_come_at_once_raise_the_limit_as_much():
    limit = AdaptiveLimit(1024, 16)
    for number in (16, 32, 64):
        for left in range(number, 0, -1):
            limit.in_flight = left
            limit.answered(0.25, number, 5)
        assert limit.current == 2 * number
    for _ in range(500):  # few rows, a high limit: no reason for a higher one
        limit.in_flight = 4
        limit.answered(0.25, 4, 5)
    assert limit.current == 128


@pytest.mark.parametrize("cap", [1, 8, 64, 300])
def test_a_server_that_queues_silently_is_not_flooded(cap):
    limit = AdaptiveLimit(1024, 16)
    highest = 0
    for _ in range(60):
        serve(limit, queueing(cap), 400)
        highest = max(highest, limit.current)
    assert highest <= max(64, 4 * cap)
    # No throughput is given away for it.
    assert limit.current >= cap


def test_more_in_flight_is_kept_where_it_brings_more_even_though_latency_grows():
    # A batching server: twice the batch takes a third longer.
    limit = AdaptiveLimit(256, 16)
    serve(limit, lambda number: 0.25 * number**0.4, 5000)
    assert limit.current == 256


def test_latency_that_grows_without_throughput_lowers_the_limit_and_its_end_raises_it():
    limit = AdaptiveLimit(64)
    serve(limit, queueing(64), 640)
    assert limit.current == 64
    serve(limit, queueing(16), 1000)  # others take three quarters of the server
    assert 16 <= limit.current <= 45
    serve(limit, queueing(64), 4000)
    assert limit.current == 64


def test_a_hiccup_changes_nothing():
    limit = AdaptiveLimit(64)
    serve(limit, queueing(64), 640)
    serve(limit, lambda number: 2.0, 64)
    serve(limit, queueing(64), 640)
    assert limit.current == 64


def test_long_answers_are_not_taken_for_waiting():
    limit = AdaptiveLimit(64)
    for tokens in (10, 1000):
        for _ in range(640):
            limit.in_flight = 64
            limit.answered(0.02 * tokens, 64, tokens)
    assert limit.current == 64


def test_slots_are_shared_and_freed_when_their_holder_dies(tmp_path, monkeypatch):
    import subprocess
    import sys

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    code = (
        "import sys, time; from persyn_hf.endpoints.slots import Slots; s = Slots('http://a m', 3);"
        "print(s.acquire(), s.acquire(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True True\n"
        mine, elsewhere = Slots("http://a m", 3), Slots("http://b m", 1)
        assert [mine.acquire(), mine.acquire()] == [True, False]
        assert elsewhere.acquire()
        other.kill()
        other.wait()
        assert [mine.acquire(), mine.acquire(), mine.acquire()] == [True, True, False]
        mine.release()
        assert mine.acquire()
        beside = Slots("http://a m", 3)
        mine.release()
        assert not beside.acquire()
        mine.settle()
        assert [beside.acquire(), mine.acquire()] == [True, False]
        mine.close()
        beside.close()
        elsewhere.close()
