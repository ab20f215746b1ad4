"""`persyn-hf ledger`: show, export, prune, rescue."""

import json
import sqlite3

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.errors import ConfigError, LedgerError
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger, Origin
from persyn_hf.ledger.rescue import rescue
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

#: The table as the first version wrote it.
FIRST_FORMAT = """
CREATE TABLE completions (key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, created REAL NOT NULL) WITHOUT ROWID
"""


def call(*arguments):
    done = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "ledger.sqlite"
    common = {"price_per_million_completion_tokens": 1e6, "sampling": {"max_tokens": 9}}
    with serve(Double()) as server:
        teachers = [{"name": n, "model": f"org/{n}", "endpoint": server.url, **common} for n in ("a", "b")]
        generate_parallel(["one", "two", "three"], teachers, path, seed=4, progress=False)
    with Ledger(path) as opened:
        opened.put("f" * 64, Completion("cut", "length", 1, 9))
    return path


def test_show_sums_by_model(ledger):
    said = call("show", ledger).stdout
    lines = [line.split() for line in said.splitlines()]
    assert ["org/a", "3", "0", "9", "15", "15.0000"] in [line[:6] for line in lines]
    assert ["(unknown)", "1", "1", "1", "9", "0.0000"] in [line[:6] for line in lines]
    assert "7 answers, 30.0000 USD" in said


def test_export_holds_everything_of_an_answer(ledger, tmp_path):
    assert "7 answers" in call("export", ledger, tmp_path / "a.jsonl").stdout
    call("export", ledger, tmp_path / "deep/a.parquet", "--format", "parquet")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["model"] == "org/a" and row["text"].startswith("user:two|"))
    assert row["text"].startswith(f"user:two|seed={row['seed']}|")
    assert row["sampling"] == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "stop": []}
    assert (row["finish_reason"], row["completion_tokens"], row["cost"]) == ("stop", 5, 5.0)
    table = pyarrow.parquet.read_table(tmp_path / "deep/a.parquet").to_pylist()
    assert [r["key"] for r in table] == [r["key"] for r in rows] == sorted(r["key"] for r in rows)
    assert [r["text"] for r in table] == [r["text"] for r in rows]


def test_prune_removes_what_is_named_and_nothing_else(ledger):
    with pytest.raises(ConfigError, match="needs a condition"):
        call("prune", ledger)
    assert "1 answers would be removed" in call("prune", ledger, "--truncated", "--dry-run").stdout
    assert "0 answers removed" in call("prune", ledger, "--truncated", "--model", "org/a").stdout
    assert "0 answers removed" in call("prune", ledger, "--older-than", "1").stdout
    assert "3 answers removed" in call("prune", ledger, "--model", "org/a").stdout
    with Ledger(ledger) as opened:
        assert [line["model"] for line in opened.totals()] == ["", "org/b"]


def test_a_path_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(LedgerError, match="does not exist; give the path of a ledger"):
        call("show", tmp_path / "none.sqlite")
    assert not (tmp_path / "none.sqlite").exists()


def test_an_older_format_is_taken_over(tmp_path):
    old, new = tmp_path / "old.sqlite", tmp_path / "new.sqlite"
    connection = sqlite3.connect(old)
    connection.execute(FIRST_FORMAT)
    connection.executemany(
        "INSERT INTO completions VALUES (?, ?, 'stop', 1, 2, 5.0)", [(bytes([n]) * 32, f"t{n}") for n in range(256)]
    )
    connection.execute("PRAGMA application_id=0x50455253")
    connection.execute("PRAGMA user_version=1")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match=r"has ledger format 1.*persyn-hf ledger rescue"):
        Ledger(old)
    assert "256 answers" in call("rescue", old, new).stdout
    with Ledger(new) as opened:
        assert opened.get_many(["ff" * 32])["ff" * 32] == Completion("t255", "stop", 1, 2)
    with pytest.raises(LedgerError, match="the file exists already"):
        rescue(old, new)


def test_a_damaged_ledger_gives_what_can_be_read(tmp_path):
    path = tmp_path / "l.sqlite"
    with Ledger(path) as ledger:
        ledger.put_many([(f"{n:02x}" * 32, Completion("x" * 900, "stop", 1, 1), None) for n in range(256)])
    data = bytearray(path.read_bytes())
    page = 4096 * (len(data) // 8192)
    data[page : page + 4096] = b"\xff" * 4096
    path.write_bytes(data)
    done = call("rescue", path, tmp_path / "new.sqlite")
    assert done.exit_code == 3
    assert "of 65,536 parts" in done.stderr
    with Ledger(tmp_path / "new.sqlite") as opened:
        assert 240 < len(opened) < 256
    (tmp_path / "page").write_bytes(b"<html>" * 500)
    with pytest.raises(LedgerError, match="the file cannot be read"):
        rescue(tmp_path / "page", tmp_path / "other.sqlite")


def test_show_tells_teachers_from_judges_and_what_was_lost(ledger):
    reply, common = Completion("Score: 7", "stop", 100, 4), {"model": "org/judge", "revision": "v2"}
    with Ledger(ledger) as opened, Claims(opened) as claims:
        opened.put("a1" * 32, reply, Origin(**common, cost=0.25, kind="judge"))
        opened.put("a2" * 32, reply, Origin(**common, cost=0.25, kind="judge (no score)"))
        opened.put("a3" * 32, reply, Origin(model="org/student", cost=0.5, kind="student"))
        claims.settle(1.5, 0.0)
    said = call("show", ledger).stdout
    lines = [line.split() for line in said.splitlines()]
    assert ["teacher", "org/a", "3", "0", "9", "15", "15.0000"] in [line[:7] for line in lines]
    assert ["judge", "org/judge", "v2", "1", "0", "100", "4", "0.2500"] in [line[:8] for line in lines]
    assert ["judge", "(no", "score)", "org/judge", "v2", "1", "0", "100"] in [line[:8] for line in lines]
    assert ["student", "org/student", "1", "0", "100", "4", "0.5000"] in [line[:7] for line in lines]
    assert "10 answers, 31.0000 USD" in said and "Up to 1.5000 USD more" in said
