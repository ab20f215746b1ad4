"""The main job on a tiny model: every stage, resumption, and what bad teachers and bad prompts do to it."""

import json
import subprocess
import sys

import pytest
import yaml
from datasets import Dataset, load_dataset
from typer.testing import CliRunner

from persyn_hf import RunConfig, run
from persyn_hf.cli import app
from persyn_hf.demo.prompts import demo_prompts
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.generation.lane import RetryPolicy
from tests.run.tables import stage_table


@pytest.fixture
def settings(tmp_path, tiny_lm, models):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in demo_prompts(40)))
    shared = {"model": str(tiny_lm), "backend": "local", "dtype": "float32"}
    return {
        "output_dir": str(tmp_path / "run"),
        "seed": 1,
        "prompts": {"source": str(prompts), "answer_column": "answer"},
        "probe": {"size": 20},
        "teachers": [
            {"name": "cold", **shared, "sampling": {"temperature": 0.0, "max_tokens": 8}},
            {"name": "warm", **shared, "sampling": {"temperature": 0.7, "max_tokens": 12}},
            {"name": "told", **shared, "system_prompt": "Be.", "sampling": {"temperature": 1.0, "max_tokens": 16}},
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "persyn_hf.demo.prompts:share_met"},
        "router": {"backbone": str(models / "all-MiniLM-L6-v2"), "folds": 3},
        "publish": {"keep_truncated": True},
    }


def _run(settings, **options):
    return run(RunConfig.from_dict(settings), progress=False, **options)


def _tables(settings):
    folder = settings["output_dir"]
    names = ("probe", "score", "route", "generate")
    return {name: stage_table(folder, name).to_list() for name in names}


@pytest.fixture
def impatient(monkeypatch):
    """Who does not answer is down after a moment."""
    policy = RetryPolicy(base_delay=0.01, down_after_unseen=0.3)
    monkeypatch.setattr("persyn_hf.generation.generate.RetryPolicy", lambda: policy)


@pytest.mark.filterwarnings("ignore")
def test_all_stages_then_nothing_again(settings, tmp_path, monkeypatch):
    result = _run(settings)
    tables = _tables(settings)
    assert [stage.name for stage in result.stages] == ["probe", "score", "router", "route", "generate"]
    assert [len(tables[name]) for name in ("probe", "score", "route", "generate")] == [60, 60, 40, 40]
    assert all(row["error"] is None and row["completion"] is not None for row in tables["generate"])
    assert all(row["teacher"] == row["route"] for row in tables["generate"])
    for row in tables["score"]:
        assert 0 <= row["quality"] <= 1 and row["learnability"] < 0 and 0 <= row["reward"] <= 1
    probed = {(row["prompt_id"], row["teacher"]): row["completion"] for row in tables["probe"]}
    again = [row for row in tables["generate"] if (row["prompt_id"], row["teacher"]) in probed]
    assert len(again) == 20 and all(probed[row["prompt_id"], row["teacher"]] == row["completion"] for row in again)
    assert result.report.generations == 60 + 20 and result.report.generations_all == 120
    data = load_dataset(str(tmp_path / "run/dataset"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {"prompt", "completion", "prompt_id", "teacher", "route_scores"} <= set(data.column_names)
    assert result.missing == 0

    import persyn_hf.generation.generate as generation

    def forbidden(*_, **__):
        raise AssertionError("a finished stage was made again")

    monkeypatch.setattr(generation, "generate_parallel", forbidden)
    monkeypatch.setattr(generation, "generate_routed", forbidden)
    repeated = _run(settings)
    assert all(stage.reused for stage in repeated.stages)
    assert repeated.report == result.report


@pytest.mark.filterwarnings("ignore")
def test_until_and_a_changed_alpha(settings):
    first = _run(settings, until="score")
    assert [stage.name for stage in first.stages] == ["probe", "score"]
    before = _tables_of(settings, "score")
    settings["reward"] = {"alpha": 1.0}
    second = _run(settings, until="score")
    assert [stage.reused for stage in second.stages] == [True, False]
    after = _tables_of(settings, "score")
    assert [row["completion"] for row in before] == [row["completion"] for row in after]
    assert [row["reward"] for row in before] != [row["reward"] for row in after]
    assert [row["learnability"] for row in before] == pytest.approx([row["learnability"] for row in after])


@pytest.mark.filterwarnings("ignore")
def test_system_prompts_and_several_sources_by_the_configuration(settings):
    _run(settings, until="score")
    before = _tables_of(settings, "score")
    settings["student"] |= {"teacher_system_prompts": True, "metrics": ["rsr"]}
    share = {"verifier": "persyn_hf.demo.prompts:share_met", "range": [0, 1]}
    settings["quality"] = {"sources": [share, {"verifier": "exact", "weight": 3}]}
    assert [stage.reused for stage in _run(settings, until="score").stages] == [True, False]
    after = _tables_of(settings, "score")
    moved = dict.fromkeys(("cold", "warm", "told"), 0.0)
    for old, new in zip(before, after, strict=True):
        moved[new["teacher"]] = max(moved[new["teacher"]], abs(new["learnability"] - old["learnability"]))
        assert new["rsr"] > 0
        assert new["quality"] == pytest.approx((new["quality_share_met"] + 3 * new["quality_exact"]) / 4)
    assert moved["told"] > 100 * max(moved["cold"], moved["warm"]), moved


def _tables_of(settings, name):
    return stage_table(settings["output_dir"], name).to_list()


@pytest.mark.filterwarnings("ignore")
def test_a_teacher_that_always_fails_is_counted_and_the_run_goes_on(settings, impatient):
    settings["teachers"].append(
        {"name": "dead", "model": "org/dead", "endpoint": "http://127.0.0.1:9/v1", "timeout": 5, "preflight": False}
    )
    result = _run(settings)
    line = result.report.teachers[-1]
    assert (line.name, line.answered, line.failed, line.allocated) == ("dead", 0, 20, 0)
    probe = [row for row in _tables_of(settings, "probe") if row["teacher"] == "dead"]
    assert len(probe) == 20 and all(row["error"] and row["completion"] is None for row in probe)
    assert result.missing == 0 and sum(line.allocated for line in result.report.teachers) == 40


@pytest.mark.filterwarnings("ignore")
def test_a_router_for_other_teachers_is_refused(settings, tmp_path):
    _run(settings, until="router")
    settings["router"] = {"pretrained": f"{settings['output_dir']}/stages/router"}
    settings["output_dir"] = str(tmp_path / "other")
    for teacher in settings["teachers"]:
        teacher["name"] = f"my-{teacher['name']}"
    with pytest.raises(RouterMismatchError, match=r"Add (cold|warm|told)"):
        _run(settings)


@pytest.mark.filterwarnings("ignore")
def test_a_pretrained_router_needs_no_probe(settings, tmp_path):
    _run(settings, until="router")
    settings["router"] = {"pretrained": f"{settings['output_dir']}/stages/router"}
    settings["output_dir"] = str(tmp_path / "other")
    settings.pop("student"), settings.pop("quality")
    result = _run(settings)
    assert [stage.name for stage in result.stages] == ["route", "generate"]
    assert result.report.generations == 40


def test_only_dead_teachers_is_an_error_that_says_where_to_look(settings, impatient):
    settings["teachers"] = [
        {"name": name, "model": f"org/{name}", "endpoint": "http://127.0.0.1:9/v1", "timeout": 5, "preflight": False}
        for name in ("a", "b")
    ]
    with pytest.raises(DataError, match="at least two teachers"):
        _run(settings)


@pytest.mark.filterwarnings("ignore")
def test_the_commands_run_and_route(settings, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    python = [sys.executable, "-c", "from persyn_hf.cli import main; main()"]
    done = subprocess.run([*python, "run", str(file), "--quiet"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "oracle" in done.stdout and "80 answers instead of 120" in done.stdout
    routes = tmp_path / "routes.parquet"
    router = f"{settings['output_dir']}/router"
    done = CliRunner().invoke(app, ["route", router, settings["prompts"]["source"], "--output", str(routes)])
    assert done.exit_code == 0, done.output
    assert [row["route"] for row in Dataset.from_parquet(str(routes)).to_list()] == [
        row["route"] for row in _tables_of(settings, "route")
    ]


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["route"], ["push"]])
def test_help_teaches(command):
    python = [sys.executable, "-c", "from persyn_hf.cli import main; main()"]
    done = subprocess.run([*python, *command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Usage:" in done.stdout
    assert "Traceback" not in done.stderr
