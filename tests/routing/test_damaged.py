"""Strangers' routers: whatever is wrong with one is a `RouterCheckpointError`, in seconds, and clean on a terminal."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from persyn_hf import PersynRouter, persyn_route, train_router
from persyn_hf.errors import DataError, RouterCheckpointError
from persyn_hf.routing.checkpoint import read_labels
from tests.routing.conftest import make_scored


@pytest.fixture
def copy(router_folder: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(router_folder, tmp_path / "router"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "config.json") -> None:
    config = json.loads((folder / name).read_text())
    change(config)
    (folder / name).write_text(json.dumps(config))


def rename(folder: Path, names: list[str]) -> None:
    """Gives the router's teachers other names, everywhere."""

    def change(config: dict[str, Any]) -> None:
        config["persyn"]["teachers"] = [{"name": name} for name in names]
        config["id2label"] = {str(place): name for place, name in enumerate(names)}
        config["label2id"] = {name: place for place, name in enumerate(names)}

    edit(folder, change)


def refused(folder: Path, says: str) -> None:
    began = time.monotonic()
    with pytest.raises(RouterCheckpointError, match=says) as caught:
        PersynRouter.from_pretrained(folder, device="cpu").scores(["code"])
    message = str(caught.value)
    assert time.monotonic() - began < 20
    assert str(folder) in message and message.isprintable() and len(message) < 1500


BLOCK = {
    "max_length": ["x", -1, 0, 1.5, [64], {"a": 1}, True],
    "prompt_column": [7, ["prompt"], {}, "pro\x1b[2Jmpt"],
    "student": [7, ["org/student"], "org/\x07student"],
    "teachers": [None, "alpha", [], ["alpha", "beta", "gamma"], [{"model": "m"}] * 3, {"name": "alpha"}],
    "fallback": ["nobody", 7, ["alpha"], {"name": "alpha"}],
    "left_out": ["x", [], {"a": 3}, {"a": "\x1b[2J"}, {"\x1b[2J": "a"}],
    "probe_prompts": ["x", [], 3],
    "probe_means": ["x", [], {"reward": 3}, {"reward": {"alpha": "high"}}],
    "held_out": ["x", [1]],
    "reward": ["x", [1]],
    "scale": ["x", [1.0], True],
    "seed": ["x", 0.5],
    "library_version": [1, {}],
    "roster": ["x", {}],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BLOCK.items() for value in values])
def test_a_block_of_other_types(copy: Path, key: str, value: Any) -> None:
    edit(copy, lambda config: config["persyn"].update({key: value}))
    refused(copy, rf"persyn(\.|.+){key}|`id2label` has")
    with pytest.raises(RouterCheckpointError):  # a router behind a server is known by this file alone
        read_labels(str(copy))


@pytest.mark.parametrize("key", ["model", "revision", "family", "license", "system_prompt", "sampling"])
def test_teachers_described_by_other_types(copy: Path, key: str) -> None:
    for value in ([1], 7, True):
        edit(copy, lambda config, value=value: config["persyn"]["teachers"][1].update({key: value}))
        refused(copy, rf"`persyn\.teachers\[1\]\.{key}` in `config\.json` must be")


CONFIG = {
    "architectures": [None, "x", 7, [7], {"a": 1}, ["BertModel"]],
    "id2label": [None, 7, [], ["alpha", "beta", "gamma"], {"0": "alpha"}, {"0": ["alpha"], "1": "beta", "2": "gamma"}],
    "label2id": [None, [], {"alpha": "0", "beta": 1, "gamma": 2}, {"alpha": 0}],
    "model_type": [None, 7, "x", ["bert"], "\x1b]0;title\x07"],
    "num_hidden_layers": [100_000, 10**12, "x", [2]],
    "hidden_size": [0, -1, 10**7, "x"],
    "vocab_size": [10**12, "x", 3],
    "num_attention_heads": [0, 7, "x"],
    "max_position_embeddings": [10**12, "x"],
    "hidden_act": [None, "x", 7],
    "dtype": ["x", "int8", 7],
    "quantization_config": ["x", [1]],
    "attn_implementation": ["kernels-community/flash-attn", "x"],
    "transformers_weights": ["../model.safetensors", "model.bin", 7],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in CONFIG.items() for value in values])
def test_a_configuration_that_cannot_be(copy: Path, key: str, value: Any) -> None:
    edit(copy, lambda config: config.update({key: value}))
    refused(copy, "The router")


DEEP = b"[" * 100_000 + b"]" * 100_000
FILES = {
    "config.json": [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", DEEP, b'{"a":' * 100_000 + b"1" + b"}" * 100_000],
    "tokenizer.json": [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", DEEP],
    "tokenizer_config.json": [b"{", b"null", b"[]", DEEP, b'{"model_max_length": "x"}', b'{"model_max_length": 0}'],
    "model.safetensors": [b"", b"{}", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"{}", b"\x01\0\0\0\0\0\0\0{"],
    "adapter_config.json": [b"{}", b"x"],
}


@pytest.mark.parametrize(("name", "data"), [(name, data) for name, datas in FILES.items() for data in datas])
def test_files_that_are_damaged(copy: Path, name: str, data: bytes) -> None:
    (copy / name).write_bytes(data)
    refused(copy, "The router")


@pytest.mark.parametrize("levels", [70, 500, 5_000])
def test_a_block_that_is_deep(copy: Path, levels: int) -> None:
    text = (copy / "config.json").read_text().rstrip().removesuffix("}")
    (copy / "config.json").write_text(f'{text}, "more": {"[" * levels}{"]" * levels}}}')
    refused(copy, "nested deeper than 64 levels")


@pytest.mark.parametrize("name", ["al\x1b[2Jpha", "al\x07pha", "al\npha", "al\x9bpha", "al\u2028pha", "", "  "])
def test_names_that_move_a_terminal_are_refused(copy: Path, name: str) -> None:
    rename(copy, [name, "beta", "gamma"])
    refused(copy, "must be texts without control characters")


def test_names_that_stand_twice_are_refused(copy: Path) -> None:
    rename(copy, ["alpha", "beta", "alpha"])
    refused(copy, r"must be unique, got \['alpha'\] more than once")


def test_names_with_markup_or_in_any_script_are_names(copy: Path) -> None:
    names = ["<script>alert(1)</script>", "a[/red] \u202eahpla", "学生 é 👩‍🔬"]
    place = PersynRouter.from_pretrained(copy, device="cpu").teachers.index("alpha")
    rename(copy, names)
    router = PersynRouter.from_pretrained(copy, device="cpu")
    assert router.teachers == names
    assert persyn_route({"prompt": "code code sea 1"}, router=str(copy))["route"] == names[place]


def test_a_tokenizer_for_another_model(copy: Path) -> None:
    edit(copy, lambda tokens: tokens["model"]["vocab"].update({"extra": 50}), "tokenizer.json")
    refused(copy, "its tokenizer has the token id 50, but its model has only 50 embeddings")


def test_a_prompt_is_never_longer_than_the_model_reads(copy: Path) -> None:
    edit(copy, lambda config: config["persyn"].update(max_length=10**9))
    edit(copy, lambda settings: settings.update(model_max_length=10**30), "tokenizer_config.json")
    router = PersynRouter.from_pretrained(copy, device="cpu")
    assert router.tokenizer.model_max_length == 64
    assert router.scores(["code " * 500]).shape == (1, 3)


def test_no_router_is_trained_for_names_that_none_may_have(tiny_bert: str, tmp_path: Path) -> None:
    scored = make_scored(40)
    renamed = Dataset.from_list([row | {"teacher": row["teacher"].replace("a", "\x1b[2J")} for row in scored])
    with pytest.raises(DataError, match=r"must be texts without control characters, got .*\\x1b\[2J"):
        train_router(renamed, tiny_bert, "s", tmp_path / "router")
    assert not (tmp_path / "router").exists()


def test_what_is_saved_does_not_depend_on_what_was_routed(router_folder: str, tmp_path: Path) -> None:
    router = PersynRouter.from_pretrained(router_folder, device="cpu")
    router.save_pretrained(tmp_path / "before")
    router.scores(["code " * 300, "sea"])
    router.save_pretrained(tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        data = (tmp_path / "after" / name).read_bytes()
        assert data == (tmp_path / "before" / name).read_bytes()
    assert json.loads((Path(router_folder) / "tokenizer.json").read_text())["truncation"] is None
