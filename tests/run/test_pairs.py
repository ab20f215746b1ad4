"""Preference pairs of a scored probe: which they are, and that TRL's DPOTrainer reads them."""

import pytest
from datasets import Dataset
from typer.testing import CliRunner

from persyn_hf import preference_pairs, push_pairs
from persyn_hf.cli import app
from persyn_hf.errors import ConfigError, DataError, MissingColumnError, PublishError
from tests.students.models import save_kind

#: prompt, teacher, completion, finish reason, error, reward, quality
ROWS = [
    ("p", "a", "Good.", "stop", None, 0.9, 0.0),
    ("p", "b", "Bad.", "stop", None, 0.1, 1.0),
    ("p", "c", "Fair.", "stop", None, 0.5, 0.5),
    ("p", "d", None, None, "HTTP 402", None, None),
    ("q", "a", "Cut of", "length", None, 1.0, 1.0),
    ("q", "b", "Same.", "stop", None, 0.6, 1.0),
    ("q", "c", "Same.", "stop", None, 0.4, 1.0),
    ("q", "d", "  ", "stop", None, 0.0, 1.0),
    ("r", "a", "Alone.", "stop", None, 0.7, 1.0),
    ("s", "a", "Yes.", "stop", None, 0.5, 1.0),
    ("s", "b", "No.", "stop", None, 0.5, None),
]


def scored(rows=ROWS):
    names = ("prompt_id", "teacher", "completion", "finish_reason", "error", "reward", "quality")
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(values | {"prompt": [f"What of {row[0]}?" for row in rows]})


def teachers(pairs):
    return list(zip(pairs["prompt_id"], pairs["chosen_teacher"], pairs["rejected_teacher"], strict=True))


def test_best_and_worst_answer_of_each_prompt():
    pairs = preference_pairs(scored())
    assert pairs[:] == {
        "prompt_id": ["p"],
        "prompt": [[{"role": "user", "content": "What of p?"}]],
        "chosen": [[{"role": "assistant", "content": "Good."}]],
        "rejected": [[{"role": "assistant", "content": "Bad."}]],
        "chosen_teacher": ["a"],
        "rejected_teacher": ["b"],
        "chosen_reward": [0.9],
        "rejected_reward": [0.1],
        "margin": [pytest.approx(0.8)],
    }


def test_which_pairs_and_how_far_apart():
    assert teachers(preference_pairs(scored(), which="adjacent")) == [("p", "a", "c"), ("p", "c", "b")]
    assert teachers(preference_pairs(scored(), which="all")) == [("p", "a", "c"), ("p", "a", "b"), ("p", "c", "b")]
    assert teachers(preference_pairs(scored(), which="all", min_margin=0.45)) == [("p", "a", "b")]
    assert teachers(preference_pairs(scored(), {"by": "quality"})) == [("p", "b", "a")]
    assert teachers(preference_pairs(scored(), keep_truncated=True)) == [("p", "a", "b"), ("q", "a", "c")]
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    table = scored(ROWS[:3]).remove_columns("prompt").add_column("prompt", [conversation] * 3)
    assert preference_pairs(table)[0]["prompt"] == conversation


def test_samples_of_one_teacher_are_answers_of_their_own():
    table = scored(ROWS[:3]).remove_columns("teacher").add_column("teacher", ["a"] * 3)
    pairs = preference_pairs(table.add_column("sample", [0, 1, 2]))
    assert teachers(pairs) == [("p", "a", "a")] and pairs["chosen"][0][0]["content"] == "Good."


def test_nothing_to_pair_is_an_error():
    with pytest.raises(DataError, match=r"differ in `reward` by 0\.9 or more"):
        preference_pairs(scored(), min_margin=0.9)
    with pytest.raises(DataError):
        preference_pairs(scored(ROWS[8:]))
    with pytest.raises(MissingColumnError, match="preference_pairs needs the column `quality`"):
        preference_pairs(scored().remove_columns("quality"), by="quality")
    with pytest.raises(ConfigError, match="which"):
        preference_pairs(scored(), which="some")


def test_nothing_is_pushed_without_a_place_or_with_a_secret():
    with pytest.raises(ConfigError, match="`dataset_repo_id` is required"):
        push_pairs(preference_pairs(scored()))
    rows = [(*ROWS[0][:2], "My key is hf_" + "aB3dE6gH9jK2mN5pQ8rS1tU4vW7xY0zA2b", *ROWS[0][3:]), *ROWS[1:3]]
    with pytest.raises(PublishError, match="looks like a key"):
        push_pairs(preference_pairs(scored(rows)), dataset_repo_id="me/data")


def test_the_command_wants_a_run(tmp_path):
    done = CliRunner().invoke(app, ["pairs", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "must be the folder of a run that has finished the stage `score`" in str(done.exception)


@pytest.mark.slow
def test_dpo_trainer_reads_them(tmp_path):
    from trl import DPOConfig, DPOTrainer

    model = save_kind(tmp_path / "student", "qwen")
    pairs = preference_pairs(scored(), which="all")
    how = DPOConfig(
        output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, bf16=False, use_cpu=True,
        report_to="none", save_strategy="no", gradient_checkpointing=False,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=how, train_dataset=pairs)
    rows = trainer.train_dataset
    tokenizer = trainer.processing_class
    assert tokenizer.decode(rows[1]["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert tokenizer.decode(rows[1]["chosen_ids"]).startswith("Good.<|im_end|>")
    assert tokenizer.decode(rows[1]["rejected_ids"]).startswith("Bad.<|im_end|>")
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)  # log 2: the policy is the reference yet
