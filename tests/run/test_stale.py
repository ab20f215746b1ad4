"""What has changed is made again, what is damaged too, and nothing else; teachers are asked for none of it twice."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack

import pyarrow.parquet as pq
import pytest
import yaml
from starlette.responses import JSONResponse

from persyn_hf import RunConfig, run
from persyn_hf.errors import ConfigError, DataError, ScoringError
from persyn_hf.generation.lane import RetryPolicy
from persyn_hf.run import functions
from persyn_hf.run.folder import RunFolder
from tests.generation.servers import Teacher, chat_body, serve
from tests.run.tables import stage_table

PROMPTS, PROBE = 12, 6
VERIFIER = "from persyn_hf import verifier\n\n\n@verifier\ndef judge(prompt, completion, answer):\n    return {}\n"


def _says(name):
    def behave(_, body):
        number = re.search(r"\d+", body["messages"][-1]["content"])[0]
        right = int(number) % 2 == (name == "odd")
        return JSONResponse(chat_body(f"<think>hm</think>\n\n{number if right else 'none'}"))

    return behave


@pytest.fixture
def teachers():
    with ExitStack() as stack:
        yield {name: stack.enter_context(serve(Teacher(_says(name)))) for name in ("odd", "even")}


@pytest.fixture
def settings(tmp_path, tiny_lm, teachers, monkeypatch):
    (tmp_path / "verifiers_of_mine.py").write_text(VERIFIER.format("float(completion == answer)"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "verifiers_of_mine", raising=False)
    _write_prompts(tmp_path, [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(PROMPTS)])
    return {
        "output_dir": str(tmp_path / "run"),
        "prompts": {"source": str(tmp_path / "prompts.jsonl"), "answer_column": "answer"},
        "probe": {"size": PROBE},
        "teachers": [
            {"name": name, "model": name, "endpoint": double.url, "preflight": False}
            for name, double in teachers.items()
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "verifiers_of_mine:judge"},
        "router": {"backbone": str(tiny_lm), "folds": 2, "fallback": "none"},
    }


def _write_prompts(folder, rows):
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def asked(teachers):
    return lambda: sum(len(double.bodies) for double in teachers.values())


def _run(settings, until="publish"):
    result = run(RunConfig.from_dict(settings), progress=False, until=until)
    return {stage.name: stage.reused for stage in result.stages}


def _column(settings, stage, name):
    return stage_table(settings["output_dir"], stage)[name][:]


def _files(settings):
    folder = RunFolder(settings["output_dir"]).stages
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("part-*.parquet"))}


pytestmark = pytest.mark.filterwarnings("ignore")


def test_reasoning_that_is_kept_reaches_every_table_without_a_request(settings, asked, caplog):
    settings["probe"]["size"] = PROMPTS  # so that every answer is in the ledger, whatever the router says
    _run(settings)
    before = asked()
    assert not any("<think>" in text for text in _column(settings, "generate", "completion"))
    for teacher in settings["teachers"]:
        teacher["reasoning"] = "keep"
    assert not any(_run(settings).values())
    assert all("<think>" in text for stage in ("probe", "generate") for text in _column(settings, stage, "completion"))
    assert asked() == before
    assert "probe is recomputed: `teachers` changed" in caplog.messages


@pytest.mark.slow
def test_another_revision_of_a_local_teacher_answers_anew(settings, tmp_path, tiny_lm):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cache = tmp_path / "hub/models--org--tiny"
    for number, name in enumerate(("v1", "v2"), 1):
        commit = str(number) * 40
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs" / name).write_text(commit)
        torch.manual_seed(number)
        model = AutoModelForCausalLM.from_pretrained(tiny_lm)
        model = type(model)(model.config)
        model.save_pretrained(cache / "snapshots" / commit)
        AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(cache / "snapshots" / commit)
    local = {"model": "org/tiny", "backend": "local", "dtype": "float32", "sampling": {"max_tokens": 8}}
    texts = {}
    for name in ("v1", "v2"):
        settings["teachers"] = [
            {"name": "warm", "revision": name, **local},
            {"name": "told", "revision": "v1", "system_prompt": "Be.", **local},
        ]
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
        command = [
            sys.executable,
            "-m",
            "persyn_hf.cli",
            "run",
            str(tmp_path / "run.yaml"),
            "--until",
            "probe",
            "--quiet",
        ]
        environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        table = stage_table(settings["output_dir"], "probe").to_list()
        texts[name] = {
            teacher: [row["completion"] for row in table if row["teacher"] == teacher] for teacher in ("warm", "told")
        }
    assert texts["v1"]["told"] == texts["v2"]["told"] and texts["v1"]["warm"] != texts["v2"]["warm"]


def test_edited_reference_answers_arrive_everywhere(settings, tmp_path, asked):
    settings["allocation"] = {"top_k": 2}
    _run(settings)
    before = asked()
    assert set(_column(settings, "select", "quality")) == {1.0}
    _write_prompts(tmp_path, [{"prompt": f"Say {number}.", "answer": "never"} for number in range(PROMPTS)])
    _run(settings)
    for stage in ("probe", "score", "generate", "score-answers", "select"):
        assert set(_column(settings, stage, "answer")) == {"never"}
    assert set(_column(settings, "select", "quality")) == {0.0}
    assert asked() == before


@pytest.mark.parametrize("bodies", [("1.0", "0.0"), ("float(len(completion))", "0.5")])
def test_another_body_of_a_verifier_scores_anew(settings, tmp_path, asked, bodies):
    for number, body in enumerate(bodies):
        (tmp_path / "verifiers_of_mine.py").write_text(VERIFIER.format(body))
        assert _run(settings, "score") == {"probe": number > 0, "score": False}
    assert set(_column(settings, "score", "quality")) == {float(bodies[1])}
    assert _run(settings, "score") == {"probe": True, "score": True}


def _fewer_rows(file):
    pq.write_table(pq.read_table(file).slice(0, 3), file)


def _one_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "fewer rows": _fewer_rows,
    "a flipped byte": _one_byte,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "junk": lambda file: file.write_bytes(b"junk" * 100),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_made_again_as_it_was(settings, asked, caplog, damage):
    _run(settings, "score")
    before, requests = _files(settings), asked()
    for stage in ("probe", "score"):
        DAMAGES[damage](RunFolder(settings["output_dir"]).stages / f"{stage}.parquet/part-00000.parquet")
    assert _run(settings, "score") == {"probe": False, "score": False}
    assert _files(settings) == before and asked() == requests
    said = [message for message in caplog.messages if "has changed since the run wrote it" in message]
    assert [message.split()[0] for message in said] == ["probe", "score"]
    assert all(_run(settings, "score").values())


def test_a_table_that_somebody_reads_by_itself_is_named_where_it_is_damaged(settings):
    _run(settings, "probe")
    folder = RunFolder(settings["output_dir"])
    file = folder.stages / "probe.parquet/part-00000.parquet"
    file.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"part-00000.parquet is damaged .*delete it and run again"):
        folder.read("probe")
    with pytest.raises(DataError, match=r"holds no table; run the stages up to it first"):
        folder.read("generate")
    (folder.stages / "probe.parquet/.part-00000.json").write_text("[")
    with pytest.raises(ConfigError, match=r"\.part-00000\.json is damaged .*delete it"):
        _run(settings, "probe")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_router_is_trained_again(settings, caplog, file):
    _run(settings, "router")
    folder = RunFolder(settings["output_dir"]).stages / "router"
    before = (folder / file).read_bytes()
    (folder / file).write_bytes(before[:-2])
    assert _run(settings, "router") == {"probe": True, "score": True, "router": False}
    assert (folder / file).read_bytes() == before
    assert any(message.startswith("router is recomputed: its file has changed") for message in caplog.messages)


def test_the_cut_into_shards_changes_no_value(settings, tmp_path, asked):
    tables = {}
    for rows in (4, 100, 4):
        settings |= {"rows_per_shard": rows, "output_dir": str(tmp_path / f"run-{rows}-{len(tables)}")}
        if tables:
            os.makedirs(settings["output_dir"])
            shutil.copy(tmp_path / "run-4-0/ledger.sqlite", settings["output_dir"])
        _run(settings)
        tables[rows, len(tables)] = {
            name: stage_table(settings["output_dir"], name).to_list()
            for name in ("probe", "score", "route", "generate")
        }
        shards = sorted((RunFolder(settings["output_dir"]).stages / "generate.parquet").glob("*.parquet"))
        assert [pq.read_metadata(shard).num_rows for shard in shards] == ([4, 4, 4] if rows == 4 else [12])
    first, whole, again = tables.values()
    assert first == again and asked() == PROBE * 2 + PROMPTS - PROBE
    rounded = {"learnability", "reward", "route_scores"}
    for name, table in first.items():
        for one, other in zip(table, whole[name], strict=True):
            assert {key: value for key, value in one.items() if key not in rounded} == {
                key: value for key, value in other.items() if key not in rounded
            }
            for key in rounded & one.keys():
                assert one[key] == pytest.approx(other[key], abs=1e-4)
    folders = [RunFolder(tmp_path / name).stages for name in ("run-4-0", "run-4-2")]
    for shard in folders[0].rglob("part-*.parquet"):
        assert shard.read_bytes() == (folders[1] / shard.relative_to(folders[0])).read_bytes(), shard


def test_a_stage_that_was_interrupted_goes_on_at_its_shard(settings, monkeypatch):
    settings["rows_per_shard"] = 2
    scored = []
    score = functions.score_answers

    def interrupt(answers, **how):
        scored.append(answers["prompt_id"][0])
        if len(scored) == 3:
            raise KeyboardInterrupt
        return score(answers, **how)

    interrupt.__module__, interrupt.__qualname__ = score.__module__, score.__qualname__
    monkeypatch.setattr(functions, "score_answers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run(settings, "score")
    assert len(scored) == 3
    _run(settings, "score")
    assert scored[3:] == scored[2:3]
    assert len(stage_table(settings["output_dir"], "score")) == 2 * PROBE


def test_only_the_shards_with_a_missing_answer_are_asked_for_again(settings, teachers, caplog):
    settings["rows_per_shard"] = 2
    odd = teachers["odd"]
    answer, refused = odd.behave, []

    def once(number, body):
        if "Say 3." in body["messages"][-1]["content"] and not refused:
            refused.append(number)
            return JSONResponse({"error": {"message": "no"}}, 400)
        return answer(number, body)

    odd.behave = once
    settings["probe"]["size"] = PROMPTS
    assert run(RunConfig.from_dict(settings), progress=False, until="probe").missing == 1
    before = {name: len(double.bodies) for name, double in teachers.items()}
    files = _files(settings)
    result = run(RunConfig.from_dict(settings), progress=False, until="probe")
    assert result.missing == 0 and not result.stages[0].reused
    assert {name: len(double.bodies) - before[name] for name, double in teachers.items()} == {"odd": 1, "even": 0}
    assert sum(content != files[name] for name, content in _files(settings).items()) == 1


def test_fewer_prompts_leave_no_shard_behind(settings, tmp_path):
    settings["rows_per_shard"] = 5
    _run(settings, "route")
    assert len(_column(settings, "route", "route")) == PROMPTS
    _write_prompts(tmp_path, [{"prompt": f"Say {number}.", "answer": str(number)} for number in range(7)])
    _run(settings, "route")
    assert len(_column(settings, "route", "route")) == 7


@pytest.fixture
def judge(settings):
    """A judge that gives no score while `broken` says so."""
    broken = []
    double = Teacher(lambda _, body: JSONResponse(*broken) if broken else JSONResponse(chat_body("Score: 7")))
    with serve(double):
        settings["quality"] = {"judge": {"url": double.url, "model": "j", "attempts": 1}}
        yield double, broken


def test_scores_that_a_judge_failed_to_give_are_asked_for_again(settings, judge, tmp_path):
    from typer.testing import CliRunner

    from persyn_hf.cli import app

    double, _ = judge
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    command = ["run", str(tmp_path / "run.yaml"), "--until", "score", "--quiet"]
    unread = JSONResponse(chat_body("I cannot rate this."))
    double.behave = lambda n, _: JSONResponse(chat_body("Score: 7")) if n % 3 == 0 else unread
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 3, done.output
    missing = _column(settings, "score", "quality").count(None)
    assert 4 <= missing < 12
    assert f"{missing} rows of" in done.output and "have no score" in done.output
    double.behave = lambda n, _: JSONResponse(chat_body("Score: 7"))
    asked = len(double.bodies)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(double.bodies) == asked + missing and set(_column(settings, "score", "quality")) == {7.0}
    assert CliRunner().invoke(app, command).exit_code == 0 and len(double.bodies) == asked + missing


def test_a_judge_whose_replies_are_no_scores_stops_early(settings, judge, tmp_path):
    judge[1].append(chat_body("I cannot rate this."))
    with pytest.raises(ScoringError, match=r"the judge `j` .* 8 replies in a row that are not scores.*cannot rate"):
        _run(settings)
    assert len(judge[0].bodies) <= 10


def test_a_judge_that_refuses_everything_is_named_in_its_words(settings, judge):
    judge[1].extend([{"error": {"message": "temperature does not support 0"}}, 400])
    with pytest.raises(ScoringError, match=r"the judge `j`.*temperature does not support 0"):
        _run(settings)


def test_teachers_that_nobody_can_reach_are_named_with_the_reason(settings, monkeypatch):
    monkeypatch.setattr(
        "persyn_hf.generation.generate.RetryPolicy", lambda: RetryPolicy(base_delay=0.01, down_after_unseen=0.2)
    )
    for teacher in settings["teachers"]:
        teacher["endpoint"] = "http://127.0.0.1:9"
    with pytest.raises(DataError, match=r"only none got a reward\. Most often: 12 × .*cannot connect"):
        _run(settings)


def test_commands_read_the_folder_of_a_stage_as_they_read_a_file(settings, tmp_path):
    from typer.testing import CliRunner

    from persyn_hf.cli import app

    settings["rows_per_shard"] = 5
    _run(settings, "route")
    stages, router = RunFolder(settings["output_dir"]).stages, f"{settings['output_dir']}/stages/router"
    out = tmp_path / "allocated.parquet"
    allocate = ["allocate", str(stages / "route.parquet"), "--router", router, "--output", str(out)]
    done = CliRunner().invoke(app, allocate)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["evaluate", router, str(stages / "score.parquet")])
    assert done.exit_code == 1 and "was trained on 6 of these 6 prompts" in str(done.exception)
    assert pq.read_table(out).num_rows == PROMPTS
    (stages / "route.parquet/part-00001.parquet").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"ROUTED: .*route.parquet cannot be read: .*[Pp]arquet"):
        again = ["allocate", str(stages / "route.parquet"), "--router", router, "--output", str(out)]
        CliRunner().invoke(app, again, catch_exceptions=False)


def test_a_finished_run_says_nothing(settings, caplog):
    _run(settings)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        assert all(_run(settings).values())
    assert caplog.messages == []
