"""Which texts a training set may not hold."""

import json

import pytest

from persyn_hf.config import Compare, Hygiene, LmEval
from persyn_hf.errors import ConfigError
from persyn_hf.prompts.benchmarks import compared_benchmarks, load_benchmarks, task_texts


@pytest.fixture
def task(tmp_path):
    rows = [
        {"question": f"Is the number {number} an even one or is it odd?", "label": number % 2} for number in (3, 4)
    ]
    (tmp_path / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "even.yaml").write_text(
        "task: even\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/data.json}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: 'Question: {{question}}'\n"
        "doc_to_choice: ['yes', 'no']\ndoc_to_target: label\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return LmEval(tasks=("even",), include_path=str(tmp_path))


def held_out(tmp_path, text="Where does the old grey tower stand these days?"):
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": text}) + "\n")
    return {"source": str(tmp_path / "held.jsonl")}


@pytest.mark.slow
def test_the_questions_of_a_task_are_those_that_the_harness_asks(task):
    assert list(task_texts(task)) == [
        "Question: Is the number 3 an even one or is it odd?",
        "Question: Is the number 4 an even one or is it odd?",
    ]


@pytest.mark.slow
def test_a_task_that_is_not_known_is_named(task):
    with pytest.raises(ConfigError, match="lm-eval has no task odd"):
        list(task_texts(task.model_copy(update={"tasks": ("odd",)})))


@pytest.mark.parametrize("tasks", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_files_and_the_comparison_are_read(task, tmp_path, tasks):
    (tmp_path / "bench.jsonl").write_text(
        json.dumps({"question": "Who painted the ceiling of the old chapel?"}) + "\n"
    )
    compare = Compare.model_validate(
        {"students": [{"name": "s", "model": "m"}], "held_out": held_out(tmp_path), "lm_eval": task if tasks else None}
    )
    hygiene = Hygiene(decontaminate=(str(tmp_path / "bench.jsonl"), "compare"), decontaminate_column="question")
    found = load_benchmarks(hygiene, compare)
    asked = ["Tell me: who painted the ceiling of the old chapel?", "Where does the old grey tower stand these days?"]
    assert [found.holds(text) for text in [*asked, "Where is the tower?"]] == [True, True, False]
    assert found.holds("Question: Is the number 4 an even one or is it odd?") is tasks
    assert not compared_benchmarks(compare, 13).holds(asked[0])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match="`compare` needs the section `compare`"):
        load_benchmarks(Hygiene(decontaminate=("compare",)), None)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "Who?"}) + "\n")
    with pytest.raises(ConfigError, match=r"there is no column `text` in .*; it has question"):
        load_benchmarks(Hygiene(decontaminate=(str(tmp_path / "bench.jsonl"),), decontaminate_column="text"), None)
    with pytest.raises(ConfigError, match=r"hygiene\.decontaminate.*: there is no file"):
        load_benchmarks(Hygiene(decontaminate=(str(tmp_path / "none.jsonl"),)), None)
