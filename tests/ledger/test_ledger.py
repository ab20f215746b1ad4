import multiprocessing
import sqlite3

import pytest

from persyn_hf.config import Sampling
from persyn_hf.errors import LedgerError
from persyn_hf.generation.client import Request
from persyn_hf.generation.jobs import completion_key
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger

REQUEST = Request("p", ({"role": "user", "content": "Hi"},), Sampling(max_tokens=5), 7)


def _put(path, start):
    with Ledger(path) as ledger:
        for number in range(start, start + 50):
            ledger.put(f"{number:064x}", Completion(f"text {number}", "stop", 1, 2))


def test_answers_survive_closing(tmp_path):
    path = tmp_path / "deep" / "ledger.sqlite"
    key = completion_key("m", "r", REQUEST)
    with Ledger(path) as ledger:
        ledger.put(key, Completion("Hé \ud800", "length", None, 5))
        ledger.put(key, Completion("second", "stop", 1, 1))
    with Ledger(path) as ledger:
        assert ledger.get_many([key, "0" * 64]) == {key: Completion("Hé ?", "length", None, 5)}
        assert len(ledger) == 1


def test_more_keys_than_sqlite_takes_at_once():
    with Ledger(":memory:") as ledger:
        keys = [f"{number:064x}" for number in range(1200)]
        ledger.put_many([(key, Completion(key, "stop", 1, 1), None) for key in keys])
        assert {key: c.text for key, c in ledger.get_many(keys).items()} == {key: key for key in keys}


@pytest.mark.parametrize(
    "other",
    [
        Request("p", ({"role": "user", "content": "Ho"},), Sampling(max_tokens=5), 7),
        Request("p", ({"role": "system", "content": "Hi"},), Sampling(max_tokens=5), 7),
        Request("p", REQUEST.messages, Sampling(max_tokens=6), 7),
        Request("p", REQUEST.messages, Sampling(max_tokens=5, temperature=0.5), 7),
        Request("p", REQUEST.messages, Sampling(max_tokens=5, top_p=0.5), 7),
        Request("p", REQUEST.messages, Sampling(max_tokens=5, stop=("x",)), 7),
        Request("p", REQUEST.messages, Sampling(max_tokens=5), 8),
    ],
)
def test_the_key_says_all_that_an_answer_depends_on(other):
    assert completion_key("m", "r", other) != completion_key("m", "r", REQUEST)
    assert completion_key("n", "r", REQUEST) != completion_key("m", "r", REQUEST)
    assert completion_key("m", "s", REQUEST) != completion_key("m", "r", REQUEST)


def test_the_key_is_the_same_in_every_version():
    assert completion_key("m", "r", REQUEST) == "7e4f2d857798fddd806229ea75dc5229f7275362d5ce4a93ee2e4f1d5eb7b4f6"


def test_several_processes_write_at_once(tmp_path):
    path = str(tmp_path / "l.sqlite")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_put, args=(path, start)) for start in (0, 25, 50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with Ledger(path) as ledger:
        assert len(ledger) == 100
        assert ledger.get_many([f"{99:064x}"])[f"{99:064x}"].text == "text 99"


def test_refuses_what_is_no_ledger(tmp_path):
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"not a database at all" * 100)
    with pytest.raises(LedgerError, match=r"damaged or is not a ledger.*Move it away"):
        Ledger(garbage)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(LedgerError, match="not a ledger; name another path"):
        Ledger(other)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(garbage / "below" / "a file")


def test_refuses_another_format_with_a_way_out(tmp_path):
    path = tmp_path / "l.sqlite"
    Ledger(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(LedgerError, match=r"format 99, but this version of persyn-hf reads 3.*move the file away"):
        Ledger(path)


def test_a_page_that_rots_is_named(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put_many([(f"{n:064x}", Completion("x" * 500, "stop", 1, 1), None) for n in range(200)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="ledger rescue"):
        ledger.get_many([f"{n:064x}" for n in range(200)])


def test_a_full_disk_loses_nothing_written(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put("a" * 64, Completion("kept", "stop", 1, 1))
        ledger._connection.execute("PRAGMA max_page_count=3")
        with pytest.raises(LedgerError, match="disk is full: free some space"):
            ledger.put("b" * 64, Completion("x" * 100_000, "stop", 1, 1))
    with Ledger(path) as ledger:
        assert ledger.get_many(["a" * 64, "b" * 64])["a" * 64].text == "kept"
        assert len(ledger) == 1


def test_the_wal_is_emptied_beside_the_caller(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        for start in range(0, 3000, 100):
            ledger.put_many([(f"{n:064x}", Completion("text", "stop", 1, 2), None) for n in range(start, start + 100)])
        assert ledger._checkpoint is not None
        ledger._checkpoint.join()
        # Another process sees the answers in the file itself; they would all be in the WAL otherwise.
        assert path.stat().st_size > 100_000
        assert len(ledger) == 3000
    assert not path.with_name("ledger.sqlite-wal").exists()
