import asyncio
import itertools
import random
import time

import pytest

from persyn_hf.config import Sampling
from persyn_hf.endpoints.concurrency import AdaptiveLimit
from persyn_hf.errors import LedgerError, RetryableError, RowError, TeacherDownError, UnavailableError
from persyn_hf.generation.client import Request
from persyn_hf.generation.lane import Lane
from persyn_hf.generation.pool import Job, Listener, RetryPolicy, TeacherPool
from persyn_hf.ledger.completion import Completion

FAST = RetryPolicy(base_delay=0.001, max_delay=0.01, down_after=0.2, down_after_unseen=0.1)


class Client:
    """Answers with the prompt's id unless `plan(prompt_id, attempt)` raises."""

    def __init__(self, plan=None, delay=0.0):
        self.plan, self.delay = plan, delay
        self.asked = []
        self.in_flight = self.peak = 0

    async def complete(self, request):
        self.asked.append(request.prompt_id)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.delay)
            if self.plan:
                self.plan(request.prompt_id, self.asked.count(request.prompt_id))
            return Completion(request.prompt_id, "stop", 1, 1)
        finally:
            self.in_flight -= 1

    async def aclose(self):
        pass


def jobs(count):
    return (Job(str(n), Request(str(n), (), Sampling(), 0)) for n in range(count))


def run(client, work, limit=4, policy=FAST, timeout=5.0, on_answer=None, limits=None, **settings):
    """Runs a pool over one client, or over several of them with a limit each."""
    answers, errors = [], {}

    def failed(job, message):
        assert job.key not in errors
        errors[job.key] = message

    async def main():
        clients = client if isinstance(client, list) else [client]
        made = limits or [AdaptiveLimit(limit) for _ in clients]
        patient, spaced = settings.pop("patient", False), settings.pop("spaced", False)
        lanes = [
            Lane(one, own, policy, patient=patient, spaced=spaced, rng=random.Random(0))
            for one, own in zip(clients, made, strict=True)
        ]
        pool = TeacherPool(
            lanes, Listener(on_answer or (lambda job, c: answers.append(job.key)), failed),
            timeout=timeout, policy=policy, rng=random.Random(0), **settings,
        )  # fmt: skip
        await pool.run(work)
        return pool

    pool = asyncio.run(main())
    assert len(answers) == len(set(answers))
    assert not set(answers) & set(errors)
    return answers, errors, pool


def test_every_job_once_and_never_more_at_a_time_than_the_limit():
    client = Client(delay=0.001)
    answers, errors, _ = run(client, jobs(50), limit=7)
    assert sorted(answers, key=int) == [str(n) for n in range(50)]
    assert errors == {}
    assert client.peak == 7


def test_jobs_are_drawn_as_places_get_free():
    drawn = itertools.count()
    lead = []

    def endless():
        for n in range(100):
            lead.append(next(drawn) - len(client.asked))
            yield Job(str(n), Request(str(n), (), Sampling(), 0))

    client = Client(delay=0.001)
    run(client, endless(), limit=5)
    assert max(lead) <= 5 + 16  # so many are made ready while nothing waits for them


def test_a_pause_that_ends_while_jobs_are_made_leaves_no_place_empty():
    def slowly_made():
        for job in jobs(8):
            time.sleep(0.005)  # longer than the two milliseconds between requests
            yield job

    client = Client(delay=0.5)
    answers, _, _ = run(client, slowly_made(), limit=8, spaced=True)
    assert len(answers) == 8
    assert client.peak == 8  # none waited for the first answer


def test_retries_until_it_succeeds_or_attempts_are_spent():
    def plan(prompt, attempt):
        if prompt == "1" and attempt < 4:
            raise RetryableError("broken")
        if prompt == "2":
            raise RetryableError("always broken")
        if prompt == "3":
            raise RetryableError("once is enough", attempts=2)
        if prompt == "4":
            raise RowError("refused")

    client = Client(plan)
    answers, errors, _ = run(client, jobs(6))
    assert sorted(answers) == ["0", "1", "5"]
    assert errors == {
        "2": "always broken (after 6 attempts)", "3": "once is enough (after 2 attempts)", "4": "refused",
    }  # fmt: skip
    assert [client.asked.count(str(n)) for n in range(6)] == [1, 4, 6, 2, 1, 1]


def test_each_kind_of_failure_has_attempts_of_its_own():
    def plan(prompt, attempt):
        if attempt in (1, 3):
            raise RetryableError("broken off", attempts=3)
        if attempt in (2, 4, 5):
            raise UnavailableError("503", overloaded=True)
        if attempt == 6:
            raise RetryableError("reset")

    client = Client(plan)
    answers, errors, _ = run(client, jobs(1))
    assert (answers, errors) == (["0"], {})
    assert len(client.asked) == 7


def test_a_teacher_that_is_down_is_not_asked_again():
    def plan(prompt, attempt):
        if prompt == "3":
            raise TeacherDownError("wrong key")

    client = Client(plan)
    answers, errors, pool = run(client, jobs(1000), limit=2)
    assert len(client.asked) < 8
    assert pool.down == "wrong key"
    assert errors == {}
    assert "0" in answers


def test_nobody_listening_ends_within_its_time():
    def plan(prompt, attempt):
        raise UnavailableError("cannot connect")

    client = Client(plan)
    answers, errors, pool = run(client, jobs(10**6), limit=8)
    assert answers == []
    assert "no answer for 0.1 seconds; the last error: cannot connect" in pool.down
    assert errors == {}
    assert len(client.asked) < 100


def test_a_server_that_returns_loses_no_row():
    state = {"asked": 0}

    def plan(prompt, attempt):
        state["asked"] += 1
        if 20 < state["asked"] < 60:
            raise UnavailableError("503")

    client = Client(plan, delay=0.001)
    policy = RetryPolicy(base_delay=0.001, max_delay=0.005, down_after=30)
    answers, errors, pool = run(client, jobs(100), limit=8, policy=policy)
    assert len(answers) == 100
    assert errors == {}
    assert pool.down is None


def test_the_open_circuit_asks_one_at_a_time():
    def plan(prompt, attempt):
        if client.in_flight > 1 and len(client.asked) > 40:
            peaks.append(client.in_flight)
        raise UnavailableError("503")

    peaks = []
    client = Client(plan, delay=0.001)
    run(client, jobs(1000), limit=16)
    assert peaks == []


def test_retry_after_pauses_the_whole_teacher():
    times = []

    def plan(prompt, attempt):
        times.append(asyncio.get_running_loop().time())
        if len(times) == 1:
            raise RetryableError("slow down", retry_after=0.15, overloaded=True)

    policy = RetryPolicy(base_delay=0.001, max_delay=1.0)
    answers, _, _ = run(Client(plan), jobs(3), limit=1, policy=policy)
    assert len(answers) == 3
    assert times[1] - times[0] >= 0.15


def test_a_request_has_one_deadline():
    client = Client(delay=10)
    _, errors, _ = run(client, jobs(1), timeout=0.02)
    assert errors == {"0": "no complete answer in 0.02 seconds (after 3 attempts)"}


def test_a_ledger_that_cannot_be_written_stops_the_run():
    def full(job, completion):
        raise LedgerError("disk full")

    client = Client(delay=0.001)
    with pytest.raises(LedgerError, match="disk full"):
        run(client, jobs(1000), limit=4, on_answer=full)
    assert len(client.asked) <= 8


def test_a_refusal_finds_the_cap_and_tries_above_it_ever_more_rarely():
    limit = AdaptiveLimit(128)
    limit.in_flight = 128
    for _ in range(64):
        limit.overloaded()
        limit.in_flight -= 1
    assert limit.current == 64
    refused, answers = 0, 0
    for _ in range(5000):
        limit.in_flight = limit.current
        if limit.current > 64:
            limit.overloaded()
            refused += 1
            assert limit.current == 64
        else:
            limit.answered()
            answers += 1
        if answers == 500:
            early = refused
    assert early <= 7
    assert (refused - early) / (answers - 500) < 0.01


def test_single_503_pages_do_not_lower_concurrency_but_many_do():
    limit = AdaptiveLimit(64)
    for n in range(400):
        limit.in_flight = 64
        (limit.unavailable if n % 20 == 0 else limit.answered)()
    assert limit.current == 64
    for _ in range(10):
        limit.unavailable()
    assert limit.current == 32


def test_a_cap_that_moved_up_is_found():
    limit = AdaptiveLimit(64)
    limit.in_flight = 2
    limit.overloaded()
    assert limit.current == 1
    for _ in range(100):
        limit.in_flight = limit.current
        limit.answered()
    assert limit.current == 64
