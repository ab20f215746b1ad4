"""Scoring with a student behind a server, in a process that has its tokenizer's packages and no torch."""

import json
import subprocess
import sys

import pytest

from persyn_hf.scoring.learnability import persyn_learnability
from tests.conftest import ROOT
from tests.scoring.servers import Student, serve

BATCH = {
    "prompt": ["hello the hello", "what?"],
    "completion": ["hello there hello", "no way"],
    "prompt_id": ["a", "b"],
}
CODE = """
import json, sys
sys.path.insert(0, "tests")
from without import HEAVY, hide
hide(set(HEAVY) - {"transformers", "tokenizers", "safetensors"})
from persyn_hf import persyn_learnability

print(json.dumps(persyn_learnability(json.loads(sys.argv[1]), **json.loads(sys.argv[2]))))
"""


def test_a_student_behind_a_server_needs_no_torch(llama):
    local = persyn_learnability(BATCH, student=llama)
    with serve(Student(llama)) as url:
        settings = {"student": llama, "student_endpoint": {"url": url, "api": "prompt_logprobs"}}
        call = [sys.executable, "-c", CODE, json.dumps(BATCH), json.dumps(settings)]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout.splitlines()[-1])
    assert remote["learnability"] == pytest.approx(local["learnability"], rel=1e-5)
    assert remote["student_revision"] == local["student_revision"]
