"""The command `doctor` on a configuration: what it finds, what it shows, and one real answer."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.doctor import installation
from tests.generation.servers import Teacher, serve


@pytest.fixture
def double():
    with serve(Teacher()) as running:
        yield running


@pytest.fixture
def file(tmp_path, tiny_lm, double, monkeypatch):
    monkeypatch.setattr(installation, "check_extras", list)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {n}.", "answer": str(n)}) + "\n" for n in range(6)))
    price = {"price_per_million_completion_tokens": 1000.0}
    teacher = {"endpoint": double.url, "sampling": {"max_tokens": 10}, **price}
    settings = {
        "output_dir": str(tmp_path / "run"),
        "prompts": {"source": str(prompts), "answer_column": "answer"},
        "probe": {"size": 3},
        "teachers": [{"name": "a", "model": "a", **teacher},
                     {"name": "b", "model": "b", "system_prompt": "Be brief.", **teacher}],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "exact"},
        "router": {"backbone": str(tiny_lm)},
    }  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_first_prompt_is_shown_as_every_teacher_gets_it(file, double):
    done = CliRunner().invoke(app, ["doctor", str(file)])
    assert done.exit_code == 0, done.output
    shown = done.output[done.output.index("First request to every teacher:") :]
    (prompt,) = {line for line in shown.splitlines() if line.startswith("  user: Say ")}
    lines = shown.splitlines()
    assert lines[1].startswith("a (") and '"max_tokens": 10' in lines[1] and "at most 0.01 USD" in lines[1]
    assert lines[2:5] == [prompt, lines[3], "  system: Be brief."] and lines[5] == prompt
    assert double.bodies == []


def test_one_real_answer_of_every_teacher_is_asked_for_and_used_by_the_run(file, double):
    done = CliRunner().invoke(app, ["doctor", str(file), "--try"])
    assert done.exit_code == 0, done.output
    assert "Requesting one answer from each of 2 teachers (at most 0.02 USD)" in done.output
    assert "Every teacher answered, and every answer was scored." in done.output
    asked = [body["messages"][-1]["content"] for body in double.bodies]
    assert len(asked) == 2 and len(set(asked)) == 1
    assert CliRunner().invoke(app, ["run", str(file), "--until", "probe", "--quiet"]).exit_code == 0
    assert len(double.bodies) == 6


def test_what_would_stop_a_run_is_a_failure(file, double):
    done = CliRunner().invoke(app, ["doctor", str(file), "--set", "quality.verifier=maths", "--set", "probe.size=9"])
    assert done.exit_code == 1
    assert "`math`, `exact`" in done.output.replace("\n", " ")
    assert "2 of " in done.output and "checks failed." in done.output


def test_try_needs_a_file():
    done = CliRunner().invoke(app, ["doctor", "--try"])
    assert done.exit_code == 1 and "--try needs the run's YAML file" in str(done.exception)
