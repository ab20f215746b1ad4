"""Rows that are claimed: by nobody twice, and by nobody who is gone."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from persyn_hf.errors import LedgerError
from persyn_hf.ledger import owners
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger, Origin
from persyn_hf.ledger.money import Budget

KEYS = [f"{number:064x}" for number in range(1200)]
ANSWER = Completion("text", "stop", 1, 2)
#: Claims two rows, sets money aside and does nothing more.
HOLDER = """
import sys, time
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.ledger import Ledger
claims = Claims(Ledger(sys.argv[1]))
assert len(claims.take(sys.argv[2:])[1]) == 2 and claims.reserve(3.0, 10.0)
print("held", flush=True)
time.sleep(60)
"""


def paid(key, cost):
    return key, ANSWER, Origin(model="m", cost=cost)


def in_money(connection, name):
    return connection.execute("SELECT usd FROM sums WHERE name = ?", [name]).fetchone()[0]


def test_a_row_is_taken_once_and_free_again_when_it_is_answered_or_given_up():
    with Ledger(":memory:") as ledger, Claims(ledger) as mine, Claims(ledger) as theirs:
        assert mine.take(KEYS[:1100]) == ({}, KEYS[:1100])
        assert mine.take(KEYS[:2]) == ({}, []), "not even by the same run"
        assert theirs.take(KEYS[1000:]) == ({}, KEYS[1100:])
        mine.keep([paid(KEYS[0], 1.0), paid(KEYS[1], 1.0)])
        mine.release([KEYS[2], KEYS[1199]])  # the last one is not its own
        found, own = theirs.take([*KEYS[:4], KEYS[1199]])
        assert (found, own) == ({KEYS[0]: ANSWER, KEYS[1]: ANSWER}, [KEYS[2]])
        mine.close()
        assert theirs.take(KEYS[3:1100])[1] == KEYS[3:1100]


def test_an_answer_that_is_there_already_was_paid_in_vain():
    with Ledger(":memory:") as ledger, Claims(ledger) as claims:
        claims.keep([paid(KEYS[0], 1.0), paid(KEYS[1], 2.0)])
        claims.keep([(KEYS[0], Completion("other", "stop", 1, 1), Origin(cost=4.0))])
        assert (ledger.spent(), ledger.lost(), claims.committed()) == (3.0, 4.0, 7.0)
        assert ledger.get_many(KEYS[:1])[KEYS[0]].text == "text"


def test_pruned_answers_are_not_spent():
    with Ledger(":memory:") as ledger:
        ledger.put_many([paid(key, 0.5) for key in KEYS[:10]])
        assert ledger.spent() == 5.0
        assert ledger.prune("key < ?", [bytes.fromhex(KEYS[4])]) == 4
        assert ledger.spent() == 3.0


@pytest.mark.parametrize("how", ["kill", "end"])
def test_the_claims_of_a_process_end_with_it_and_what_it_had_in_flight_counts(tmp_path, how):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger, Claims(ledger) as claims:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, path, *KEYS[:2]], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert claims.take(KEYS[:3]) == ({}, [KEYS[2]])
        assert not claims.reserve(8.0, 10.0) and claims.others_reserve() and claims.reserve(7.0, 10.0)
        claims.settle(0.0, 0.0)
        holder.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        deadline = time.monotonic() + 10
        while not (own := claims.take(KEYS[:2])[1]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert own == KEYS[:2]  # before anybody has waited for the dead process
        holder.wait()
        assert ledger.lost() == 3.0, "the requests in flight may have been answered"
        assert not claims.reserve(7.5, 10.0) and not claims.others_reserve()
        assert claims.reserve(7.0, 10.0)


def test_a_stopped_process_loses_its_rows_after_the_lease(tmp_path, monkeypatch):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger, Claims(ledger) as claims:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, path, *KEYS[:2]], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        assert claims.take(KEYS[:2])[1] == []
        clock = owners.now()
        monkeypatch.setattr(owners, "now", lambda: clock + owners.LEASE + owners.BEAT)
        assert claims.take(KEYS[:2])[1] == KEYS[:2]
        holder.kill()
        holder.wait()


def test_a_process_number_that_was_given_again_is_another_process():
    this = owners.this_process()
    assert not owners.is_gone(this, owners.now())
    other = owners.Owner(this.place, os.getppid(), "12")
    assert owners.is_gone(other, owners.now())
    assert not owners.is_gone(owners.Owner(this.place, os.getppid(), ""), owners.now())
    elsewhere = owners.Owner("another machine", 2**22 + 1, "12")
    assert not owners.is_gone(elsewhere, owners.now())
    assert owners.is_gone(elsewhere, owners.now() - owners.LEASE - 1)
    assert owners.is_gone(elsewhere, owners.now() + 3600), "a sign of life from before the machine started"


def test_a_run_that_was_taken_for_gone_goes_on():
    with Ledger(":memory:") as ledger, Claims(ledger) as mine, Claims(ledger) as theirs:
        mine.take(KEYS[:1])
        with ledger.writing() as connection:
            connection.execute("DELETE FROM owners WHERE id = ?", [mine._id])
            connection.execute("DELETE FROM claims")
        assert theirs.take(KEYS[:1])[1] == KEYS[:1]
        assert mine.take(KEYS[:2]) == ({}, [KEYS[1]])
        assert mine.reserve(1.0, 1.0) and not theirs.reserve(0.5, 1.0)
        mine.keep([paid(KEYS[0], 1.0)], 0.0)
        assert theirs.take(KEYS[:2]) == ({KEYS[0]: ANSWER}, [])


def test_threads_claim_each_row_once(tmp_path):
    owned = []
    with Ledger(tmp_path / "l.sqlite") as ledger:

        def work():
            with Claims(ledger) as claims:
                for start in range(0, 300, 30):
                    own = claims.take(KEYS[start : start + 60])[1]
                    claims.keep([paid(key, 0.01) for key in own])
                    owned.extend(own)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(owned) == KEYS[:330]
        assert ledger.spent() == pytest.approx(3.3)


def test_a_budget_sets_aside_what_is_in_flight_and_then_what_it_cost():
    with Ledger(":memory:") as ledger, Claims(ledger) as claims, Claims(ledger) as other:
        budget = Budget(10.0, claims)
        told = []
        budget.watch(lambda: told.append(1))
        assert budget.hold(4.0) and budget.hold(4.0)
        assert not budget.hold(4.0) and not budget.idle
        budget.paid(4.0, 1.0)
        assert told == [1] and claims.committed() == 8.0, "the answer is not in the ledger yet"
        claims.keep([paid(KEYS[0], 1.0)], budget.written())
        assert (claims.committed(), ledger.spent(), budget.reserved) == (5.0, 1.0, 4.0)
        budget.failed(4.0, 4.0)
        assert (claims.committed(), ledger.lost(), budget.idle) == (5.0, 4.0, True)
        assert other.reserve(5.0, 10.0) and not other.reserve(0.1, 10.0)


def test_the_second_format_is_brought_up_to_date(tmp_path):
    path = tmp_path / "old.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE completions (key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL,"
            "prompt_tokens INTEGER, completion_tokens INTEGER, reasoning TEXT, usage_source TEXT, prompt_id TEXT,"
            "model TEXT, revision TEXT, seed INTEGER, sampling TEXT, cost REAL, created REAL NOT NULL)"
        )
        connection.execute("PRAGMA application_id=1346720339")
        connection.execute("PRAGMA user_version=2")
        for number, cost in ((1, 0.25), (2, None), (3, 0.5)):
            values = [bytes.fromhex(KEYS[number]), "old", "stop", 1, 2, cost, 7.0]
            connection.execute(
                "INSERT INTO completions (key, text, finish_reason, prompt_tokens, completion_tokens, cost, created)"
                "VALUES (?, ?, ?, ?, ?, ?, ?)", values
            )  # fmt: skip
    connection.close()
    for _ in range(2):
        with Ledger(path) as ledger, Claims(ledger) as claims:
            assert ledger.spent() == 0.75
            found, own = claims.take(KEYS[:4])
            assert sorted(found) == KEYS[1:4] and own == KEYS[:1]
            assert [line["kind"] for line in ledger.totals()] == ["teacher"]


def test_a_ledger_that_is_deleted_while_it_is_in_use_is_noticed(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put(KEYS[0], ANSWER)
        os.rename(path, tmp_path / "away")
        with pytest.raises(LedgerError, match="deleted or replaced while it was in use"):
            ledger.put(KEYS[1], ANSWER)
        os.rename(tmp_path / "away", path)
        ledger.put(KEYS[1], ANSWER)
        assert len(ledger) == 2
