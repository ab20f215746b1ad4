"""What a stranger's configuration may ask for, held against what its files hold: in seconds and without memory."""

import json
import resource
import shutil
import time
from pathlib import Path

import pytest

from persyn_hf.errors import ConfigError, StudentError
from persyn_hf.models import loading
from persyn_hf.models.files import ModelFiles

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 300,
}
GPT_NEO = {"model_type": "gpt_neo", "hidden_size": 32, "vocab_size": 50, "max_position_embeddings": 64, "num_heads": 4}
GREEDY = {
    "layers": (LLAMA | {"num_hidden_layers": 100_000}, "`num_hidden_layers` in .* at most 10,000, got 100,000"),
    "layers by the billion": (LLAMA | {"model_type": "qwen2", "num_hidden_layers": 10**10}, "`num_hidden_layers`"),
    "layers within the cap": (LLAMA | {"num_hidden_layers": 9_999}, "at least .* tensors .* its files hold 2"),
    "layers by another name": ({"model_type": "gpt2", "n_layer": 50_000}, "`n_layer` in .* got 50,000"),
    "layers in a list": (
        GPT_NEO | {"attention_types": [[["global"], 10**9]]},
        "`attention_types` in .* 1,000,000,000",
    ),
    "layers in a part": ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}}, "`num_hidden_layers`"),
    "width": (LLAMA | {"hidden_size": 10**6}, "at least 1 tensors with 300,000,000 numbers"),
    "width beyond any": (LLAMA | {"hidden_size": 2**62}, "cannot load its weights"),
    "vocabulary": (LLAMA | {"vocab_size": 10**12}, "at least 1 tensors"),
    "experts": (LLAMA | {"model_type": "mixtral", "num_local_experts": 9_999}, "at least .* tensors"),
    "labels": (LLAMA | {"num_labels": 10**9}, "`num_labels` in .* at most 100,000, got 1,000,000,000"),
    "labels by name": (LLAMA | {"id2label": {str(n): "x" for n in range(100_001)}}, "labels, got 100,001"),
    "heads of nobody": (LLAMA | {"num_attention_heads": 0}, "ZeroDivisionError"),
    "sines": (
        {"model_type": "distilbert", "dim": 32, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50}
        | {"sinusoidal_pos_embds": True, "max_position_embeddings": 10**9},
        "at least 2 tensors",
    ),
}


@pytest.fixture
def folder(tiny_lm, tmp_path):
    shutil.copy(tiny_lm / "model.safetensors", tmp_path)
    return tmp_path


def load(folder: Path, kind="classifier", **settings):
    files = ModelFiles(str(folder), None, "The model", StudentError)
    return loading.load_model(files, kind, "auto", "cpu", **settings)


@pytest.mark.parametrize("greed", GREEDY)
def test_a_greedy_configuration_is_refused_before_anything_is_built(folder, greed):
    config, says = GREEDY[greed]
    (folder / "config.json").write_text(json.dumps(config))
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StudentError, match=says):
        load(folder, new_head=True)
    assert time.monotonic() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # kB; the lists of imports included


def test_a_key_that_moves_a_terminal_is_shown_plainly(folder):
    (folder / "config.json").write_text(json.dumps(LLAMA | {"\x1b[2J_layers": 10**9}))
    with pytest.raises(StudentError, match=r"`_layers` in .* got 1,000,000,000") as caught:
        load(folder)
    assert str(caught.value).isprintable()


def test_a_tokenizer_comes_with_no_greedy_configuration(folder, tiny_lm):
    shutil.copy(tiny_lm / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(LLAMA | {"model_type": "qwen2", "num_hidden_layers": 10**10}))
    with pytest.raises(ConfigError, match=r"`num_hidden_layers` in .* at most 10,000, got 10,000,000,000"):
        loading.load_tokenizer(ModelFiles(str(folder)))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_code_from_the_hub_is_refused(folder, key):
    for value in ("kernels-community/flash-attn", {"text_config": "someone/kernel@v1"}):
        config = LLAMA | {"text": {key: value}} if isinstance(value, str) else LLAMA | {key: value}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(StudentError, match=f"asks for code from the Hub, `{key}"):
            load(folder)


def test_a_configuration_in_another_file_is_refused(folder):
    (folder / "config.json").write_text(json.dumps(LLAMA | {"configuration_files": ["config.4.0.0.json"]}))
    (folder / "config.4.0.0.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": 10**9}))
    with pytest.raises(StudentError, match="names other files"):
        load(folder)


def test_counting_parameters_reads_no_weight(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": True}))
    files = ModelFiles(str(tmp_path))
    layer = 4 * 32 * 32 + 3 * 32 * 64 + 2 * 32
    expected = 300 * 32 + 2 * layer + 32
    assert loading.count_parameters(files, "causal-lm", loading.load_config(files)) == expected


def test_counting_has_bounds_too(tmp_path, monkeypatch):
    monkeypatch.setattr("persyn_hf.models.bounds._MOST_TENSORS", 10)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    files = ModelFiles(str(tmp_path))
    with pytest.raises(ConfigError, match="asks for at least 11 tensors"):
        loading.count_parameters(files, "causal-lm", loading.load_config(files))


def test_the_real_models_are_within_the_bounds(models):
    for name, kind in (("SmolLM2-135M-Instruct", "causal-lm"), ("all-MiniLM-L6-v2", "encoder")):
        assert load(models / name, kind).num_parameters() > 20_000_000
