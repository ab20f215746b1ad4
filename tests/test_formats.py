"""What version 0.1 wrote is still read: a ledger, a run folder, a router and a published dataset.

The files under `fixtures/0.1` were made once, by `make.py` there.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, load_dataset
from starlette.responses import JSONResponse
from typer.testing import CliRunner

from persyn_hf import RunConfig, generate_parallel, load_personalized, persyn_generate
from persyn_hf.cli import app
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.models.identity import folder_digest
from persyn_hf.publishing.load import read_provenance
from persyn_hf.routing.router import PersynRouter
from persyn_hf.run.pipeline import run
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

FIXTURES = Path(__file__).parent / "fixtures" / "0.1"
LEDGER = FIXTURES / "ledger"
ASKED = json.loads((LEDGER / "asked.json").read_text(encoding="utf-8"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A copy of the files, with the paths in them as they were: relative to the folder."""
    shutil.copytree(FIXTURES, tmp_path / "0.1")
    monkeypatch.chdir(tmp_path / "0.1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "0.1"


@pytest.fixture
def silent(monkeypatch):
    """The teachers' server, which no request may reach, and no model in this process either."""

    def loaded(*_, **__):
        raise AssertionError("a local teacher was loaded")

    monkeypatch.setattr("persyn_hf.generation.local.LocalBatcher", loaded)
    with serve(Double(behave=lambda *_: JSONResponse({"error": "not again"}, 500))) as server:
        yield server
    assert server.bodies == []


def at(server, teachers):
    """The same teachers, behind another address."""
    return [teacher | ({"endpoint": server.url} if "endpoint" in teacher else {}) for teacher in teachers]


def test_the_models_are_the_ones_that_the_files_speak_of():
    assert folder_digest(FIXTURES / "student") == "folder-7bdd9f120312e4e7d6667621f1fc7801"


#: Columns that the table had not then, as they are of old answers.
ADDED = {"leak": None, "cached_tokens": None, "reasoning_tokens": None}


@pytest.mark.parametrize("asked", ASKED, ids=["strings", "conversations"])
def test_an_old_ledger_answers_everything(here, silent, asked):
    teachers = at(silent, asked["teachers"])
    prompts = Dataset.from_list(asked["prompts"])
    made = generate_parallel(prompts, teachers, ledger="ledger/ledger.sqlite", seed=asked["seed"], progress=False)
    rows = [row | ADDED for row in asked["rows"]]
    assert made.to_list() == rows
    assert [name for name in made[0] if name not in ADDED] == list(asked["rows"][0])
    first = persyn_generate(
        asked["prompts"][0], teacher=teachers[0], ledger="ledger/ledger.sqlite", seed=asked["seed"]
    )
    assert first == {key: rows[0][key] for key in first}


def test_an_old_ledger_is_the_size_that_it_was(here, silent):
    with Ledger("ledger/ledger.sqlite") as ledger:
        rows = list(ledger.rows())
    assert len(rows) == 54
    assert sum(row["finish_reason"] == "length" for row in rows) == 13
    assert sum(row["reasoning"] is not None for row in rows) == 15
    stored = {(row["prompt_id"], row["completion"]) for asked in ASKED for row in asked["rows"]}
    assert {(row["prompt_id"], row["text"]) for row in rows} == stored


def test_the_ledger_command_reads_an_old_ledger(here):
    shown = CliRunner().invoke(app, ["ledger", "show", "ledger/ledger.sqlite"])
    assert shown.exit_code == 0, shown.output
    assert "54 answers" in shown.output
    assert re.search(r"org/adder +v1 +15 +1 ", shown.output) and re.search(r"org/echo +12 +0 ", shown.output)
    exported = CliRunner().invoke(app, ["ledger", "export", "ledger/ledger.sqlite", "answers.jsonl"])
    assert exported.exit_code == 0, exported.output
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["key"] for line in lines}) == 54
    assert all(line["reasoning"].endswith("überlegen…") for line in lines if line["model"] == "org/adder")


@pytest.mark.filterwarnings("ignore")
def test_an_old_router_gives_its_scores(here):
    stored = json.loads(Path("router/routes.json").read_text(encoding="utf-8"))
    router = PersynRouter.from_pretrained("router/checkpoint")
    assert router.teachers == stored["teachers"]
    assert router.metadata["objective"] == "bradley-terry" and router.metadata["student"] == "student"
    routed = Dataset.from_list([{"prompt": row["prompt"]} for row in stored["rows"]]).map(router, batched=True)
    assert routed["route"][:] == [row["route"] for row in stored["rows"]]
    assert set(routed["route"]) == {"adder", "speller"}
    for new, old in zip(routed["route_scores"], stored["rows"], strict=True):
        assert new == pytest.approx(old["route_scores"], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("folder", ["run/stages/router", "run/router"])
def test_the_router_of_an_old_run_gives_its_scores(here, folder):
    router = PersynRouter.from_pretrained(folder)
    stored = Dataset.from_parquet("run/stages/route.parquet", cache_dir="cache")
    routed = stored.select_columns("prompt").map(router, batched=True)
    assert routed["route"][:] == stored["route"][:]
    for new, old in zip(routed["route_scores"], stored["route_scores"], strict=True):
        assert new == pytest.approx(old, abs=1e-4)


def holds(new, old):
    """Whether a newer record says all that the older one said."""
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and holds(new[key], old[key]) for key in old)
    if isinstance(old, list | tuple):
        return len(new) == len(old) and all(map(holds, new, old))
    return new == old


@pytest.mark.filterwarnings("ignore")
def test_an_old_published_dataset_is_read(here):
    expected = json.loads(Path("published/expected.json").read_text(encoding="utf-8"))
    loaded = load_personalized("published", cache_dir="cache")
    assert {name: data.to_list() for name, data in loaded.dataset.items()} == expected["rows"]
    assert holds(loaded.provenance.to_dict(), expected["provenance"])
    assert loaded.provenance.rows == 57 and loaded.provenance.saved == 1.5
    assert loaded.router.metadata == loaded.provenance.router
    assert read_provenance("published") == {"tiny": loaded.provenance}
    plain = load_dataset("published/dataset", "tiny", cache_dir="plain")
    assert {name: data.to_list() for name, data in plain.items()} == expected["rows"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kept", ["stages", "ledger alone"])
def test_an_old_run_goes_on_without_asking_again(here, silent, kept):
    if kept == "ledger alone":
        shutil.rmtree("run/stages")
    before = load_dataset("run/dataset", split="train", cache_dir="cache").to_list()
    settings = yaml.safe_load(Path("run/config.yaml").read_text(encoding="utf-8"))
    for teacher in settings["teachers"]:
        teacher["endpoint"] = teacher["endpoint"] and silent.url
    Path("again.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    result = run(RunConfig.from_yaml("again.yaml"), progress=False)
    assert result.missing == 0 and result.published is None
    assert (result.report.generations, result.report.generations_all) == (120, 180)
    old_report = json.loads((FIXTURES / "run/report.json").read_text(encoding="utf-8"))
    for new, old in zip(result.report.to_dict()["teachers"], old_report["teachers"], strict=True):
        assert {key: new[key] for key in ("name", "allocated", "answered", "failed", "truncated")} == {
            key: old[key] for key in ("name", "allocated", "answered", "failed", "truncated")
        }
        assert [new[key] for key in ("quality", "learnability", "reward")] == pytest.approx(
            [old[key] for key in ("quality", "learnability", "reward")], abs=1e-4
        )
    with Ledger("run/ledger.sqlite") as ledger:
        assert len(ledger) == 120
    after = load_personalized("run", cache_dir="cache-again").dataset.to_list()
    scores = [(new.pop("route_scores"), old.pop("route_scores")) for new, old in zip(after, before, strict=True)]
    references = [row.pop("answer") for row in after]  # the prompts' other columns are in the set now
    assert None not in references
    assert after == before and len(after) == 57
    assert all(new == pytest.approx(old, abs=1e-3) for new, old in scores)
