"""Verifiers and reward models."""

import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSequenceClassification

from persyn_hf.errors import ConfigError, MissingColumnError, PromptTooLongError, ScoringError
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.verifiers import find_verifier, verifier
from tests.scoring import models

#: Real recorded answers, for whoever has them: a folder with `math_zoo.parquet`.
ZOO = Path(os.environ.get("PERSYN_DATA", "data")) / "math_zoo.parquet"


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("so 3*6=18\nA: 18", "18", 1.0),
        ("so\nA: 19", "18", 0.0),
        ("A: 5\nno, wait\nA: 18", "18", 1.0),
        ("#### 1,234", "1234", 1.0),
        ("Thus \\boxed{\\frac{1}{2}}.", "0.5", 1.0),
        ("Answer: $18.00", "18", 1.0),
        ("**Answer:** 18", "#### 18", 1.0),
        ("There are 18 left.", "18", 1.0),
        ("I do not know.", "18", 0.0),
        ("", "18", 0.0),
        ("A: 18 dollars", "18", 1.0),
        ("A: 7\nSo \\boxed{18}", "18", 1.0),
    ],
)
def test_math_answers(completion, answer, expected):
    row = {"prompt": "p", "completion": completion, "answer": answer}
    assert persyn_quality(row, verifier="math") == {"quality": expected}


def test_math_in_threads():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(find_verifier("math"), "p", "A: 1/2", "0.5").result() == 1.0


@pytest.mark.skipif(not ZOO.exists(), reason="PERSYN_DATA names no folder with math_zoo.parquet")
def test_math_agrees_with_recorded_quality():
    rows = load_dataset("parquet", data_files=str(ZOO), split="train")
    found = persyn_quality(rows[:], verifier="math")["quality"]
    wrong = [
        f"{row['prompt_id']} {row['teacher']}: {value} for {row['completion'][-60:]!r}, reference {row['answer']!r}"
        for row, value in zip(rows, found, strict=True)
        if value != row["quality"]
    ]
    print(f"{len(wrong)} of {len(rows)} disagree", *wrong, sep="\n")
    assert len(rows) == 3520
    assert len(wrong) <= 0.005 * len(rows), wrong


@verifier
def longest(prompt, completion, answer):
    return len(completion)


def test_functions_by_name_and_as_objects():
    batch = {"prompt": ["p"] * 3, "completion": ["ab", None, "abc"], "error": [None, "down", None]}
    assert persyn_quality(batch, verifier="tests.scoring.test_quality:longest") == {"quality": [2.0, None, 3.0]}
    assert persyn_quality(batch, verifier=longest) == {"quality": [2.0, None, 3.0]}
    mapped = Dataset.from_dict(batch).map(
        persyn_quality, fn_kwargs={"verifier": "exact"} | {"answer_column": "completion"}
    )
    assert mapped["quality"][:] == [1.0, None, 1.0]


@pytest.mark.parametrize("bad", [None, "high", float("nan"), float("inf")])
def test_what_is_no_finite_number_names_the_row(bad):
    row = {"prompt": "p", "completion": "c", "prompt_id": "abc", "teacher": "t1"}
    with pytest.raises(ScoringError, match="prompt abc, teacher t1"):
        persyn_quality(row, verifier=lambda prompt, completion, answer: bad)


def test_bad_settings():
    row = {"prompt": "p", "completion": "c"}
    with pytest.raises(ConfigError, match="exactly one"):
        persyn_quality(row)
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        persyn_quality(row, verifier="maths")
    with pytest.raises(ConfigError, match="cannot find"):
        persyn_quality(row, verifier="tests.scoring.test_quality:shortest")
    with pytest.raises(ScoringError, match="needs a reference"):
        persyn_quality(row, verifier="math")
    with pytest.raises(ScoringError, match="not a mathematical expression"):
        persyn_quality(row | {"answer": "unknowable"}, verifier="math")
    with pytest.raises(MissingColumnError, match="`completion`"):
        persyn_quality({"prompt": "p"}, verifier="exact")


ENDS_WITH_PAD = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
ANSWERS = {
    "prompt": ["hello", "hello the hello", "the"],
    "completion": ["the hell", "hello " * 12 + "<|im_end|>", "no"],
}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("template", [models.CHATML, ENDS_WITH_PAD, None])
def test_a_batch_gives_what_an_answer_gives_alone(kind, template, tmp_path):
    folder = models.save_reward_model(tmp_path, kind, models.tokenizer(template))
    batch = persyn_quality(ANSWERS, reward_model=folder)["quality"]
    single = [
        persyn_quality({key: values[row] for key, values in ANSWERS.items()}, reward_model=folder)["quality"]
        for row in range(3)
    ]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    text = models.tokenizer(template)
    for row in range(3):
        prompt, completion = ANSWERS["prompt"][row], ANSWERS["completion"][row]
        chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids = text(prompt, completion) if template is None else text(text.apply_chat_template(chat, tokenize=False))
        with torch.no_grad():
            stock = model(**{key: torch.tensor([ids[key]]) for key in ("input_ids", "attention_mask")}).logits.item()
        assert single[row] == pytest.approx(stock, abs=1e-4)
        assert batch[row] == pytest.approx(stock, abs=1e-4)


def test_reward_models_that_are_none(llama, tmp_path):
    two = models.save_reward_model(tmp_path, "llama", num_labels=2)
    with pytest.raises(ScoringError, match="one label"):
        persyn_quality(ANSWERS, reward_model=two)
    with pytest.raises(ScoringError, match=r"The reward model .* lacks weights: score\.weight"):
        persyn_quality(ANSWERS, reward_model=llama)


def test_an_answer_beyond_the_reward_models_context(tmp_path):
    folder = models.save_reward_model(tmp_path, "llama")
    with pytest.raises(PromptTooLongError, match=r"row 0 of the batch.*256"):
        persyn_quality({"prompt": "p", "completion": "x" * 300}, reward_model=folder)


def test_a_reward_model_that_gives_no_finite_score(tmp_path):
    folder = models.save_reward_model(tmp_path, "llama", models.tokenizer())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[models.tokenizer()("the")["input_ids"][0]] = float("nan")
    model.save_pretrained(folder)
    found = persyn_quality({"prompt": ["no"] * 2, "completion": ["the", "no"]}, reward_model=folder, token_budget=1)
    assert found["quality"][0] is None and found["quality"][1] is not None
    assert found["quality_error"] == [f"the reward model `{folder}` gives nan", None]
    with pytest.raises(
        ScoringError, match=r"row 0 of the batch and the 1 answers after it: the reward model .* gives nan"
    ):
        persyn_quality({"prompt": ["the"] * 2, "completion": ["the", "no"]}, reward_model=folder)


def test_a_reward_model_whose_template_cuts_thoughts_is_refused(tmp_path):
    cuts = models.CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    folder = models.save_reward_model(tmp_path, "llama", models.tokenizer(cuts))
    with pytest.raises(ScoringError, match="the chat template of the reward model drops part"):
        persyn_quality({"prompt": "p", "completion": "<think>hello</think>the"}, reward_model=folder)
