import asyncio
import hashlib
import sqlite3
import subprocess
import sys

import pytest
from datasets import Dataset, Value
from starlette.responses import JSONResponse

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import (
    ConfigError,
    DataError,
    DuplicatePromptError,
    LedgerError,
    MissingColumnError,
    RouterMismatchError,
)  # fmt: skip
from persyn_hf.generation.generate import (
    GenerationSummary,
    generate_parallel,
    generate_routed,
    persyn_generate,
    summarize_generation,
)  # fmt: skip
from persyn_hf.generation.incoming import prompt_table
from persyn_hf.generation.jobs import Plan, resolved, row_seed
from persyn_hf.generation.table import FinishedTable
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger
from tests.generation.servers import Teacher as Double
from tests.generation.servers import chat_body, echo, serve


@pytest.fixture
def server():
    with serve(Double()) as running:
        yield running


def teachers(server, **settings):
    return [
        {"name": "plain", "model": "m", "endpoint": server.url, **settings},
        {"name": "system", "model": "m", "endpoint": server.url, "system_prompt": "Shout.", **settings},
    ]


PROMPTS = Dataset.from_dict({"prompt": ["one", "two", "three"], "answer": ["1", "2", None]})


def test_every_teacher_answers_every_prompt_in_prompt_order(server):
    table = generate_parallel(PROMPTS, teachers(server), seed=5, progress=False)
    assert table.column_names == [
        "prompt_id", "prompt", "answer", "teacher", "completion", "reasoning", "finish_reason", "leak",
        "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens",
        "usage_source", "temperature", "top_p", "max_tokens", "stop", "seed",
        "system_prompt", "rerouted_from", "error",
    ]  # fmt: skip
    assert table["prompt"][:] == ["one", "one", "two", "two", "three", "three"]
    assert table["answer"][:] == ["1", "1", "2", "2", None, None]
    assert table["teacher"][:] == ["plain", "system"] * 3
    seed = row_seed(5, columns.prompt_id("one"))
    assert seed == int(hashlib.sha256(f"5:{columns.prompt_id('one')}".encode()).hexdigest()[:8], 16) >> 1
    assert table["completion"][:2] == [f"user:one|seed={seed}|t=1.0", f"system:Shout.|user:one|seed={seed}|t=1.0"]
    assert table["completion_tokens"][:] == [5] * 6
    assert table.features["error"] == Value("string")
    assert table.features["completion_tokens"] == Value("int64")


def test_chat_prompts_keep_their_features(server):
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "Hi"}], "extra": 1}])
    table = generate_parallel(prompts, teachers(server), progress=False)
    assert table.features["prompt"] == prompts.features["prompt"]
    assert table[1]["completion"].startswith("system:Shout.|user:Hi|")


def test_a_rerun_asks_only_for_what_is_missing(server, tmp_path):
    ledger = tmp_path / "l.sqlite"
    first = generate_parallel(PROMPTS.select([0, 1]), teachers(server), ledger=ledger, progress=False)
    assert len(server.bodies) == 4
    second = generate_parallel(PROMPTS, teachers(server), ledger=str(ledger), progress=False)
    assert len(server.bodies) == 6
    assert second.select(range(4)).to_list() == first.to_list()
    with serve(Double()) as elsewhere, Ledger(ledger) as opened:
        renamed = [{**t, "name": t["name"] + "-2"} for t in teachers(elsewhere)]
        moved = generate_parallel(PROMPTS, renamed, ledger=opened, progress=False)
        assert len(elsewhere.bodies) == 0
        assert moved["completion"][:] == second["completion"][:]
        generate_parallel(PROMPTS, renamed, ledger=opened, seed=1, progress=False)
        assert len(elsewhere.bodies) == 6


def test_answers_of_the_probe_are_used_again_by_the_route(server, tmp_path):
    generate_parallel(PROMPTS, teachers(server), ledger=tmp_path / "l", progress=False)
    routed = PROMPTS.add_column("route", ["system", "plain", "system"])
    table = generate_routed(routed, teachers(server), ledger=tmp_path / "l", progress=False)
    assert len(server.bodies) == 6
    assert table["teacher"][:] == table["route"][:] == ["system", "plain", "system"]
    assert [c.split(":")[0] for c in table["completion"]] == ["system", "user", "system"]


def test_failures_are_not_kept(tmp_path):
    from starlette.responses import JSONResponse

    broken = True
    behave = lambda n, body: JSONResponse({"error": "no"}, 422) if broken else None  # noqa: E731
    with serve(Double(behave)) as server:
        table = generate_parallel(["a"], teachers(server), ledger=tmp_path / "l", progress=False)
        assert table["error"][:] == ["HTTP 422: no"] * 2
        assert table["completion"][:] == [None, None]
        broken = False
        assert generate_parallel(["a"], teachers(server), ledger=tmp_path / "l", progress=False)["error"][0] is None


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        (["a", " "], DataError, "Row 1: A prompt is empty"),
        (["a", "b", "a"], DuplicatePromptError, "1 rows repeat"),
        ([{"text": "a"}], MissingColumnError, "needs the column `prompt`"),
        ([{"prompt": "a", "completion": "x"}], DataError, "adds the column `completion`"),
        ([{"prompt": "a", "prompt_id": "0" * 16}], DataError, "does not match its prompt"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_asked(server, prompts, error, words):
    with pytest.raises(error, match=words):
        generate_parallel(prompts, teachers(server), progress=False)
    assert server.bodies == []


def test_bad_teachers_and_routes_are_refused(server):
    with pytest.raises(ConfigError, match="more than once: plain"):
        generate_parallel(["a"], teachers(server)[:1] * 2)
    with pytest.raises(ConfigError, match="`teachers` is empty"):
        generate_parallel(["a"], [])
    with pytest.raises(ConfigError, match=r"teachers\[0\].*endpoint") as caught:
        generate_parallel(["a"], [{"name": "sk-x", "model": "m"}])
    assert "sk-x" not in str(caught.value)
    with pytest.raises(RouterMismatchError, match="names other, but the teachers are plain, system"):
        generate_routed([{"prompt": "a", "route": "other"}], teachers(server))
    with pytest.raises(MissingColumnError, match="`route`"):
        generate_routed(["a"], teachers(server))


def test_no_prompts_give_an_empty_table_with_its_types(server):
    table = generate_parallel(PROMPTS.select([]), teachers(server), progress=False)
    assert len(table) == 0
    assert table.features["completion"] == Value("string")


@pytest.mark.parametrize("batched", [False, True])
def test_map_by_teacher_and_by_route(server, tmp_path, batched):
    by_teacher = PROMPTS.map(
        persyn_generate, batched=batched, fn_kwargs={"teacher": teachers(server)[1], "ledger": str(tmp_path / "l")}
    )
    assert by_teacher["teacher"][:] == ["system"] * 3
    routed = PROMPTS.add_column("route", ["system", "plain", "system"])
    kwargs = {"teachers": teachers(server), "ledger": str(tmp_path / "l")}
    mapped = routed.map(persyn_generate, batched=batched, fn_kwargs=kwargs)
    assert len(server.bodies) == 4
    whole = generate_routed(routed, teachers(server), ledger=tmp_path / "l", progress=False)
    for name in ("prompt_id", "teacher", "completion", "finish_reason", "completion_tokens", "error"):
        assert mapped[name][:] == whole[name][:]


def test_map_in_several_processes(server, tmp_path):
    prompts = Dataset.from_dict({"prompt": [f"p{n}" for n in range(8)]})
    kwargs = {"teacher": teachers(server)[0], "ledger": str(tmp_path / "l")}
    mapped = prompts.map(persyn_generate, batched=True, batch_size=2, num_proc=2, fn_kwargs=kwargs)
    assert [c.split("|")[0] for c in mapped["completion"]] == [f"user:p{n}" for n in range(8)]
    assert len(server.bodies) == 8


def test_map_says_what_it_needs():
    with pytest.raises(ConfigError, match="exactly one of `teacher` and `teachers`"):
        persyn_generate({"prompt": "a"})


def test_works_where_a_loop_is_running(server):
    async def cell():
        return generate_parallel(["a"], teachers(server), progress=False)

    assert len(asyncio.run(cell())) == 2


def test_summary_counts_by_teacher():
    from starlette.responses import JSONResponse

    def behave(n, body):
        if body["messages"][-1]["content"] == "two":
            return JSONResponse(chat_body("cut", "length"))
        return JSONResponse({}, 422) if body["messages"][-1]["content"] == "three" else None

    with serve(Double(behave)) as server:
        table = generate_parallel(PROMPTS, teachers(server)[:1], progress=False)
    assert summarize_generation(table) == {"plain": GenerationSummary(2, 1, 1, 6, 10)}


def test_the_ledger_holds_no_key_and_no_address(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    generate_parallel(["a"], teachers(server, api_key_env="MY_KEY"), ledger=tmp_path / "l", progress=False)
    connection = sqlite3.connect(tmp_path / "l")
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert "sk-very-secret" not in dump
    assert "127.0.0.1" not in dump


def test_generation_imports_torch_only_for_local_teachers():
    code = "import sys, persyn_hf.generation.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_full_disk_stops_the_run_and_keeps_what_was_written(server, tmp_path):
    prompts = [f"{n} " + "x" * 2000 for n in range(50)]
    with Ledger(tmp_path / "l") as ledger:
        ledger._connection.execute("PRAGMA max_page_count=20")
        with pytest.raises(LedgerError, match="disk is full"):
            generate_parallel(prompts, teachers(server, max_concurrency=2), ledger=ledger, progress=False)
        kept = len(ledger)
        assert kept > 3
    sent = len(server.bodies)
    table = generate_parallel(prompts, teachers(server), ledger=tmp_path / "l", progress=False)
    assert table["error"][:] == [None] * 100
    assert len(server.bodies) == sent + 100 - kept


def test_a_missing_key_is_found_before_anything_is_asked(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "x")
    configured = [Teacher.model_validate(t) for t in teachers(server, api_key_env="MY_KEY")]
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        generate_parallel(["a"], [Teacher.model_validate(teachers(server)[1]), configured[0]], progress=False)
    assert server.bodies == []


def test_a_large_table_is_mapped_from_a_file(server, monkeypatch):
    prompts = Dataset.from_dict({"prompt": [f"p{n}" for n in range(300)]})
    held = generate_parallel(prompts, teachers(server), progress=False)
    monkeypatch.setattr("persyn_hf.generation.table.IN_MEMORY_BYTES", 1000)
    mapped = generate_parallel(prompts, teachers(server), progress=False)
    assert held.cache_files == []
    assert len(mapped.cache_files) == 1
    assert mapped.to_list() == held.to_list()
    assert mapped.features == held.features


def test_the_table_grows_while_answers_are_waited_for(monkeypatch):
    async def slow(n, body):
        last = body["messages"][-1]["content"] == "p599"
        if last:
            await asyncio.sleep(1.5)
            settled.append(ahead.count(True))
        return JSONResponse(chat_body(echo(body)))

    ahead, settled = [], []
    advance = FinishedTable.advance

    def watched(self):
        ahead.append(advance(self))
        return ahead[-1]

    prompts = Dataset.from_dict({"prompt": [f"p{n}" for n in range(600)]})
    with serve(Double(slow)) as server:
        teacher = {"name": "t", "model": "m", "endpoint": server.url}
        plain = generate_parallel(prompts, [teacher], progress=False)
        monkeypatch.setattr(FinishedTable, "advance", watched)
        grown = generate_parallel(prompts, [teacher], progress=False)
    # Nine parts of 64 rows are settled while the last row is not.
    assert settled == [0, 9]
    assert grown.to_list() == plain.to_list()


def test_a_table_that_grows_too_large_goes_on_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr("persyn_hf.generation.table.IN_MEMORY_BYTES", 100_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prompts = prompt_table([f"p{n}" for n in range(5000)], "test")
    asked = resolved(Teacher(name="t", model="m", endpoint="http://localhost:1"))
    plan = Plan(prompts, [asked], 0, False)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        table = FinishedTable(plan, ledger)
        ledger.put_many([(job.key, Completion("yes " * 20, "stop", 1, 1), None) for job in plan.jobs(asked)])
        held = []
        while table.advance():
            held.append(sum(part.nbytes for part in (*table._parts, *table._loose)))
        [path] = tmp_path.glob("persyn-hf-*/generated.arrow")
        assert path.stat().st_size > 500_000
        # No more than the bound and the piece that passes it; then no more than a piece.
        assert max(held) < 400_000
        assert len(held) == -(-5000 // 64)
        finished = table.finish()
    assert finished["prompt_id"][:] == prompts["prompt_id"][:]
    assert set(finished["completion"]) == {"yes " * 20}


def test_no_room_for_the_table_stops_no_run_and_is_said_at_its_end(server, tmp_path, monkeypatch):
    monkeypatch.setattr("persyn_hf.generation.table.IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr("tempfile.tempdir", "/dev/full")  # no folder can be made in it
    prompts = [f"p{n}" for n in range(1500)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        with pytest.raises(LedgerError, match=r"cannot be written to /dev/full.*TMPDIR.*not requested twice"):
            generate_parallel(prompts, teachers(server)[:1], ledger=ledger, progress=False)
        assert len(ledger) == 1500
        monkeypatch.undo()
        assert len(generate_parallel(prompts, teachers(server)[:1], ledger=ledger, progress=False)) == 1500
    assert len(server.bodies) == 1500


def test_a_row_that_failed_for_good_holds_up_no_part_of_the_table(tmp_path):
    prompts = prompt_table([f"p{n}" for n in range(300)], "test")
    asked = resolved(Teacher(name="t", model="m", endpoint="http://localhost:1"))
    plan = Plan(prompts, [asked], 0, False)
    jobs = list(plan.jobs(asked))
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        table = FinishedTable(plan, ledger)
        ledger.put_many([(job.key, Completion("yes", "stop", 1, 1), None) for job in jobs[1:64]])
        assert not table.advance()  # the first row may still be answered
        plan.errors[jobs[0].key] = "refused"
        assert table.advance()
        assert not table.advance()
        ledger.put(jobs[299].key, Completion("late", "stop", 1, 1))
        finished = table.finish()
    assert finished["completion"][:] == [None, *["yes"] * 63, *[None] * 235, "late"]
    assert finished["error"][0] == "refused"
    assert finished["error"][64] is not None
    assert finished["prompt"][:] == prompts["prompt"][:]
