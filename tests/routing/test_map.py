from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dill
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher

from persyn_hf.errors import DataError, MissingColumnError, RouterCheckpointError, RouterError
from persyn_hf.routing.map_function import persyn_route, pin_router
from persyn_hf.routing.router import PersynRouter

TEXTS = ["code code sea 1", "poem poem sea 2", "poem poem 7 sun"]


@pytest.fixture
def prompts() -> Dataset:
    return Dataset.from_dict({"prompt": TEXTS})


def test_rows_batches_strings_and_messages_agree(router_folder: str, prompts: Dataset) -> None:
    router = PersynRouter.from_pretrained(router_folder)
    messages = Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in TEXTS])
    tables = [
        prompts.map(persyn_route, batched=True, fn_kwargs={"router": router_folder}),
        prompts.map(persyn_route, fn_kwargs={"router": router_folder}),
        prompts.map(router, batched=True),
        prompts.map(router),
        messages.map(router, batched=True),
        messages.map(router),
        DatasetDict(train=prompts).map(router, batched=True)["train"],
        prompts.rename_column("prompt", "q").map(persyn_route, fn_kwargs=pin_router(router_folder, prompt_column="q")),
    ]
    for table in tables:
        assert table["route"][:] == ["alpha", "beta", "beta"]
        assert str(table.features["route_scores"]) == "List(Value('float32'))"
        np.testing.assert_allclose(table["route_scores"][:], router.scores(TEXTS), atol=1e-4)
    stream = list(prompts.to_iterable_dataset().map(router, batched=True))
    assert [row["route"] for row in stream] == ["alpha", "beta", "beta"]


def test_router_from_environment(router_folder: str, prompts: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSYN_ROUTER", raising=False)
    with pytest.raises(RouterError, match="PERSYN_ROUTER"):
        persyn_route({"prompt": "code"})
    monkeypatch.setenv("PERSYN_ROUTER", router_folder)
    assert persyn_route({"prompt": "code code sea 1"})["route"] == "alpha"
    with pytest.raises(MissingColumnError, match="`prompt`"):
        persyn_route({"text": "code"})
    with pytest.raises(DataError, match="empty"):
        persyn_route({"prompt": ["code", "  "]})


def test_hash_is_stable_across_processes_and_after_use(router_folder: str) -> None:
    router = PersynRouter.from_pretrained(router_folder)
    before = Hasher.hash(router)
    router.scores(TEXTS)
    assert Hasher.hash(router) == before
    again = dill.loads(dill.dumps(router))  # noqa: S301
    assert Hasher.hash(again) == before and again.teachers == router.teachers
    code = (
        "import sys; from persyn_hf import PersynRouter; from datasets.fingerprint import Hasher\n"
        "print(Hasher.hash(PersynRouter.from_pretrained(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, router_folder], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.split()[-1] == before


def test_changed_checkpoint_is_noticed(router_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "router"
    shutil.copytree(router_folder, folder)
    old, old_hash = pin_router(folder), Hasher.hash(PersynRouter.from_pretrained(folder))
    config = json.loads((folder / "config.json").read_text())
    config["persyn"]["fallback"] = "gamma"
    (folder / "config.json").write_text(json.dumps(config))
    assert pin_router(folder) != old
    assert Hasher.hash(PersynRouter.from_pretrained(folder)) != old_hash
    assert persyn_route({"prompt": "code"}, **pin_router(folder))["route"] == "gamma"
    with pytest.raises(RouterCheckpointError, match="has changed"):
        persyn_route({"prompt": "code"}, **old)


def test_two_workers_after_the_parent_used_the_model(router_folder: str, tmp_path: Path) -> None:
    code = (
        "import sys; from datasets import Dataset\n"
        "from persyn_hf import PersynRouter, persyn_route, pin_router\n"
        "router = PersynRouter.from_pretrained(sys.argv[1])\n"
        "texts = [f'code sea {n % 10}' for n in range(400)]\n"
        "router.scores(texts)\n"
        "data = Dataset.from_dict({'prompt': texts})\n"
        "a = data.map(router, batched=True, num_proc=2)\n"
        "b = data.map(persyn_route, batched=True, num_proc=2, fn_kwargs=pin_router(sys.argv[1]))\n"
        "assert a['route'][:] == b['route'][:]; print('done', len(a))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, router_folder], capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split()[-2:] == ["done", "400"]
