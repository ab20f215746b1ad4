"""The recipes say what the paper says, and the small world runs from nothing to its table."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.small_world import tasks
from examples.small_world.models import lessons
from examples.small_world.run import HERE, settings
from examples.small_world.world import read_world, settle
from persyn_hf import RunConfig
from persyn_hf.config import POLICIES

ROOT = Path(__file__).parent.parent.parent
PAPER = ROOT / "examples/paper"


@pytest.mark.parametrize(
    ("name", "prompts", "teachers", "quality"), [("instruction", 50_000, 19, "Skywork"), ("maths", 10_000, 15, "math")]
)
def test_recipes_are_the_papers_settings(name, prompts, teachers, quality):
    config = RunConfig.from_yaml(PAPER / f"{name}.yaml")
    assert (config.prompts.limit, len(config.teachers), config.probe.size) == (prompts, teachers, 2500)
    assert config.reward.alpha == 0.4 and config.router.backbone == "Qwen/Qwen2.5-1.5B"
    assert config.router.objective == "bradley-terry"
    assert quality in (config.quality.verifier or config.quality.reward_model)
    assert [student.name for student in config.compare.students] == [
        "Qwen2.5-0.5B", "Qwen2.5-1.5B", "Gemma-2-2B", "Qwen2.5-3B", "Llama-3.2-3B"
    ]  # fmt: skip
    families = {teacher.family for teacher in config.teachers}
    assert all(student.family in families for student in config.compare.students)
    assert {"strong", "mix", "car", "family-strong", "persyn"} == set(config.compare.policies)


def test_the_small_world_is_what_it_says():
    config = RunConfig.from_dict(settings(Path("runs/small_world")))
    world = read_world(HERE / "world.yaml")
    assert set(config.compare.policies) == set(POLICIES) and len(config.compare.seeds) >= 5
    assert len(config.teachers) >= 6 and len(config.compare.students) >= 2
    named = {Path(one.model).name for one in (*config.teachers, *config.compare.students)}
    assert named == set(world.models)
    assert {style for model in world.models.values() for style in model.styles} == set(tasks.STYLES)


def test_the_small_world_has_as_many_prompts_as_it_says(tmp_path):
    world = read_world(HERE / "world.yaml").model_copy(update={"models": {}})
    settle(world, tmp_path)
    prompts = [
        json.loads(line)["prompt"] for name in ("train", "held-out") for line in (tmp_path / f"{name}.jsonl").open()
    ]
    assert len(set(prompts)) == len(prompts) == world.train_prompts + world.held_out_prompts
    with pytest.raises(ValueError, match="no 9000 different prompts"):
        settle(world.model_copy(update={"train_prompts": 8700}), tmp_path)


def test_every_style_ends_in_the_right_answer_and_models_can_spell_it():
    from examples.small_world.models import CHARACTERS

    draw = random.Random(0)
    for task in tasks.TASKS:
        for easy in (False, True):
            prompt = tasks.ask(task, draw, easy)
            answer = tasks.solve(prompt, "terse")
            lengths = []
            for style in tasks.STYLES:
                said = tasks.solve(prompt, style)
                assert tasks.right(prompt, said, answer) == 1.0
                assert tasks.right(prompt, said[:-1], answer) == 0.0
                assert set(prompt + said) <= set(CHARACTERS)
                lengths.append(len(said))
            assert lengths == sorted(lengths)
    assert tasks.solve("add 95 7", "scratch") == "5+7+0:12 9+0+1:10 =102"
    assert tasks.solve("parity 0110", "terse") == "even"


def test_lessons_follow_their_shares():
    made = lessons(2000, {"add": 3, "sort": 1}, {"terse": 1, "long": 1}, easy=0.5, seed=1)
    adds = [prompt for prompt in made["prompt"] if prompt.startswith("add")]
    assert len(adds) / 2000 == pytest.approx(0.75, abs=0.04)
    assert sum(len(prompt.split()[1]) < 3 for prompt in adds) / len(adds) == pytest.approx(0.5, abs=0.05)
    assert sum(answer.startswith("first") for answer in made["completion"]) / 2000 == pytest.approx(0.5, abs=0.04)


@pytest.mark.slow
def test_the_small_world_runs_is_stopped_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "examples.small_world.run", "--quick", "--output-dir", str(tmp_path)]
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            while not list(tmp_path.glob("cells/*/*/evaluation-*.json")):
                assert running.poll() is None, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.1)
        finally:
            running.kill()
            running.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/*/evaluation-*.json")}
    models = {path: path.stat().st_mtime_ns for path in tmp_path.glob("models/*/model.safetensors")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.stat().st_mtime_ns == changed for path, changed in (kept | models).items())
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    # Two students, every policy, two seeds, greedy, sampled and likelihood, twelve held-out prompts.
    assert len(rows) == 2 * len(POLICIES) * 2 * 3 * 12
    facts = json.loads((tmp_path / "comparison.json").read_text())["facts"]
    for student in ("one", "two"):
        rewards = {fact["policy"]: fact["reward"] for fact in facts if fact["student"] == student}
        assert max(rewards.values()) == rewards["oracle"]
    swept = [*command[:2], "examples.small_world.sweep", *command[3:]]
    done = subprocess.run(swept, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "sweeps.md").read_text().count("\n## ") == 4


def test_smollm2_is_judged_on_other_instructions_than_it_learns(tmp_path):
    from examples.smollm2 import compare as example
    from persyn_hf.prompts.reading import load_prompts

    example.write_prompts(tmp_path)
    config = RunConfig.from_dict(example.settings(ROOT / ".models", tmp_path))
    train, held_out = load_prompts(config.prompts), load_prompts(config.compare.held_out)
    assert (len(train), len(held_out)) == (example.TRAIN, example.HELD_OUT)
    assert not set(train["prompt_id"]) & set(held_out["prompt_id"])
    assert config.probe.size <= example.TRAIN
