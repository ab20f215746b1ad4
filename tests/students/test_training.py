"""Fine-tuning: what is learnt, that it repeats and resumes, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.config import Training
from persyn_hf.errors import ConfigError, DataError, StudentError
from persyn_hf.models.rendering import render_answers
from persyn_hf.students.fitting import _trainer
from persyn_hf.students.labels import check_batch, learnt_spans
from persyn_hf.students.train import end_of_turn, train_student, training_rows
from tests.hub_server import Hub
from tests.publishing.client import client_environment
from tests.students.models import KINDS, byte_tokenizer, save_kind

QUICK = {"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def kinds(tmp_path_factory):
    return {kind: save_kind(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="session")
def answers():
    """Twelve answers, the last of which was cut."""
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": f"Name number {row}."}] for row in range(12)],
            "completion": [[{"role": "assistant", "content": f"It is {row * 7}.\nDone"}] for row in range(12)],
            "finish_reason": ["stop"] * 11 + ["length"],
        }
    )


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal(first, second):
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_on_the_tokens_that_scoring_scores(kinds, answers, tmp_path, kind, packing):
    tokenizer = AutoTokenizer.from_pretrained(kinds[kind])
    rows = training_rows(answers, tokenizer, 512)
    training = Training(**QUICK, packing=packing, max_length=512)
    trainer = _trainer(rows, tokenizer, kinds[kind], "", tmp_path, training, 0, False)
    spans = [span for batch in trainer.get_train_dataloader() for span in learnt_spans(batch)]
    texts = [message[0]["content"] for message in answers["completion"]]
    expected = [
        one.completion_ids for one in render_answers(tokenizer, answers["prompt"], texts, answers["finish_reason"])
    ]
    assert sorted(spans) == sorted(expected)
    ended = [tokenizer.decode(span) for span in expected]
    assert ended[0] == f"It is 0.\nDone{KINDS[kind][-1]}"
    assert ended[-1] == "It is 77.\nDone"


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_generation_stops_at_the_end_of_turn_that_was_learnt(kinds, answers, tmp_path, kind):
    tokenizer = AutoTokenizer.from_pretrained(kinds[kind])
    train_student(answers, kinds[kind], tmp_path, QUICK, progress=False)
    ends = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    turn = tokenizer.convert_tokens_to_ids(KINDS[kind][-1])
    assert end_of_turn(tokenizer) == {turn}
    assert ends == [tokenizer.eos_token_id, turn]


@pytest.mark.slow
def test_an_overfitted_student_says_its_answer_and_stops(kinds, tmp_path):
    data = Dataset.from_dict({"prompt": ["Who?", "Where?"], "completion": ["me", "here"]})
    recipe = QUICK | {"max_steps": 150, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    trained = train_student(data, kinds["qwen"], tmp_path, recipe, progress=False)
    assert trained.report.counts.without_end == 0 and trained.report.steps == 150
    model, tokenizer = (cls.from_pretrained(tmp_path) for cls in (AutoModelForCausalLM, AutoTokenizer))
    for prompt, said in (("Who?", "me<|im_end|>"), ("Where?", "here<|im_end|>")):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**ids, max_new_tokens=20, do_sample=False)
        assert tokenizer.decode(made[0, ids["input_ids"].shape[1] :]) == said


@pytest.mark.slow
def test_one_seed_gives_one_student_bit_for_bit(kinds, answers, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_student(answers, kinds["smollm"], tmp_path / name, QUICK, seed=seed, progress=False)
    assert_equal(tmp_path / "a", tmp_path / "b")
    one, other = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_resuming_equals_an_uninterrupted_training(kinds, answers, tmp_path, monkeypatch):
    recipe = QUICK | {"max_steps": 6, "save_steps": 2}
    whole = train_student(answers, kinds["qwen"], tmp_path / "whole", recipe, progress=False)

    from transformers import Trainer

    step, done = Trainer.training_step, []

    def stop_after_five(self, *arguments, **keywords):
        done.append(self.state.global_step)
        if len(done) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    monkeypatch.setattr(Trainer, "training_step", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        train_student(answers, kinds["qwen"], tmp_path / "cut", recipe, progress=False)
    assert not (tmp_path / "cut/training.json").exists()
    resumed = train_student(answers, kinds["qwen"], tmp_path / "cut", recipe, progress=False)
    # Four steps were saved: the interrupted fifth and the sixth are all that was left to do.
    assert done == [0, 1, 2, 3, 4, 4, 5]
    assert resumed.report.steps == 6
    assert resumed.report.seen_tokens == whole.report.seen_tokens
    assert_equal(tmp_path / "whole", tmp_path / "cut")
    assert not (tmp_path / "cut/checkpoints").exists()


DAMAGED_CHECKPOINTS = {
    "truncated weights": lambda folder: cut(folder / "model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated optimizer": lambda folder: cut(folder / "optimizer.pt"),
    "no scheduler": lambda folder: (folder / "scheduler.pt").unlink(),
    "no random state": lambda folder: (folder / "rng_state.pth").unlink(),
    "truncated random state": lambda folder: cut(folder / "rng_state.pth"),
    "truncated state": lambda folder: cut(folder / "trainer_state.json"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture(scope="module")
def interrupted(kinds, answers, tmp_path_factory):
    """A training of six steps that was stopped in the sixth, with checkpoints after two and four."""
    from transformers import Trainer

    folder, step = tmp_path_factory.mktemp("interrupted"), Trainer.training_step
    recipe = QUICK | {"max_steps": 6, "save_steps": 2}
    train_student(answers, kinds["qwen"], folder / "whole", recipe, progress=False)

    def stop_in_the_sixth(self, *arguments, **keywords):
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "training_step", stop_in_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            train_student(answers, kinds["qwen"], folder / "cut", recipe, progress=False)
    assert sorted(path.name for path in (folder / "cut/checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    return folder


@pytest.mark.parametrize("damage", DAMAGED_CHECKPOINTS)
def test_a_damaged_checkpoint_is_passed_over_for_a_whole_one(
    kinds, answers, interrupted, tmp_path, damage, monkeypatch, caplog
):
    from transformers import Trainer

    shutil.copytree(interrupted / "cut", tmp_path / "cut")
    DAMAGED_CHECKPOINTS[damage](tmp_path / "cut/checkpoints/checkpoint-4")
    step, done = Trainer.training_step, []
    monkeypatch.setattr(
        Trainer, "training_step", lambda self, *a, **k: done.append(self.state.global_step) or step(self, *a, **k)
    )
    recipe = QUICK | {"max_steps": 6, "save_steps": 2}
    train_student(answers, kinds["qwen"], tmp_path / "cut", recipe, progress=False)
    assert done == [2, 3, 4, 5]
    assert "checkpoint-4 is damaged or incomplete" in caplog.text
    assert_equal(interrupted / "whole", tmp_path / "cut")


def test_with_no_whole_checkpoint_training_begins_anew(kinds, answers, interrupted, tmp_path):
    shutil.copytree(interrupted / "cut", tmp_path / "cut")
    for folder in (tmp_path / "cut/checkpoints").glob("checkpoint-*"):
        cut(folder / "model.safetensors")
    recipe = QUICK | {"max_steps": 6, "save_steps": 2}
    assert train_student(answers, kinds["qwen"], tmp_path / "cut", recipe, progress=False).report.steps == 6
    assert_equal(interrupted / "whole", tmp_path / "cut")


def test_a_finished_training_is_not_repeated_and_not_mistaken(kinds, answers, tmp_path):
    first = train_student(answers, kinds["qwen"], tmp_path, QUICK, progress=False)
    changed = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = train_student(answers, kinds["qwen"], tmp_path, QUICK, progress=False)
    assert again.report == first.report
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(ConfigError, match="another training"):
        train_student(answers.select(range(5)), kinds["qwen"], tmp_path, QUICK, progress=False)
    fewer = train_student(answers.select(range(5)), kinds["qwen"], tmp_path, QUICK, resume=False, progress=False)
    assert fewer.report.counts.rows == 5


def test_adapters_change_only_the_layers_they_are_on(kinds, answers, tmp_path):
    recipe = QUICK | {"lora": {"r": 4, "target_modules": ["q_proj"]}, "gradient_checkpointing": True}
    train_student(answers, kinds["llama"], tmp_path, recipe, progress=False)
    before, after = weights(kinds["llama"]), weights(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_a_student_is_saved_in_the_dtype_it_came_in(kinds, answers, tmp_path):
    folder = str(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(kinds["qwen"], dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(kinds["qwen"]).save_pretrained(folder)
    for name, lora in (("all", None), ("adapters", {"r": 2})):
        train_student(answers, folder, tmp_path / name, QUICK | {"lora": lora}, progress=False)
        assert {value.dtype for value in weights(tmp_path / name).values()} == {torch.bfloat16}


def test_a_tracker_that_is_not_installed_is_named(kinds, answers, tmp_path):
    import importlib.util

    absent = next(name for name in ("trackio", "wandb", "tensorboard") if importlib.util.find_spec(name) is None)
    with pytest.raises(StudentError, match=absent):
        train_student(answers, kinds["qwen"], tmp_path, QUICK | {"report_to": [absent]}, progress=False)


def test_counts_of_cut_and_left_out_answers(kinds, tmp_path):
    long = "word " * 40
    data = Dataset.from_dict({"prompt": ["Short?", long, "Other?"], "completion": ["yes", "no", long]})
    trained = train_student(data, kinds["gemma"], tmp_path, QUICK | {"max_length": 80}, progress=False)
    counts = trained.report.counts
    assert (counts.rows, counts.left_out, counts.without_end) == (2, 1, 1)
    # "<bos><start_of_turn>user\nOther?<end_of_turn>\n<start_of_turn>model\n" is 2 + 11 + 2 + 1 + 6 = 22 tokens.
    assert counts.learnt_tokens == len("yes") + 1 + 80 - 22


def test_the_tokens_that_were_seen_are_counted(kinds, tmp_path):
    """Two steps of one row each of four see two of them; four epochs see each four times; a resume counts on."""
    said = ["yes", "no", "maybe", "never"]
    data = Dataset.from_dict({"prompt": [f"Number {index}?" for index in range(4)], "completion": said})
    recipe = QUICK | {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    one = {len(word) + 1 for word in said}  # a letter a token, and the end of turn
    part = train_student(data, kinds["gemma"], tmp_path / "part", recipe | {"max_steps": 2}, progress=False).report
    assert part.counts.learnt_tokens == sum(map(len, said)) + 4
    assert part.seen_tokens in {a + b for a in one for b in one if a != b}
    whole = recipe | {"max_steps": None, "num_train_epochs": 4}
    report = train_student(data, kinds["gemma"], tmp_path / "whole", whole, progress=False).report
    assert report.seen_tokens == 4 * report.counts.learnt_tokens
    assert json.loads((tmp_path / "whole/training.json").read_text())["seen_tokens"] == report.seen_tokens


def test_the_card_names_student_and_recipe(kinds, answers, tmp_path):
    train_student(answers, kinds["qwen"], tmp_path, QUICK, license="mit", progress=False)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card
    assert "persyn" in card and "library_name: transformers" in card
    assert "training_args.bin" not in {path.name for path in tmp_path.iterdir()}


def test_templates_that_hide_the_answer_are_refused(kinds, answers, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(kinds["qwen"], folder)
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% endif %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(StudentError, match=r"training.chat_template"):
        train_student(answers, str(folder), tmp_path / "out", QUICK, progress=False)
    repaired = tmp_path / "repaired.jinja"
    shutil.copy(Path(kinds["qwen"]) / "chat_template.jinja", repaired)
    trained = train_student(
        answers, str(folder), tmp_path / "out", QUICK | {"chat_template": str(repaired)}, progress=False
    )
    assert (trained.path / "chat_template.jinja").read_text() == repaired.read_text()


def test_a_batch_without_or_with_wrong_labels_is_refused():
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]})
    ids = torch.tensor([[1, 2, 3]])
    check_batch({"input_ids": ids, "labels": torch.tensor([[-100, 2, 3]])}, rows)
    with pytest.raises(StudentError, match="loss mask of the first batch is empty"):
        check_batch({"input_ids": ids, "labels": torch.full((1, 3), -100)}, rows)
    with pytest.raises(StudentError, match="not completions"):
        check_batch({"input_ids": ids, "labels": torch.tensor([[1, 2, 3]])}, rows)
    with pytest.raises(StudentError, match="label of token 2 must be 2 or -100, got 9"):
        check_batch({"input_ids": ids, "labels": torch.tensor([[-100, 9, 3]])}, rows)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"extra": {"seed": 3}}, ConfigError, "must not set seed: use the keys"),
        ({"extra": {"no_such_setting": 3}}, ConfigError, "no_such_setting"),
        ({"learning_rate": -1}, ConfigError, "learning_rate"),
        ({"max_length": 4}, DataError, "Nothing is left to learn"),
        ({"chat_template": "nowhere.jinja"}, ConfigError, "nowhere.jinja"),
    ],
)
def test_wrong_settings_are_explained(kinds, answers, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        train_student(answers, kinds["qwen"], tmp_path, QUICK | change, progress=False)


@pytest.mark.parametrize("completion", ["", [{"role": "user", "content": "x"}], [], [{"role": "assistant"}]])
def test_completions_of_other_forms_are_refused(kinds, tmp_path, completion):
    tokenizer = byte_tokenizer(("<|im_start|>", "<|im_end|>"), "<|im_end|>")
    tokenizer.chat_template = AutoTokenizer.from_pretrained(kinds["qwen"]).chat_template
    data = Dataset.from_dict({"prompt": ["Hi"], "completion": [completion]})
    with pytest.raises(DataError, match="completion"):
        training_rows(data, tokenizer, 64)


def test_the_command_trains_from_a_file(kinds, answers, tmp_path):
    answers.to_parquet(tmp_path / "data.parquet")
    config = tmp_path / "recipe.yaml"
    config.write_text(
        "output_dir: x\nprompts: {source: p.jsonl}\nrouter: {pretrained: r}\n"
        "teachers: [{name: a, model: m, backend: local}, {name: b, model: n, backend: local}]\n"
        "training: {max_steps: 2, gradient_accumulation_steps: 1}\n"
    )
    done = CliRunner().invoke(
        app,
        ["train-student", str(tmp_path / "data.parquet"), str(kinds["qwen"]), "--output-dir", str(tmp_path / "out"),
         "--config", str(config), "--set", "training.lora.r=2", "--quiet"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "12 rows" in done.stdout and "2 steps" in done.stdout
    assert "1 rows were truncated, so they do not teach the end of turn" in done.stdout
    report = json.loads((tmp_path / "out/training.json").read_text())
    assert report["settings"]["lora"]["r"] == 2 and report["settings"]["max_steps"] == 2


@pytest.mark.slow
def test_two_processes_of_accelerate_launch_train_one_student(kinds, answers, tmp_path):
    answers.to_parquet(tmp_path / "data.parquet")
    command = Path(sys.executable).with_name("persyn-hf")
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", str(command), "train-student",
         str(tmp_path / "data.parquet"), kinds["qwen"], "--output-dir", str(tmp_path / "out"), "--set",
         "training.num_train_epochs=1", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out/README.md").exists()
    assert json.loads((tmp_path / "out/training.json").read_text())["steps"] == 1


def test_the_command_pushes_the_student_with_its_card(kinds, answers, tmp_path):
    answers.to_parquet(tmp_path / "data.parquet")
    with Hub() as hub:
        environment = os.environ | client_environment(hub, tmp_path / "home", xet=False)
        done = subprocess.run(
            [sys.executable, "-m", "persyn_hf.cli", "train-student", str(tmp_path / "data.parquet"), kinds["smollm"],
             "--output-dir", str(tmp_path / "out"), "--set", "training.num_train_epochs=1",
             "--push-to-hub", "me/student", "--quiet"],
            capture_output=True, text=True, check=False, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        model = hub.model("me/student")
        assert model.private
        assert {"README.md", "model.safetensors", "config.json", "tokenizer.json", "training.json"} <= set(model.files)
        assert not any(path.startswith("checkpoints") or path.endswith(".bin") for path in model.files)
        assert "persyn" in model.text("README.md")
