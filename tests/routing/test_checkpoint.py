from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from persyn_hf.errors import ConfigError, RouterCheckpointError
from persyn_hf.routing.router import PersynRouter


@pytest.fixture
def copy(router_folder: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(router_folder, tmp_path / "router"))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, match: str) -> None:
    with pytest.raises(RouterCheckpointError, match=match) as caught:
        PersynRouter.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_save_and_load(router_folder: str, tmp_path: Path) -> None:
    router = PersynRouter.from_pretrained(router_folder)
    router.save_pretrained(tmp_path / "again")
    again = PersynRouter.from_pretrained(tmp_path / "again")
    assert again.metadata == router.metadata and again.teachers == router.teachers
    assert (again.scores(["code sea"]) == router.scores(["code sea"])).all()
    assert not list((tmp_path / "again").glob("*.bin"))


def test_missing_head(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, copy / "model.safetensors", {"format": "pt"}
    )
    refused(copy, "classifier.bias")


def test_truncated_weights(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(copy, "truncated")


def test_no_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    refused(copy, "weights")


def test_labels_against_block(copy: Path) -> None:
    edit(copy, lambda c: c["persyn"]["teachers"].reverse())
    refused(copy, "do not match")


def test_no_block(copy: Path) -> None:
    edit(copy, lambda c: c.pop("persyn"))
    refused(copy, "no `persyn` block")


def test_unknown_fallback(copy: Path) -> None:
    edit(copy, lambda c: c["persyn"].update(fallback="nobody"))
    refused(copy, "nobody")


def test_another_model_type(copy: Path) -> None:
    edit(copy, lambda c: c.update(architectures=["BertModel"]))
    refused(copy, "sequence classifier")


def test_broken_config(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    refused(copy, "config.json")


def test_nothing_there() -> None:
    with pytest.raises(ConfigError, match="no/such"):
        PersynRouter.from_pretrained("no/such")
