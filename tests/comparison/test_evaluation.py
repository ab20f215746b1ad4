"""How students are judged: verifiers, the likelihood of others' answers, and lm-eval's tasks and results."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from persyn_hf import verifier
from persyn_hf.columns import prompt_id
from persyn_hf.comparison.evaluation import answer_held_out, held_out_nll, read_benchmarks, run_benchmarks
from persyn_hf.config import Decoding, LmEval, Quality, Student
from persyn_hf.errors import ConfigError
from persyn_hf.models.rendering import render_answers


def prompts(count=5):
    texts = [f"Say {row}." for row in range(count)]
    return Dataset.from_dict(
        {
            "prompt_id": [prompt_id(text) for text in texts],
            "prompt": texts,
            "answer": [str(row) for row in range(count)],
        }
    )


@verifier
def third_letter(prompt, completion, answer):
    return float(ord(completion[-1]) % 3)


def test_answers_are_those_of_plain_greedy_generation(tiny_lm):
    student = Student(model=str(tiny_lm), dtype="float32", device="cpu")
    ways = [
        Decoding(name="greedy", temperature=0.0, max_tokens=6),
        Decoding(name="hot", temperature=1.0, max_tokens=6),
    ]
    quality = Quality(verifier="tests.comparison.test_evaluation:third_letter")
    data = prompts()
    judged, answers = answer_held_out(student, data, ways, quality, seed=1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    said = {(row["teacher"], row["prompt"]): row for row in answers.to_list()}
    for prompt, score in zip(data["prompt"], judged[0].scores, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        text = tokenizer.decode(made, skip_special_tokens=True)
        row = said["greedy", prompt]
        assert (row["completion"] or "") == (text if text.strip() else "")
        assert score == row["quality"] == (third_letter(None, text, None) if text.strip() else 0.0)
    assert [one.evaluation for one in judged] == ["greedy", "hot"]
    assert judged[0].ids == judged[1].ids == tuple(data["prompt_id"])
    again, _ = answer_held_out(student, data, ways, quality, seed=1)
    other, changed = answer_held_out(student, data, ways, quality, seed=2)
    assert again == judged
    texts = [row["completion"] for row in changed.to_list() if row["teacher"] == "hot"]
    assert texts != [said["hot", prompt]["completion"] for prompt in data["prompt"]]
    assert other[0] == judged[0]


def test_nll_is_the_models_own_loss_on_the_answers_tokens(tiny_lm):
    student = Student(model=str(tiny_lm), dtype="float32", device="cpu")
    data = prompts(2)
    rows = {
        "prompt_id": [data["prompt_id"][0], data["prompt_id"][0], data["prompt_id"][1], data["prompt_id"][1]],
        "prompt": [data["prompt"][0], data["prompt"][0], data["prompt"][1], data["prompt"][1]],
        "teacher": ["a", "b"] * 2,
        "completion": ["zero", "nought", "one", None],
        "finish_reason": ["stop"] * 3 + [None],
        "error": [None] * 3 + ["down"],
    }
    judged = held_out_nll(student, Dataset.from_dict(rows))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    losses = []
    for one in render_answers(tokenizer, rows["prompt"][:3], rows["completion"][:3], ["stop"] * 3):
        labels = [-100] * len(one.prompt_ids) + list(one.completion_ids)
        with torch.no_grad():
            losses.append(model(torch.tensor([one.ids]), labels=torch.tensor([labels])).loss.item())
    assert judged.ids == tuple(data["prompt_id"]) and not judged.higher_is_better
    assert judged.scores == pytest.approx([(losses[0] + losses[1]) / 2, losses[2]], rel=1e-4)


def test_benchmark_results_are_read_per_document_where_their_mean_is_the_metric():
    samples = [
        {"doc_id": number, "filter": name, "exact_match": value, "ratio": value}
        for name, values in (("strict", [1, 0, 1, 1]), ("flexible", [1, 1, 1, 1]))
        for number, value in enumerate(values)
    ]
    results = {
        "results": {
            "gsm": {
                "alias": "gsm", "exact_match,strict": 0.75, "exact_match_stderr,strict": 0.2,
                "exact_match,flexible": 1.0, "ratio,strict": 0.9, "sample_len": 4,
            },
            "words": {"perplexity,none": 12.5},
        },
        "higher_is_better": {"gsm": {"exact_match": True}, "words": {"perplexity": False}},
        "samples": {"gsm": samples},
    }  # fmt: skip
    found = {one.evaluation: one for one in read_benchmarks(results)}
    assert set(found) == {
        "gsm/exact_match/strict", "gsm/exact_match/flexible", "gsm/ratio/strict", "words/perplexity"
    }  # fmt: skip
    assert found["gsm/exact_match/strict"].scores == (1.0, 0.0, 1.0, 1.0)
    assert found["gsm/exact_match/strict"].ids == ("0", "1", "2", "3")
    assert (found["gsm/ratio/strict"].scores, found["gsm/ratio/strict"].ids) == ((0.9,), ("all",))
    assert found["words/perplexity"].higher_is_better is False


@pytest.mark.slow
def test_a_task_of_lm_eval_runs_by_name(tiny_lm, tmp_path):
    rows = [{"question": f"Is {number} even?", "label": number % 2} for number in range(8)]
    (tmp_path / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "even.yaml").write_text(
        "task: even\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/data.json}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: ['yes', 'no']\ndoc_to_target: label\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    settings = LmEval(tasks=("even",), include_path=str(tmp_path), batch_size=4, limit=6)
    student = Student(model=str(tiny_lm), dtype="float32", device="cpu")
    (judged,) = run_benchmarks(student, settings, seed=0)
    assert judged.evaluation == "even/acc" and judged.ids == tuple(map(str, range(6)))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    for row, score in zip(rows, judged.scores, strict=False):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True, tokenize=False
        )
        sums = []
        for choice in ("yes", "no"):
            start = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            ids = torch.tensor([tokenizer(text + choice, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                scores = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            sums.append(scores[start - 1 :].sum().item())
        assert score == float(sums.index(max(sums)) == row["label"])
    with pytest.raises(ConfigError, match="no_such_task"):
        run_benchmarks(student, settings.model_copy(update={"tasks": ("no_such_task",)}), seed=0)
