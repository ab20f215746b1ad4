"""The whole path against a real server: `transformers serve` with the real SmolLM2 weights."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from persyn_hf.generation.generate import generate_parallel
from tests.generation.servers import free_port


@pytest.fixture(scope="module")
def served(models, tmp_path_factory):
    folder, port = str(models / "SmolLM2-135M-Instruct"), free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [
        Path(sys.executable).parent / "transformers",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while True:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            try:
                if httpx2.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(0.3)
        yield folder, url
    finally:
        server.terminate()
        server.wait(20)


def test_a_real_server_answers_a_real_question(served, tmp_path):
    folder, url = served
    sampling = {"temperature": 0.0, "max_tokens": 8}
    teachers = [
        {"name": "plain", "model": folder, "endpoint": url, "sampling": sampling},
        {"name": "poet", "model": folder, "endpoint": url, "sampling": sampling, "system_prompt": "You are a poet."},
    ]
    table = generate_parallel(
        ["What is the capital of France?"], teachers, ledger=tmp_path / "ledger.sqlite", progress=False
    )
    assert table["error"][:] == [None, None]
    assert table["completion"][0] == "The capital of France is Paris."
    assert table["finish_reason"][0] in ("stop", "length")  # it says length where the end is the last token allowed
    assert table["completion_tokens"][0] == 8
    assert table["prompt_tokens"][0] > 20
    again = generate_parallel(
        ["What is the capital of France?"], teachers, ledger=tmp_path / "ledger.sqlite", progress=False
    )
    assert again.to_list() == table.to_list()
