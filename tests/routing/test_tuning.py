from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from persyn_hf.columns import prompt_text
from persyn_hf.errors import ConfigError, MissingExtraError
from persyn_hf.routing.backbone import build_classifier, final_linear
from persyn_hf.routing.heads import teacher_means
from persyn_hf.routing.rewards import read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.training import train_router
from persyn_hf.routing.tuning import FineTuning, fine_tune

from .conftest import make_scored, tokenizer_files

ASKED = ["code code sea 1", "poem poem sea 2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models: handing their steps to threads costs more than it saves, and much more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(kind: str, folder: Path) -> str:
    """A random backbone of some thousand parameters."""
    from transformers import ModernBertConfig, ModernBertModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    common = {
        "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip
    if kind == "modernbert":
        ModernBertModel(ModernBertConfig(**common, cls_token_id=2, sep_token_id=3)).save_pretrained(folder)
    else:
        Qwen2ForCausalLM(Qwen2Config(**common, num_key_value_heads=2)).save_pretrained(folder)
    tokenizer_files(folder)
    return str(folder)


def tune(backbone: str, scored: Dataset, objective: str, **settings: object) -> tuple[np.ndarray, object]:
    table = read_rewards(scored)
    texts = [prompt_text(prompt) for prompt in table.prompts]

    def build() -> tuple[object, object]:
        return build_classifier(backbone, table.teachers, revision=None, max_length=64, dtype=None, device="cpu")

    tuned = fine_tune(
        build, texts, table.rewards, objective,
        FineTuning(**{"method": "full", "epochs": 3, "learning_rate": 2e-3, "device": "cpu", **settings}), texts,
    )  # fmt: skip
    return table.rewards, tuned


@pytest.mark.parametrize("objective", ["bradley-terry", "expected-reward", "regression"])
def test_starts_at_the_means_and_the_loss_falls(tiny_bert: str, scored: Dataset, objective: str) -> None:
    rewards, tuned = tune(tiny_bert, scored, objective)
    before, *after = tuned.held_out
    means = teacher_means(rewards)
    spread = np.ptp(means)
    assert np.corrcoef(before.mean(axis=0), means)[0, 1] > 0.9999
    assert before.std(axis=0).max() < 1e-3 * max(spread, 1.0)  # the prompt changes nothing yet
    assert tuned.losses == sorted(tuned.losses, reverse=True) and len(tuned.losses) == len(after) == 3
    rows = np.arange(len(rewards))
    earned = [rewards[rows, scores.argmax(axis=1)].mean() for scores in tuned.held_out]
    assert earned[-1] > earned[0] + 0.15


@pytest.mark.parametrize("kind", ["modernbert", "qwen2"])
def test_other_architectures_learn_what_was_planted(kind: str, tmp_path: Path, scored: Dataset) -> None:
    rewards, tuned = tune(tiny(kind, tmp_path), scored, "bradley-terry-margin", epochs=4)
    rows = np.arange(len(rewards))
    earned = [rewards[rows, scores.argmax(axis=1)].mean() for scores in tuned.held_out]
    assert earned[-1] > earned[0] + 0.15
    assert tuned.tokenizer.padding_side == "right"
    assert tuned.tokenizer.truncation_side == ("left" if kind == "qwen2" else "right")


def test_seeds_repeat_and_differ(tiny_bert: str, scored: Dataset) -> None:
    runs = [tune(tiny_bert, scored, "regression", epochs=1, seed=seed)[1].held_out[-1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-6


def test_tuned_router_is_judged_saved_and_calibrated(tiny_bert: str, scored: Dataset, tmp_path: Path) -> None:
    router = train_router(
        scored, tiny_bert, "org/student", tmp_path, objective="bradley-terry", tuning="full", folds=2, epochs=3,
        learning_rate=2e-3, device="cpu",
    )  # fmt: skip
    assert router.fallback is None and router.routes(router.scores(ASKED)) == ["alpha", "beta"]
    assert router.report.gap_closed.mean > 0.5 and router.metadata["tuning"] == "full"
    assert 1 <= router.metadata["strength"] <= 3  # epochs
    assert router.report.learning_curve == [(60, router.report.gain.mean)]


def test_tuned_router_without_a_gain_gives_the_means(tiny_bert: str) -> None:
    noise = make_scored(60, learnable=False, noise=0.3, seed=3)
    with pytest.warns(UserWarning, match="does not beat"):
        router = train_router(noise, tiny_bert, "s", tuning="full", folds=2, epochs=1, device="cpu")
    assert router.fallback == router.teachers[0] == "beta"
    scores = router.scores(ASKED)
    assert np.ptp(scores, axis=0).max() < 1e-3 * np.ptp(scores)


@pytest.mark.slow
def test_merged_lora_is_a_stock_model_and_needs_no_peft(tiny_llama: str, scored: Dataset, tmp_path: Path) -> None:
    router = train_router(
        scored, tiny_llama, "org/student", tmp_path / "r", objective="regression", tuning="lora", folds=2, epochs=3,
        learning_rate=1e-2, lora_rank=4, device="cpu", fallback="none", dtype="bfloat16",
    )  # fmt: skip
    assert router.routes(router.scores(ASKED)) == ["alpha", "beta"]
    assert not list((tmp_path / "r").glob("adapter*"))
    code = (
        "import sys, json; sys.modules['persyn_hf'] = sys.modules['peft'] = None\n"
        "from transformers import pipeline\n"
        "pipe = pipeline('text-classification', model=sys.argv[1])\n"
        "print(json.dumps([row['label'] for row in pipe(json.loads(sys.argv[2]))]), pipe.model.dtype)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r"), json.dumps(ASKED)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == '["alpha", "beta"] torch.bfloat16'


def test_lora_trains_only_additions_and_the_head(tiny_llama: str, scored: Dataset) -> None:
    model, _ = build_classifier(tiny_llama, ["a", "b", "c"], revision=None, max_length=64, dtype=None, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, tuned = tune(tiny_llama, scored, "regression", method="lora", epochs=1, lora_rank=2)
    after = tuned.model.state_dict()
    assert set(after) == set(before) and type(tuned.model).__name__ == "LlamaForSequenceClassification"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "score.weight" in moved and any("q_proj" in name for name in moved)
    assert not any("norm" in name or "embed" in name for name in moved)
    delta = after["model.layers.0.mlp.up_proj.weight"] - before["model.layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(delta, atol=1e-7) <= 2
    assert final_linear(tuned.model)[1].weight.shape == (3, 32)


def test_bad_settings_are_refused(tiny_bert: str, scored: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="`tuning` must be one of frozen, full, lora, got 'half'"):
        train_router(scored, tiny_bert, tuning="half")
    with pytest.raises(ConfigError, match="`dtype`"):
        train_router(scored, tiny_bert, dtype="int8")
    with monkeypatch.context() as absent:
        absent.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'persyn-hf\[lora\]'"):
            tune(tiny_bert, scored, "regression", method="lora", epochs=1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="`output_dir` is required under"):
        train_router(scored, tiny_bert)


@pytest.mark.slow
def test_two_processes_train_one_router(tiny_bert: str, tmp_path: Path) -> None:
    make_scored().to_parquet(tmp_path / "scored.parquet")
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from datasets import Dataset\n"
        "from persyn_hf import train_router\n"
        "folder, backbone = Path(sys.argv[1]), sys.argv[2]\n"
        "data = Dataset.from_parquet(str(folder / 'scored.parquet'), cache_dir=str(folder / os.environ['RANK']))\n"
        "router = train_router(data, backbone, 'org/student', folder / 'router', tuning='full', folds=2, epochs=6,\n"
        "    learning_rate=2e-3, device='cpu')\n"
        "routes = router.routes(router.scores(['code code sea 1', 'poem poem sea 2']))\n"
        "line = ' '.join([*routes, router.digest, os.environ['WORLD_SIZE']])\n"
        "(folder / f\"rank-{os.environ['RANK']}\").write_text(line)\n"
    )
    subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script), str(tmp_path),
            tiny_bert,
        ],
        timeout=300, check=True,
        # accelerate's own `--cpu` starts several processes through MPI only; its launcher for GPUs does it without.
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    said = [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)]
    digest = PersynRouter.from_pretrained(tmp_path / "router").digest
    assert said == [f"alpha beta {digest} 2"] * 2
