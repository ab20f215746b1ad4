from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from datasets import Dataset

from persyn_hf.errors import ConfigError, DataError, MissingColumnError, RouterMismatchError
from persyn_hf.routing.evaluate import evaluate_router
from persyn_hf.routing.heads import OBJECTIVES
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.training import train_router

from .conftest import make_scored


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_learns_what_the_prompt_says(tiny_bert: str, scored: Dataset, objective: str) -> None:
    router = train_router(scored, tiny_bert, "org/student", objective=objective)
    assert router.report.fallback is None
    assert router.report.gap_closed.mean > 0.8
    scores = router.scores(["code code sea 1", "poem poem sea 2"])
    assert router.routes(scores) == ["alpha", "beta"]


def test_decoder_without_bias_learns_too(tiny_llama: str, scored: Dataset) -> None:
    router = train_router(scored, tiny_llama, "org/student", objective="regression", fallback="none")
    assert router.report.gap_closed.mean > 0.3
    assert router.teachers[0] == "gamma"  # the best single teacher comes first


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_llama"])
def test_falls_back_loudly_and_stock_logits_agree(backbone: str, request: pytest.FixtureRequest) -> None:
    data = make_scored(learnable=False, noise=0.3, seed=3)
    with pytest.warns(UserWarning, match="does not beat the best single teacher"):
        router = train_router(data, request.getfixturevalue(backbone), "org/student")
    best = router.teachers[0]
    assert router.fallback == router.metadata["fallback"] == best == "beta"
    scores = router.scores([f"code sea {n}" for n in range(9)])
    assert (scores.argmax(axis=1) == 0).all()
    held_out = router.metadata["held_out"]
    assert held_out["router"] == held_out["best_single"] and "candidate" in held_out


def test_logits_are_bradley_terry_scores_after_every_objective(tiny_bert: str) -> None:
    train, test = make_scored(120, seed=1, noise=0.5), make_scored(200, seed=2, noise=0.5)
    for objective in ("regression", "expected-reward", "bradley-terry-margin"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            router = train_router(train, tiny_bert, "s", objective=objective, folds=3)
        result = evaluate_router(router, test, train, show=False)
        assert result.calibration_error.mean < 0.12, objective


def test_metadata_and_missing_rewards(tiny_bert: str, scored: Dataset, tmp_path: object) -> None:
    rows = scored.to_list()
    for row in rows[::7]:
        row["reward"] = None
    teachers = [{"name": n, "model": f"org/{n}", "endpoint": "http://secret"} for n in ("alpha", "beta", "gamma")]
    router = train_router(rows, tiny_bert, "org/student", teachers=teachers, metadata={"training_data": "x"})
    block = router.metadata
    assert block["student"] == "org/student" and block["training_data"] == "x"
    assert {t["name"]: t["model"] for t in block["teachers"]}["beta"] == "org/beta"
    assert "secret" not in json.dumps(block)
    assert router.report.gap_closed.mean > 0.6


def test_bert_head_reads_the_mean_over_tokens(tiny_bert: str) -> None:
    from transformers import AutoModel

    from persyn_hf.routing.backbone import build_classifier, head_inputs

    texts = ["code sea", "poem " * 30, "law tax dog 7 1"]
    model, tokenizer = build_classifier(tiny_bert, ["a", "b"], revision=None, max_length=64, dtype=None, device="cpu")
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = encoder(**batch).last_hidden_state  # two thirds of two layers: both are kept
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.layer_norm((states * mask).sum(1) / mask.sum(1), (32,), eps=1e-12)
    expected = torch.tanh(0.02 * mean).numpy()
    np.testing.assert_allclose(head_inputs(model, tokenizer, texts), expected, atol=1e-5)


def test_decoder_reads_the_last_token_and_cuts_on_the_left(tiny_llama: str) -> None:
    from persyn_hf.routing.backbone import build_classifier, final_linear, head_inputs, logits

    texts = ["code sea", "poem " * 30 + "law", "poem " * 90 + "tax dog 7 1"]
    model, tokenizer = build_classifier(tiny_llama, ["a", "b"], revision=None, max_length=32, dtype=None, device="cpu")
    together = logits(model, tokenizer, texts, 8192)
    alone = np.concatenate([logits(model, tokenizer, [text], 8192) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    weight = final_linear(model)[1].weight.detach().numpy()
    np.testing.assert_allclose(head_inputs(model, tokenizer, texts) @ weight.T, together, atol=1e-5)
    assert tokenizer.decode(tokenizer(texts[2], truncation=True)["input_ids"]).split()[-2] == "1"


def test_bad_tables_are_refused(tiny_bert: str, scored: Dataset) -> None:
    with pytest.raises(MissingColumnError, match="reward"):
        train_router(scored.remove_columns("reward"), tiny_bert)
    with pytest.raises(DataError, match="one row per prompt and teacher"):
        train_router([*scored.to_list(), scored[0]], tiny_bert)
    with pytest.raises(DataError, match="at least two"):
        train_router(scored.filter(lambda row: row["teacher"] == "alpha"), tiny_bert)
    with pytest.raises(ConfigError, match="objective"):
        train_router(scored, tiny_bert, objective="magic")
    with pytest.raises(RouterMismatchError, match="gamma"):
        train_router(scored, tiny_bert, teachers=[{"name": "alpha"}, {"name": "beta"}])


def test_stock_pipeline_ranks_alike_without_persyn_hf(router_folder: str) -> None:
    prompts = ["code code sea 1", "poem poem sea 2", "poem code tax", "law " * 90]
    code = (
        "import sys, json; sys.modules['persyn_hf'] = None\n"
        "from transformers import pipeline\n"
        "pipe = pipeline('text-classification', model=sys.argv[1], top_k=None)\n"
        "print(json.dumps([[x['label'] for x in row] for row in pipe(json.loads(sys.argv[2]), truncation=True)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, router_folder, json.dumps(prompts)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    router = PersynRouter.from_pretrained(router_folder)
    scores = router.scores(prompts)
    expected = [[router.teachers[i] for i in np.argsort(-row)] for row in scores]
    assert json.loads(done.stdout.splitlines()[-1]) == expected
