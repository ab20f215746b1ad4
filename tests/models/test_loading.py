"""Loading: one at a time, whole, bounded, and one kind of error for whatever a damaged checkpoint raises."""

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from persyn_hf.errors import ConfigError, RouterError, ScoringError, StudentError, TeacherDownError
from persyn_hf.generation import local, tokens
from persyn_hf.models import loading
from persyn_hf.models.files import ModelFiles, read_config, reading
from persyn_hf.routing.backbone import build_classifier
from persyn_hf.scoring.reward_model import load_reward_model
from persyn_hf.scoring.student import load_student
from persyn_hf.text import tame
from tests.scoring.models import save_reward_model


@pytest.fixture
def copy(tiny_lm, tmp_path):
    return Path(shutil.copytree(tiny_lm, tmp_path / "model"))


def edit(folder, name="config.json", **changes):
    path = Path(folder) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder, kind="causal-lm", **settings):
    files = ModelFiles(str(folder), None, "The student", StudentError)
    return loading.load_model(files, kind, settings.pop("dtype", "auto"), "cpu", **settings)


def test_a_whole_model_is_frozen_and_as_the_checkpoint_has_it(tiny_lm):
    model = load(tiny_lm)
    expected = load_file(tiny_lm / "model.safetensors")
    assert model.dtype == torch.float32 and not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in expected.items())
    assert all(weight.requires_grad for weight in load(tiny_lm, trainable=True).parameters())
    assert load(tiny_lm, dtype="bfloat16").dtype == torch.bfloat16


def test_loading_changes_no_stream_of_random_numbers(tiny_lm):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(tiny_lm)
    assert torch.equal(torch.rand(3), expected)


def test_loads_of_different_stages_never_overlap(tiny_lm, tmp_path, monkeypatch):
    """Two that overlap leave weight tying off for good, whichever stages they belong to."""
    inside, most, guard = [0], [0], threading.Lock()

    def slow(real):
        def load(*arguments, **settings):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            try:
                return real(*arguments, **settings)
            finally:
                with guard:
                    inside[0] -= 1

        return load

    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer):
        monkeypatch.setattr(auto_class, "from_pretrained", slow(auto_class.from_pretrained))
    tie = PreTrainedModel.tie_weights
    settings = json.loads((tiny_lm / "config.json").read_text()) | {"tie_word_embeddings": True}
    folders = [str(tmp_path / str(number)) for number in range(4)]
    for folder in folders:
        shutil.copytree(tiny_lm, folder)
        LlamaForCausalLM(LlamaConfig.from_dict(settings)).save_pretrained(folder)
    reward = save_reward_model(tmp_path / "reward", "llama")
    calls = [
        lambda: load_student(folders[0], dtype="float32", device="cpu").model,
        lambda: local.load_local_model(folders[1], None, "float32", "cpu", "folder-1").model,
        lambda: load_student(folders[2], dtype="float32", device="cpu").model,
        lambda: load(folders[3]),
        lambda: load_reward_model(reward, device="cpu"),
        lambda: build_classifier(folders[0], ["a", "b"], revision=None, max_length=64, dtype=None, device="cpu"),
        lambda: tokens._load(folders[1], None, False, "somewhere"),
    ]
    with ThreadPoolExecutor(len(calls)) as threads:
        loaded = [future.result() for future in [threads.submit(call) for call in calls]]
    assert most == [1]
    assert PreTrainedModel.tie_weights is tie
    for model in loaded[:4]:
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_many_ask_for_at_once_is_loaded_once(tiny_lm, monkeypatch):
    loads = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or real(*a, **k))
    folder = str(tiny_lm)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: load_student(folder, dtype="float64", device="cpu"), range(4)))
    assert len(loads) == 1 and all(one is found[0] for one in found)


def test_missing_weights_are_named(copy):
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudentError, match=r"The student `.*/model` lacks weights: model\.layers\.1\.mlp\.up_proj"):
        load(copy)


def test_weights_of_another_shape_are_named_with_both(copy):
    edit(copy, intermediate_size=32)
    with pytest.raises(
        StudentError, match=r"of another shape .* model\.layers\.0\.mlp\.down_proj\.weight \(32, 64\) for \(32, 32\)"
    ):
        load(copy)


def test_a_new_head_needs_the_weights_below_it(copy):
    config = loading.load_config(ModelFiles(str(copy)), num_labels=3)
    torch.manual_seed(0)
    model = load(copy, "classifier", config=config, new_head=True)
    assert model.score.weight.shape == (3, 32)
    with pytest.raises(StudentError, match=r"lacks weights: score\.weight"):
        load(copy, "classifier", config=config)
    weights = load_file(copy / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudentError, match=r"lacks weights: model\.norm\.weight"):
        load(copy, "classifier", config=config, new_head=True)


def test_weights_in_whole_numbers_are_refused(copy):
    edit(copy, dtype="int8")
    with pytest.raises(StudentError, match=r"cannot load its weights|type torch\.int8"):
        load(copy)


def test_an_unknown_dtype_is_a_setting(tiny_lm):
    with pytest.raises(ConfigError, match="`dtype` must be one of float64, float32, bfloat16, float16, got 'half'"):
        load(tiny_lm, dtype="half")


DAMAGE = {
    "config is cut": ("config.json", b'{"model_type"', "config.json"),
    "config is a list": ("config.json", b"[1]", "must hold a JSON object, got a list"),
    "config is not text": ("config.json", b"\xff\xfe", "not JSON"),
    "config is deep": ("config.json", b"[" * 100_000 + b"]" * 100_000, "nested deeper than 64 levels"),
    "config is deep inside": ("config.json", b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 64 levels"),
    "unknown architecture": ("config.json", b'{"model_type": "\\u001b[2J"}', "cannot load its `config.json`"),
    "no model type": ("config.json", b"{}", "cannot load its `config.json`"),
    "weights are empty": ("model.safetensors", b"", "damaged or truncated"),
    "weights claim a huge header": ("model.safetensors", b"\xff" * 7 + b"\x0f{}", "damaged or truncated"),
    "weights are text": ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "damaged or truncated"),
    "tokenizer is cut": ("tokenizer.json", b'{"version"', "cannot load its tokenizer"),
    "tokenizer is empty": ("tokenizer.json", b"{}", "cannot load its tokenizer"),
    "tokenizer is deep": ("tokenizer.json", b"[" * 100_000 + b"]" * 100_000, "cannot load its tokenizer"),
    "tokenizer's settings are a list": ("tokenizer_config.json", b"[1]", "cannot load its tokenizer"),
}


def everything(folder, role, error):
    files = ModelFiles(str(folder), None, role, error)
    loading.load_tokenizer(files)
    return loading.load_model(files, "causal-lm", "auto", "cpu")


@pytest.mark.parametrize("error", [StudentError, TeacherDownError, ScoringError, RouterError, ConfigError])
def test_the_error_is_of_the_callers_kind(copy, error):
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(error, match=f"The one `{copy}`: cannot load its weights"):
        everything(copy, "The one", error)


def test_a_panic_in_rust_is_an_error_and_an_interrupt_is_none():
    class PanicException(BaseException):  # tokenizers' own is no `Exception` either
        """Stands for `pyo3_runtime.PanicException`."""

    files = ModelFiles("org/model", None, "The student", StudentError)
    says = "cannot load its tokenizer: PanicException: index out of bounds"
    with pytest.raises(StudentError, match=says), reading(files, "its tokenizer"):
        raise PanicException("index out of bounds")
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), reading(files, "its tokenizer"):
            raise error


def test_the_stages_before_loading_say_the_same(copy):
    from persyn_hf.doctor.configuration import _model
    from persyn_hf.doctor.findings import Finding
    from persyn_hf.planning.models import describe_scorer

    (copy / "config.json").write_bytes(b"[" * 100_000)
    reason = "cannot load its `config.json`: it is nested deeper than 64 levels"
    found = _model("student", str(copy), None, True)
    assert found == Finding("student", "fail", f"The model `{copy}`: {reason}")
    with pytest.raises(ConfigError, match=f"The reward model `{copy}`: {reason}"):
        describe_scorer("reward model", str(copy), None, "auto", 100.0, 8192)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_raise_the_one_error(copy, damage):
    name, data, says = DAMAGE[damage]
    (copy / name).write_bytes(data)
    began = time.monotonic()
    with pytest.raises(StudentError, match=says) as caught:
        everything(copy, "The student", StudentError)
    assert time.monotonic() - began < 20
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_absent_files_raise_the_one_error(copy, name):
    (copy / name).unlink()
    with pytest.raises(StudentError, match=r"config\.json|model\.safetensors|tokenizer"):
        everything(copy, "The student", StudentError)


def test_truncated_weights_at_every_part(copy):
    whole = (copy / "model.safetensors").read_bytes()
    for size in (4, 8, 200, len(whole) // 2, len(whole) - 1):
        (copy / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(StudentError, match="a safetensors file is damaged or truncated"):
            load(copy)


def test_a_pickle_is_never_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(StudentError, match="has no weights in the safetensors format"):
        load(copy)
    edit(copy, transformers_weights="adapter_model.bin")
    with pytest.raises(StudentError, match=r"`transformers_weights` must name .*, got 'adapter_model\.bin'"):
        load(copy)


def test_shards_by_their_index(copy):
    model = load(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="40KB")
    assert len(list(copy.glob("model-*.safetensors"))) > 1
    assert torch.equal(load(copy).lm_head.weight, model.lm_head.weight)
    first = sorted(copy.glob("model-*.safetensors"))[0]
    first.rename(copy / "elsewhere.safetensors")
    with pytest.raises(StudentError, match=f"lacks the weight files {first.name}"):
        load(copy)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", "model.bin", 7])
def test_an_index_that_names_files_elsewhere(copy, place):
    (copy / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": place}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(StudentError, match=r"`weight_map` in model\.safetensors\.index\.json"):
        load(copy)


def test_adapters_load_on_their_base_and_are_bounded_by_it(tiny_lm, tmp_path):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(1)
    adapted = get_peft_model(load(tiny_lm, trainable=True), lora)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[3, 4, 5]])
    model = load(tmp_path / "adapter")
    torch.testing.assert_close(model(ids).logits, adapted.eval()(ids).logits)
    assert not torch.allclose(model(ids).logits, load(tiny_lm)(ids).logits)
    assert loading.load_config(ModelFiles(str(tmp_path / "adapter"))).hidden_size == 32
    shutil.copy(tiny_lm / "config.json", tmp_path / "adapter")
    with pytest.raises(StudentError, match="both a complete model and an adapter"):
        load(tmp_path / "adapter")


def test_a_configuration_of_special_numbers(copy):
    edit(copy, persyn={"strength": {"__float__": "Infinity"}, "teachers": [{"__float__": 1}]})
    assert read_config(ModelFiles(str(copy)))["persyn"] == {"strength": float("inf"), "teachers": [{"__float__": 1}]}


def test_a_huge_configuration_is_not_read(copy):
    (copy / "config.json").write_bytes(b" " * (16 * 2**20 + 1))
    with pytest.raises(ConfigError, match="it must have at most 16,777,216 bytes, got 16,777,217"):
        read_config(ModelFiles(str(copy)))


def test_a_strangers_text_moves_no_terminal():
    assert tame("a\x1b[2J\nb\u202ec\u2028d\r\n") == "a bc d"
    assert tame("x" * 9000, 500) == "x" * 500 + "…"


def test_a_saved_tokenizer_does_not_depend_on_its_use(tiny_lm, tmp_path):
    files = ModelFiles(str(tiny_lm))
    fresh, used = loading.load_tokenizer(files), loading.load_tokenizer(files)
    used(["one", "two words"], truncation=True, max_length=3, padding=True)
    before = used.backend_tokenizer.truncation
    loading.save_tokenizer(fresh, tmp_path / "fresh")
    loading.save_tokenizer(used, tmp_path / "used")
    assert used.backend_tokenizer.truncation == before and before["max_length"] == 3
    names = sorted(path.name for path in (tmp_path / "fresh").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "used").iterdir())
    assert "tokenizer.json" in names
    for name in names:
        assert (tmp_path / "fresh" / name).read_bytes() == (tmp_path / "used" / name).read_bytes()


def test_a_routers_labels_need_neither_torch_nor_transformers(tmp_path):
    config = {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "a", "1": "b"},
        "label2id": {"a": 0, "b": 1},
        "persyn": {"teachers": [{"name": "a"}, {"name": "b"}], "fallback": "b"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'tokenizers', 'safetensors'): sys.modules[name] = None\n"
        "from persyn_hf.routing.checkpoint import read_labels\n"
        "block, teachers = read_labels(sys.argv[1])\n"
        "print(block['fallback'], *teachers)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "b a b"
