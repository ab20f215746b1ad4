"""A student in several processes: which answers go together, and scores that do not depend on how many there are."""

import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from persyn_hf.config import Student
from persyn_hf.errors import ConfigError
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring import processes
from persyn_hf.scoring.learnability import load_scorer, persyn_learnability
from persyn_hf.scoring.processes import chosen_devices, portions

ROWS = {
    "prompt": ["hello the hello", "what is the the?", "no"] * 4,
    "completion": ["hello there hello", "the hell " * 8, "yes", "no\n\nway, the hell " * 4] * 3,
}


def test_portions_keep_a_prompt_together_and_like_lengths_beside_each_other(monkeypatch):
    monkeypatch.setattr(processes, "_PORTION", 30)
    answers = [Rendered((row % 3,), tuple(range(length))) for row, length in enumerate((5, 20, 3, 4, 9, 2))]
    assert list(portions(answers)) == [[1, 4], [0, 3, 2, 5]]
    assert list(portions([])) == []


def test_devices_are_all_gpus_or_those_that_are_named(monkeypatch, llama):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert chosen_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    assert chosen_devices(["cuda:1", "cpu"]) == ["cuda:1", "cpu"]
    assert chosen_devices(None) == []
    with pytest.raises(ConfigError, match=r"cuda:9.*3 CUDA GPUs"):
        chosen_devices(["cuda:9"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert chosen_devices("all") == []


def test_one_device_is_scored_in_this_process(llama):
    alone = persyn_learnability(ROWS, student=llama)["learnability"]
    assert persyn_learnability(ROWS, student=llama, devices=["cpu"])["learnability"] == alone
    assert persyn_learnability(ROWS, student=llama, devices="all" if not torch.cuda.is_available() else ["cpu"])[
        "learnability"
    ] == pytest.approx(alone, abs=1e-4)


def test_what_does_not_go_together_is_refused(llama):
    with pytest.raises(ConfigError, match="give `device` or `devices`, not both"):
        persyn_learnability(ROWS, student=llama, device="cpu", devices="all")
    with pytest.raises(ConfigError, match="with_rank"):
        load_scorer(Student(model=llama, devices="all"), rank=0)
    with pytest.raises(ConfigError, match="`devices` cannot be set for a student behind a server"):
        persyn_learnability(ROWS, student=llama, student_endpoint="http://127.0.0.1:1", devices="all")


@pytest.mark.slow
def test_scores_do_not_depend_on_how_many_processes_there_are(llama, monkeypatch):
    monkeypatch.setattr(processes, "_PORTION", 100)
    table = ROWS | {"completion": [text + " hello" * (row % 4) for row, text in enumerate(ROWS["completion"])]}
    found = [
        persyn_learnability(table, student=llama, devices=["cpu"] * count, metrics=("mean-logprob", "rsr"))
        for count in (2, 3)
    ]
    assert found[0]["learnability"] == found[1]["learnability"]
    assert found[0]["rsr"] == found[1]["rsr"]
    alone = persyn_learnability(table, student=llama)["learnability"]
    assert found[0]["learnability"] == pytest.approx(alone, abs=1e-5)
    processes._start.cache_clear()


SPAWNED = """
import sys
import multiprocess
from datasets import Dataset
from persyn_hf import persyn_learnability

if __name__ == "__main__":
    multiprocess.set_start_method("spawn")
    table = Dataset.from_dict({"prompt": ["hello"] * 4, "completion": ["a", "the hell", "no", "yes"]})
    how = {"batched": True, "num_proc": 2, "with_rank": True, "fn_kwargs": {"student": sys.argv[1]}}
    print(table.map(persyn_learnability, **how)["learnability"][:])
"""


@pytest.mark.slow
def test_map_with_rank_works_in_spawned_workers(llama, tmp_path):
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, str(script), llama], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {"prompt": ["hello"] * 4, "completion": ["a", "the hell", "no", "yes"]}
    expected = Dataset.from_dict(rows).map(persyn_learnability, batched=True, fn_kwargs={"student": llama})
    found = [float(part) for part in done.stdout.splitlines()[-1].strip("[]").split(",")]
    assert found == pytest.approx(expected["learnability"][:], abs=1e-5)
