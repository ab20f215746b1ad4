"""What `--set` and the curated flags reach, command by command; the work itself is not done."""

import json
from importlib import import_module

import pytest
import yaml
from datasets import Dataset
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.config.reference import json_schema, reference_page
from persyn_hf.errors import ConfigError, PublishError

SETTINGS = {
    "output_dir": "runs/x",
    "prompts": {"source": "p.jsonl"},
    "teachers": [
        {"name": "a", "model": "m", "endpoint": "http://127.0.0.1:1"},
        {"name": "b.1", "model": "n", "endpoint": "http://127.0.0.1:2"},
    ],
    "student": {"model": "s", "revision": "of-the-file"},
    "quality": {"verifier": "exact"},
    "router": {"backbone": "r"},
    "training": {"max_steps": 3, "lora": {"r": 4}},
    "publish": {"license": "mit", "private": False},
    "seed": 5,
}


class _CalledError(Exception):
    """Ends a command where its work would begin."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return str(path)


@pytest.fixture
def called(monkeypatch):
    """Runs a command up to a function; gives back what that was called with."""

    def call(module, name, *arguments):
        taken = {}

        def instead(*given, **options):
            taken.update(options, given=given)
            raise _CalledError

        monkeypatch.setattr(import_module(module), name, instead)
        with pytest.raises(_CalledError):
            CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return taken

    return call


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_run(file, called):
    sets = ["--set", "teachers.b.1.timeout=7", "--set", "teachers.0.max_concurrency=8", "--set", "output_dir=one"]
    (config, *_) = called("persyn_hf.cli.run", "run_and_report", "run", file, *sets)["given"]
    assert [(teacher.timeout, teacher.max_concurrency) for teacher in config.teachers] == [(120, 8), (7, None)]
    assert config.output_dir == "one" and config.publish.license == "mit"
    (config, *_) = called("persyn_hf.cli.run", "run_and_report", "run", file, *sets, "--output-dir", "two")["given"]
    assert config.output_dir == "two"  # a flag counts more


def test_a_wrong_key_stops_before_the_run(file):
    with pytest.raises(ConfigError, match=r"--set: `reward\.alhpa`: unknown key; this section has alpha, "):
        invoke("run", file, "--set", "reward.alhpa=0.1")
    with pytest.raises(ConfigError, match=r"--set must be given as section\.key=value"):
        invoke("run", file, "--set", "reward.alpha")


def test_demo(called, monkeypatch, tmp_path):
    monkeypatch.setattr("persyn_hf.demo.settings.prepare_demo", lambda models: None)
    arguments = ["demo", "--models", tmp_path, "--probe-size", 20, "--limit", 40, "--set", "teachers.hot.batch_size=3"]
    (config, *_) = called("persyn_hf.cli.run", "run_and_report", *arguments)["given"]
    assert (config.probe.size, config.prompts.limit) == (20, 40)
    assert {teacher.name: teacher.batch_size for teacher in config.teachers}["hot"] == 3
    monkeypatch.setattr("persyn_hf.demo.settings.prepare_demo", lambda models: pytest.fail("it was laid out"))
    with pytest.raises(ConfigError, match="--set must be given"):
        invoke("demo", "--models", tmp_path, "--set", "nothing")


def test_plan_and_compare(file, called):
    (config, *_) = called("persyn_hf.planning.plan", "plan", "plan", file, "--set", "probe.size=40")["given"]
    assert config.probe.size == 40
    arguments = ["compare", file, "--set", "compare={students: [{name: s, model: s}], held_out: {source: h}}"]
    arguments += ["--set", "compare.students.s.family=Qwen2.5", "--set", "compare.seeds=[4]", "--output-dir", "out"]
    (config, *_) = called("persyn_hf.comparison.compare", "compare", *arguments)["given"]
    assert config.compare.seeds == (4,) and config.compare.students[0].family == "Qwen2.5"
    assert config.output_dir == "out"


def test_doctor(file, called, monkeypatch):
    monkeypatch.setattr("persyn_hf.doctor.check_installation", list)
    moved = ["--set", "teachers.b.1.endpoint=http://127.0.0.1:3"]
    (config,) = called("persyn_hf.doctor", "check_configuration", "doctor", file, *moved)["given"]
    assert [teacher.endpoints for teacher in config.teachers] == [("http://127.0.0.1:1",), ("http://127.0.0.1:3",)]
    with pytest.raises(ConfigError, match="--set needs the run's YAML file"):
        invoke("doctor", "--set", "seed=1")


def test_push(file, called):
    arguments = ["push", file, "--dataset-repo-id", "me/d", "--set", "publish.tags=[v1.0]", "--dry-run"]
    (config,) = called("persyn_hf.run.pipeline", "run", *arguments, "--set", "publish.private=true")["given"]
    publish = config.publish
    assert (publish.dataset_repo_id, publish.license, publish.tags) == ("me/d", "mit", ("v1.0",))
    assert publish.dry_run and publish.private and config.output_dir == "runs/x"
    (config,) = called("persyn_hf.run.pipeline", "run", *arguments, "--set", "publish.private=true", "--public")[
        "given"
    ]
    assert not config.publish.private
    with pytest.raises(PublishError, match="Name the dataset repository"):
        invoke("push", file)
    with pytest.raises(ConfigError, match=r"run\.yaml with --set: `publish`: `router_repo_id` needs"):
        invoke("push", file, "--router-repo-id", "me/r")


TRAIN = ("persyn_hf.students.train", "train_student", "train-student", "data", "org/student", "--output-dir", "out")


def test_train_student_without_a_file(called):
    taken = called(*TRAIN)
    assert taken["given"][1] == "org/student" and taken["given"][3].model_fields_set == set()
    assert (taken["seed"], taken["revision"], taken["private"], taken["resume"]) == (0, None, True, True)
    sets = ["training.num_train_epochs=3", "training.lora.r=2", "seed=9", "student.revision=v2", "publish.private=no"]
    taken = called(*TRAIN, *[part for one in sets for part in ("--set", one)], "--push-to-hub", "me/s", "--no-resume")
    recipe = taken["given"][3]
    assert (recipe.num_train_epochs, recipe.lora.r, recipe.lora.alpha) == (3, 2, 32)
    assert (taken["seed"], taken["revision"], taken["private"], taken["resume"]) == (9, "v2", False, False)
    assert taken["push_to_hub"] == "me/s"


def test_train_student_with_a_file_takes_another_student(file, called):
    taken = called(*TRAIN, "--config", file, "--set", "training.lora.alpha=7")
    recipe = taken["given"][3]
    assert (recipe.max_steps, recipe.lora.r, recipe.lora.alpha) == (3, 4, 7)
    assert (taken["seed"], taken["private"]) == (5, False)
    assert taken["revision"] is None  # the file's revision is the file's student's


@pytest.mark.parametrize("key", ["reward.alpha=0", "student.model=x", "publish.license=mit", "trainng.packing=true"])
def test_train_student_refuses_what_it_does_not_read(file, key):
    for more in ([], ["--config", file]):
        with pytest.raises(ConfigError, match=r"train-student reads only training\.…, seed"):
            invoke(*TRAIN[2:], *more, "--set", key)


ALLOCATE = ("persyn_hf.routing.allocation.allocate", "allocate", "allocate")


def test_allocate(called, tmp_path):
    Dataset.from_dict({"prompt": ["x"], "route_scores": [[1.0, 0.0]]}).to_parquet(tmp_path / "r.parquet")
    arguments = [tmp_path / "r.parquet", "--output", tmp_path / "o.parquet", "--teachers", "a,b.1"]
    taken = called(*ALLOCATE, *arguments)
    assert (taken["policy"], taken["scale"], taken["seed"], taken["cost"]) == ("persyn", "bradley-terry", 0, None)
    sets = [
        "allocation.max_share.b.1=0.5",
        "allocation.budget=3",
        "cost.a=0.5",
        "cost.b.1=0.1",
        "throughput={a: 1, b.1: 2}",
        "families.a=Qwen2.5",
        "allocation.scale=reward",
        "allocation.makespan=shortest",
        "seed=4",
        "allocation.top_k=2",
    ]
    taken = called(*ALLOCATE, *arguments, *[part for one in sets for part in ("--set", one)], "--policy", "oracle")
    assert taken["given"][1] == ["a", "b.1"]
    assert taken["cost"] == {"a": 0.5, "b.1": 0.1} and taken["throughput"] == {"a": 1.0, "b.1": 2.0}
    assert taken["max_share"] == {"b.1": 0.5} and taken["budget"] == 3 and taken["families"] == {"a": "Qwen2.5"}
    assert (taken["policy"], taken["scale"], taken["makespan"]) == ("oracle", "reward", "shortest")
    assert (taken["seed"], taken["top_k"]) == (4, 2)
    with pytest.raises(ConfigError, match=r"`allocation\.expected_tokens` applies only to a run"):
        invoke("allocate", *arguments, "--set", "allocation.expected_tokens=3")
    with pytest.raises(ConfigError, match=r"--set: `allocation\.policy`: Input should be 'strong'|'persyn'"):
        invoke("allocate", *arguments, "--policy", "best")


def test_schema(tmp_path):
    printed = invoke("schema")
    assert json.loads(printed.stdout) == json_schema()
    Draft202012Validator.check_schema(json.loads(printed.stdout))
    assert invoke("schema", "--markdown").stdout == reference_page()
    place = tmp_path / "new" / "run.schema.json"
    assert str(place) in invoke("schema", "--output", place).stdout
    assert place.read_text("utf-8") == printed.stdout
