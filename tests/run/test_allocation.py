"""The stage between routing and generation, in a run of real stages on tiny models."""

import json

import pytest
from datasets import Dataset

from persyn_hf import RunConfig, run
from persyn_hf.demo.prompts import demo_prompts
from persyn_hf.errors import AllocationError, ConfigError
from tests.run.tables import stage_table


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_lm, models):
    folder = tmp_path_factory.mktemp("allocation")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in demo_prompts(24)))
    shared = {"model": str(tiny_lm), "backend": "local", "dtype": "float32"}
    return {
        "output_dir": str(folder / "run"),
        "prompts": {"source": str(prompts), "answer_column": "answer"},
        "probe": {"size": 10, "method": "cover"},
        "teachers": [
            {"name": "cold", **shared, "sampling": {"temperature": 0.0, "max_tokens": 4}, "family": "A",
             "price_per_million_completion_tokens": 1e6},
            {"name": "warm", **shared, "sampling": {"temperature": 0.7, "max_tokens": 4}, "family": "B",
             "price_per_million_completion_tokens": 5e5},
            {"name": "told", **shared, "system_prompt": "Be.", "sampling": {"max_tokens": 4}},
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "persyn_hf.demo.prompts:share_met"},
        "router": {"backbone": str(models / "all-MiniLM-L6-v2"), "folds": 3},
        "publish": {"keep_truncated": True},
    }  # fmt: skip


def _run(settings, allocation, until):
    return run(RunConfig.from_dict({**settings, "allocation": allocation}), progress=False, until=until)


def _table(settings, name):
    return stage_table(settings["output_dir"], name)


@pytest.mark.filterwarnings("ignore")
def test_several_answers_and_the_best_is_published(settings):
    result = _run(settings, {"top_k": 2, "max_share": {"cold": 0.5}}, "publish")
    routed, answers, best = (_table(settings, name) for name in ("allocate", "generate", "select"))
    assert len(routed) == 24 and all(len(set(own)) == 2 for own in routed["routes"])
    assert sum("cold" in own for own in routed["routes"]) <= 12
    assert len(answers) == 48 and len(best) == 24
    scored = _table(settings, "score-answers").to_list()
    for row in best:
        own = [other["reward"] for other in scored if other["prompt_id"] == row["prompt_id"]]
        assert len(own) == 2 and row["reward"] == max(own)
    assert sum(line.allocated for line in result.report.teachers) == 48
    summary = json.loads((result.folder / "allocation.json").read_text())
    assert sum(summary["counts"].values()) == 48 and summary["bound"] >= summary["total"]
    assert all(stage.reused for stage in _run(settings, {"top_k": 2, "max_share": {"cold": 0.5}}, "publish").stages)


@pytest.mark.filterwarnings("ignore")
def test_money_time_and_baselines(settings):
    _run(settings, {"budget": 24.0, "expected_tokens": 4.0}, "route")
    counts = json.loads(_summary(settings).read_text())
    assert counts["cost"] <= 24.0 and 4 * counts["counts"]["cold"] + 2 * counts["counts"]["warm"] == counts["cost"]
    _run(settings, {"makespan": "shortest", "tokens_per_second": {"cold": 30.0, "warm": 20.0, "told": 10.0}}, "route")
    assert json.loads(_summary(settings).read_text())["counts"] == {"cold": 12, "warm": 8, "told": 4}
    _run(settings, {"policy": "family-strong", "student_family": "B"}, "route")
    assert set(_table(settings, "allocate")["route"]) == {"warm"}
    with pytest.raises(AllocationError, match="`budget` of 1 USD is"):
        _run(settings, {"budget": 1.0, "max_share": 0.5}, "route")


def _summary(settings):
    from pathlib import Path

    return Path(settings["output_dir"]) / "allocation.json"


WRONG = [
    ({"max_share": {"nobody": 0.5}}, "names nobody, but the teachers are"),
    ({"max_share": 1.5}, "allocation.max_share`: a share must be between 0 and 1, got 1.5"),
    ({"max_share": {"cold": "half"}}, "allocation.max_share`: must be a non-negative number"),
    ({"policy": "family-strong"}, "`policy: family-strong` needs `student_family`"),
    ({"top_k": 4}, "`allocation.top_k` is 4, but there are 3 teachers"),
]


@pytest.mark.parametrize(("allocation", "message"), WRONG)
def test_wrong_settings_are_named(settings, allocation, message):
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_dict({**settings, "allocation": allocation})
    assert message in str(raised.value)


def test_a_baseline_needs_a_probe(settings):
    with pytest.raises(ConfigError, match="needs a scored probe"):
        RunConfig.from_dict({**settings, "router": {"pretrained": "x/y"}, "allocation": {"policy": "car"}})


def test_the_command(tmp_path):
    from typer.testing import CliRunner

    from persyn_hf.cli import app

    def sets(*given):
        return [part for one in given for part in ("--set", one)]

    scores = [[2.0, 0.0], [1.0, 0.5], [0.3, 0.0]]
    Dataset.from_dict({"prompt": ["x", "y", "z"], "route_scores": scores}).to_parquet(tmp_path / "routed.parquet")
    place = str(tmp_path / "o.parquet")
    arguments = ["allocate", str(tmp_path / "routed.parquet"), "--teachers", "a,b", "--output", place]
    done = CliRunner().invoke(app, [*arguments, *sets("allocation.max_share.a=0.4", "cost.a=0.5", "cost.b=0.1")])
    assert done.exit_code == 0, done.output
    assert "cost 0.7000 USD" in done.output and "3 prompts" in done.output
    assert Dataset.from_parquet(place)["route"][:] == ["a", "b", "b"]
    with pytest.raises(AllocationError, match="1 too few"):
        CliRunner().invoke(app, [*arguments, *sets("allocation.max_share=0.34")], catch_exceptions=False)
