"""The scoring stage as a whole."""

import pytest
from datasets import Dataset

from persyn_hf.config import Quality, Student
from persyn_hf.errors import ConfigError, DataError, MissingColumnError, PromptTooLongError
from persyn_hf.scoring.learnability import persyn_learnability
from persyn_hf.scoring.reward import reward
from persyn_hf.scoring.score import score
from tests.scoring import models


@pytest.fixture
def answers():
    return Dataset.from_dict(
        {
            "prompt_id": ["a", "b", "a", "b", "a"],
            "prompt": ["hello the", "what?", "hello the", "what?", "hello the"],
            "answer": ["hello", "no", "hello", "no", "hello"],
            "teacher": ["t1", "t1", "t2", "t2", "t3"],
            "completion": ["hello", "the hell", "the the the", "no", None],
            "finish_reason": ["stop", "stop", "length", "stop", None],
            "error": [None, None, None, None, "timeout"],
        }
    )


def test_columns_order_and_values(answers, llama):
    scored = score(answers, llama, "exact", alpha=0.25, progress=False)
    assert scored.column_names == [
        *answers.column_names,
        *("quality", "learnability", "student", "student_revision", "learnability_metric", "reward"),
    ]
    assert scored.select_columns(answers.column_names)[:] == answers[:]
    assert scored["quality"][:] == [1.0, 0.0, 0.0, 1.0, None]
    expected = persyn_learnability(answers[:], student=llama)
    assert scored["learnability"][:4] == pytest.approx(expected["learnability"][:4], abs=1e-5)
    assert scored["student_revision"][:] == expected["student_revision"]
    rewards = reward([1.0, 0.0], [scored["learnability"][0], scored["learnability"][2]], 0.25)
    assert scored["reward"][:] == pytest.approx(
        [rewards[0], *scored["reward"][1:2], rewards[1], *scored["reward"][3:4], None]
    )


def test_every_way_to_say_the_same(answers, llama, capsys):
    def verifier(prompt, completion, answer):
        return completion == answer

    first = score(answers, llama, "exact", batch_size=2)
    assert "tok" in capsys.readouterr().err
    student = Student(model=llama, dtype="float32", token_budget=64)
    for quality in (Quality(verifier="exact"), {"verifier": "exact"}, verifier):
        again = score(answers, student, quality, progress=False)
        assert again["reward"][:] == pytest.approx(first["reward"][:], abs=1e-5)


def test_rsr_feeds_the_reward_by_its_negative(answers, llama):
    scored = score(answers, llama, "exact", alpha=1.0, learnability_metric="rsr", progress=False)
    assert set(scored["learnability_metric"][:]) == {"rsr"}
    better = 0 if scored["rsr"][0] < scored["rsr"][2] else 2
    assert scored["reward"][better] == 1.0
    assert scored["learnability"][0] < 0


def test_perplexity_feeds_the_reward_by_its_negative_and_columns_come_on_request(answers, llama):
    scored = score(
        answers, llama, "exact", alpha=1.0, learnability_metric="perplexity", metrics=("rsr", "completion_tokens"),
        progress=False,
    )  # fmt: skip
    assert set(scored["learnability_metric"][:]) == {"perplexity"}
    assert scored["reward"][0 if scored["perplexity"][0] < scored["perplexity"][2] else 2] == 1.0
    assert {name: scored.features[name].dtype for name in ("rsr", "perplexity", "student_completion_tokens")} == {
        "rsr": "float64", "perplexity": "float64", "student_completion_tokens": "int64"
    }  # fmt: skip
    assert scored["student_completion_tokens"][4] is None
    expected = persyn_learnability(answers[:], student=llama, metrics=("rsr", "completion_tokens"))
    assert scored["student_completion_tokens"][:] == expected["student_completion_tokens"]
    assert scored["rsr"][:4] == pytest.approx(expected["rsr"][:4], rel=1e-4)


def test_a_second_student_stands_beside_the_first(answers, llama, tmp_path):
    other = models.save(tmp_path, "gpt2")
    first = score(answers, llama, "exact", progress=False)
    with pytest.raises(DataError, match="`suffix`"):
        score(first, other, None, progress=False)
    both = score(first, other, None, learnability_metric="rsr", suffix="_2", progress=False)
    assert both.select_columns(first.column_names)[:] == first[:]
    added = ["learnability_2", "rsr_2", "student_2", "student_revision_2", "learnability_metric_2", "reward_2"]
    assert both.column_names == [*first.column_names, *added]
    alone = score(answers, other, "exact", learnability_metric="rsr", progress=False)
    assert both["rsr_2"][:4] == pytest.approx(alone["rsr"][:4], rel=1e-4)
    assert both["reward_2"][:] == pytest.approx(alone["reward"][:], abs=1e-5)
    again = score(both, llama, None, alpha=1.0, progress=False)
    assert again["learnability"][:4] == pytest.approx(first["learnability"][:4], abs=1e-5)


def test_cut_answers_are_counted_once_over_all_batches(answers, llama, caplog):
    long = answers.map(lambda text: {"completion": text and text * 300}, input_columns="completion")
    with pytest.raises(PromptTooLongError, match="256"):
        score(long, llama, "exact", progress=False)
    scored = score(long, llama, "exact", too_long="truncate", batch_size=2, progress=False)
    assert sum(filter(None, scored["learnability_truncated"][:])) == 4
    assert scored["learnability_truncated"][4] is None
    assert [record.message for record in caplog.records if "were truncated" in record.message] == [
        "4 of 5 answers were truncated to the student's context of 256 tokens."
    ]


def test_bad_input(answers, llama):
    with pytest.raises(MissingColumnError, match="`teacher`"):
        score(answers.remove_columns("teacher"), llama, "exact", progress=False)
    with pytest.raises(ConfigError, match="alpha"):
        score(answers, llama, "exact", alpha=2, progress=False)
    with pytest.raises(ConfigError, match="learnability_metric"):
        score(answers, llama, "exact", learnability_metric="loss", progress=False)
    with pytest.raises(ConfigError, match="neither a local folder"):
        score(answers, "no such model!", "exact", progress=False)
