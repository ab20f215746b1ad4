"""Where a router comes from: repository, revision, the cache; and who can read it without this package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset

from persyn_hf import PersynRouter, persyn_route, pin_router, train_router
from persyn_hf.models.device import worker_device
from tests.hub_server import TOKEN, Hub
from tests.routing.conftest import make_scored

PUSH_AND_LOAD = """
import json, sys
from huggingface_hub import HfApi
from persyn_hf import PersynRouter, pin_router, persyn_route
first, second = sys.argv[1:3]
api = HfApi()
api.create_repo("me/router", private=True)
old = api.upload_folder(folder_path=first, repo_id="me/router").oid
new = api.upload_folder(folder_path=second, repo_id="me/router").oid
router = PersynRouter.from_pretrained("me/router")
assert router.digest == new and router.fallback == "gamma", (router.digest, router.fallback)
assert PersynRouter.from_pretrained("me/router", revision=old).fallback is None
assert pin_router("me/router")["revision"] == new and pin_router("me/router", "main")["revision"] == new
row = {"prompt": "code code sea 1"}
assert persyn_route(row, **pin_router("me/router"))["route"] == "gamma"
assert persyn_route(row, router="me/router", revision=old)["route"] == "alpha"
print(json.dumps([old, new]))
"""

OFFLINE = """
import sys
from persyn_hf import PersynRouter, pin_router, persyn_route
old, new = sys.argv[1:3]
assert pin_router("me/router")["revision"] == new
assert PersynRouter.from_pretrained("me/router").fallback == "gamma"
assert persyn_route({"prompt": "code code sea 1"}, router="me/router", revision=old)["route"] == "alpha"
print("offline")
"""

STOCK = """
import json, sys
sys.modules["persyn_hf"] = None  # importing it is an error
from transformers import pipeline
classifier = pipeline("text-classification", model=sys.argv[1], top_k=None, device="cpu")
texts = json.loads(sys.argv[2])
print(json.dumps([[one["label"] for one in row] for row in classifier(texts, truncation=True)]))
"""


def in_python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=180,
        env={**os.environ, "HF_HUB_DISABLE_XET": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


@pytest.fixture
def changed(router_folder: str, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(router_folder, tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text())
    config["persyn"]["fallback"] = "gamma"
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_repository_revision_and_cache(router_folder: str, changed: Path, tmp_path: Path) -> None:
    home = str(tmp_path / "home")
    with Hub() as hub:
        commits = in_python(
            PUSH_AND_LOAD, router_folder, str(changed), HF_ENDPOINT=hub.endpoint, HF_HOME=home, HF_TOKEN=TOKEN
        )
    assert in_python(OFFLINE, *json.loads(commits), HF_HUB_OFFLINE="1", HF_HOME=home) == "offline"


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny_llama", "chat_llama"])
def test_stock_transformers_rank_alike_with_a_decoder(
    backbone: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    train_router(make_scored(60), request.getfixturevalue(backbone), "s", tmp_path / "r", fallback="none")
    router = PersynRouter.from_pretrained(tmp_path / "r")
    texts = [f"{topic} {topic} {number}" for topic in ("code", "poem", "tax") for number in range(4)]
    rankings = json.loads(in_python(STOCK, str(tmp_path / "r"), json.dumps(texts)))
    ours = [[router.teachers[index] for index in row] for row in np.argsort(-router.scores(texts), axis=1)]
    assert rankings == ours and len({tuple(row) for row in ours}) > 1


def test_a_router_on_the_real_minilm(models: Path, tmp_path: Path) -> None:
    train_router(make_scored(80), str(models / "all-MiniLM-L6-v2"), "s", tmp_path / "r")
    router = PersynRouter.from_pretrained(tmp_path / "r")
    texts = ["code code law dog 3", "poem poem law dog 3", "poem poem " + "sea " * 700]
    assert router.fallback is None
    assert router.routes(router.scores(texts[:2])) == ["alpha", "beta"]
    alone = np.concatenate([router.scores([text]) for text in texts])
    np.testing.assert_allclose(router.scores(texts), alone, atol=2e-3 * np.abs(alone).max())
    rankings = json.loads(in_python(STOCK, str(tmp_path / "r"), json.dumps(texts)))
    assert [row[0] for row in rankings] == router.routes(router.scores(texts))


def test_no_stale_results_from_the_cache(router_folder: str, changed: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"code code sea {n}"}) + "\n" for n in range(4)))
    prompts = load_dataset("json", data_files=str(source), split="train", cache_dir=str(tmp_path / "cache"))
    place = Path(shutil.copytree(router_folder, tmp_path / "place"))

    def routed() -> list:
        by_name = prompts.map(persyn_route, batched=True, fn_kwargs=pin_router(place))
        return [by_name, prompts.map(PersynRouter.from_pretrained(place), batched=True)]

    first, again = routed(), routed()
    assert [table["route"][:] for table in first] == [["alpha"] * 4] * 2
    assert [t._fingerprint for t in first] == [t._fingerprint for t in again]
    assert [t.cache_files for t in first] == [t.cache_files for t in again] and first[0].cache_files
    shutil.copy(changed / "config.json", place / "config.json")
    assert [table["route"][:] for table in routed()] == [["gamma"] * 4] * 2


def test_a_process_uses_the_gpu_of_its_rank(router_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    loaded = PersynRouter.from_pretrained(router_folder, device="cpu")

    def load(name: str, revision: str | None, device: str | None, dtype: str | None) -> PersynRouter:
        asked.append(device)
        return loaded

    monkeypatch.setattr(PersynRouter, "from_pretrained", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank in (0, 1, 2, None):
        persyn_route({"prompt": ["code"]}, rank, router=router_folder)
    persyn_route({"prompt": ["code"]}, 1, router=router_folder, device="cpu")
    assert asked == ["cuda:0", "cuda:1", "cuda:0", None, "cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert worker_device(None, 1) is None


def test_the_batch_does_not_decide(router_folder: str) -> None:
    texts = [" ".join(["code"] * (1 + 7 * n % 40)) for n in range(60)]
    small = PersynRouter.from_pretrained(router_folder, token_budget=64).scores(texts)
    large = PersynRouter.from_pretrained(router_folder, token_budget=100_000).scores(texts)
    np.testing.assert_allclose(small, large, atol=1e-4)
    assert PersynRouter.from_pretrained(router_folder, device="cpu").token_budget == 1024
