"""Pushes through the real client libraries to a Hub on loopback; they read its address at import: so subprocesses."""

import os
import subprocess
import sys

import pytest

from tests.hub_server import TOKEN, Hub

PUSH = """
import sys
from datasets import load_from_disk
from persyn_hf import push_personalized
from tests.publishing.conftest import TinyRouter
print(push_personalized(load_from_disk(sys.argv[1]), "me/data", router=TinyRouter(), router_repo_id="me/router"))
"""
LOAD = """
import sys
from datasets import load_dataset
from transformers import pipeline
data = load_dataset("me/data", split="train")
print(len(data), data[0]["completion"][0]["content"])
router = pipeline("text-classification", model="me/router", top_k=None)
print(sorted(label["label"] for label in router(["Write about the sea"])[0]))
assert "persyn_hf" not in sys.modules
"""


@pytest.fixture
def hub():
    with Hub() as running:
        yield running


def _python(hub, tmp_path, code, *arguments):
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.getcwd(),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


def test_push_and_load_in_a_process_without_us(hub, answers, tmp_path):
    answers.save_to_disk(tmp_path / "answers")
    done = _python(hub, tmp_path, PUSH, tmp_path / "answers")
    assert done.returncode == 0, done.stderr
    data, router = hub.repos["dataset", "me/data"], hub.repos["model", "me/router"]
    assert data.private and router.private
    assert len(data.commits) == 2 and len(router.commits) == 2  # one commit each after the empty first one
    assert b'load_dataset("me/data"' in data.files["README.md"]
    (shard,) = [name for name in data.files if name.endswith(".parquet")]
    assert shard.startswith("data/train-00000-of-00001-") and set(data.files) >= {"README.md", "persyn.png"}
    loaded = _python(hub, tmp_path, LOAD)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines()[-2:] == ["2 One.", "['terse', 'wordy']"]


def test_a_token_without_write_access_is_an_error_that_says_so(hub, answers, tmp_path):
    hub.refuse_writes = True
    answers.save_to_disk(tmp_path / "answers")
    done = _python(hub, tmp_path, PUSH, tmp_path / "answers")
    assert done.returncode == 1 and "PublishError: Pushing the model `me/router` failed" in done.stderr
    assert hub.repos == {} and TOKEN not in done.stderr
