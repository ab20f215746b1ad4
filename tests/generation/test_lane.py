"""How the requests to one endpoint are spaced."""

import pytest

from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.errors import RetryableError
from persyn_hf.generation.lane import Lane, RetryPolicy


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def sent_within(lane, clock, seconds, step=0.0001):
    """Times at which a greedy caller could send."""
    times, end = [], clock.now + seconds
    while clock.now < end:
        while lane.places > 0 and lane.enter():
            times.append(clock.now)
        clock.now += step
    return times


def lane(limit, clock, spaced=True):
    return Lane(None, AdaptiveLimit(limit), RetryPolicy(), spaced=spaced, clock=clock)


def test_the_first_requests_are_spread():
    clock = Clock()
    times = sent_within(lane(64, clock), clock, 1.0)
    assert len(times) == 64
    assert times[-1] - times[0] == pytest.approx(0.1, abs=0.01)


def test_few_requests_wait_two_milliseconds_at_most():
    clock = Clock()
    times = sent_within(lane(4, clock), clock, 1.0)
    assert len(times) == 4
    assert times[-1] - times[0] < 0.0065


def test_answers_that_come_at_once_are_asked_apart():
    clock = Clock()
    one = lane(64, clock)
    sent_within(one, clock, 1.0)
    for _ in range(64):
        one.succeeded(0.25)
        one.leave()
    times = sent_within(one, clock, 1.0)
    assert len(times) == 64
    assert times[-1] - times[0] == pytest.approx(0.25 / 6, rel=0.1)  # much less than the answers take
    assert one.opens_at <= clock.now


def test_what_comes_evenly_never_waits():
    clock = Clock()
    one = lane(64, clock)
    for _ in range(1000):
        assert one.places > 0 and one.enter()
        one.succeeded(0.25)
        one.leave()
        clock.now += 0.25 / 64


def test_a_local_model_gets_all_at_once():
    clock = Clock()
    times = sent_within(lane(64, clock, spaced=False), clock, 0.001)
    assert len(times) == 64


def test_a_pause_that_the_server_asked_for_is_kept():
    clock = Clock()
    one = lane(4, clock)
    one.enter()
    one.failed(RetryableError("later", retry_after=3.0, overloaded=True))
    assert one.places == 0
    assert one.opens_at == clock.now + 3.0
