"""A short demo on the real weights."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_a_short_demo_runs_and_repeats_nothing(models, tmp_path):
    command = [
        sys.executable, "-c", "from persyn_hf.cli import main; main()", "demo", "--models", str(models),
        "--output-dir", str(tmp_path / "demo"), "--probe-size", "24", "--limit", "48",
    ]  # fmt: skip
    first = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert first.returncode == 0, first.stderr
    assert "storyteller" in first.stdout and "Held out: 24 probe prompts" in first.stdout
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("already finished") == 5
