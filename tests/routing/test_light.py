"""Routing through a server in a process that has neither torch nor transformers."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset

from persyn_hf import PersynRouter, persyn_route, pin_router
from persyn_hf.errors import RouterCheckpointError
from persyn_hf.routing.checkpoint import load, read_labels
from tests.conftest import ROOT
from tests.routing.tei_server import TeiDouble, served
from tests.routing.test_tei import TEXTS

CODE = """
import json, sys
sys.path.insert(0, "tests")
from without import hide
hide()
from datasets import Dataset
from persyn_hf import persyn_route, pin_router

folder, url, texts = json.loads(sys.argv[1])
prompts = Dataset.from_dict({"prompt": texts})
for arguments in ({"endpoint": url}, pin_router(folder, endpoint=url)):
    print(json.dumps(prompts.map(persyn_route, batched=True, fn_kwargs=arguments)["route"][:]))
"""


def test_routes_are_those_of_a_full_installation(router_folder: str) -> None:
    here = Dataset.from_dict({"prompt": TEXTS}).map(persyn_route, batched=True, fn_kwargs=pin_router(router_folder))
    with served(TeiDouble(PersynRouter.from_pretrained(router_folder))) as double:
        call = [sys.executable, "-c", CODE, json.dumps([router_folder, double.url, TEXTS])]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    routes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert routes == [here["route"][:]] * 2 and set(routes[0]) == {"alpha", "beta"}


def test_labels_read_without_transformers_are_those_of_the_checkpoint(router_folder: str) -> None:
    block, teachers = read_labels(router_folder)
    loaded = load(router_folder)
    assert teachers == loaded.teachers and len(teachers) == 3
    assert block == loaded.persyn


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "needs a `config.json`, but there is none in the folder"),
        ("{", "cannot load its `config.json`: it is not JSON"),
        ("[]", "cannot load its `config.json`: it must hold a JSON object, got a list"),
        ('{"id2label": {"one": "a"}}', r"not a persyn router \(architectures: \[\], model type: None\)"),
        ('{"model_type": "bert"}', r"not a persyn router \(architectures: \[\], model type: 'bert'\)"),
        ('{"persyn": {"teachers": [{"name": "a"}]}}', r"names the architectures \[\]"),
        (
            '{"persyn": {"teachers": [{"name": "a"}]}, "architectures": ["BertForSequenceClassification"],'
            ' "id2label": {"0": "b"}, "label2id": {"b": 0}}',
            r"`id2label` has \{'0': 'b'\}, .*`persyn.teachers` has \['a'\]",
        ),
    ],
)
def test_a_damaged_configuration_is_refused_with_its_reason(tmp_path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RouterCheckpointError, match=said):
        read_labels(str(tmp_path))
