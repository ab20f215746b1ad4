"""`persyn-hf push` on a whole run: a tiny student, three ways to ask it, a trained router."""

import json

import pytest
import yaml

from persyn_hf import RunConfig, run
from persyn_hf.demo.prompts import demo_prompts
from persyn_hf.errors import PublishError
from tests.publishing.client import command, load


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_push_of_a_run(hub, client, tiny_lm, models, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in demo_prompts(40)))
    shared = {"model": str(tiny_lm), "backend": "local", "dtype": "float32", "license": "mit"}
    price = {"price_per_million_prompt_tokens": 1.0, "price_per_million_completion_tokens": 10.0}
    settings = {
        "output_dir": str(tmp_path / "run"),
        "seed": 1,
        "prompts": {"source": str(prompts), "answer_column": "answer"},
        "probe": {"size": 20},
        "teachers": [
            {"name": "cold", **shared, **price, "sampling": {"temperature": 0.0, "max_tokens": 8}},
            {"name": "warm", **shared, **price, "sampling": {"temperature": 0.7, "max_tokens": 12}},
        ],
        "student": {"model": str(tiny_lm), "dtype": "float32"},
        "quality": {"verifier": "persyn_hf.demo.prompts:share_met"},
        "router": {"backbone": str(models / "all-MiniLM-L6-v2"), "folds": 3},
        "publish": {"keep_truncated": True, "language": ["en"]},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    run(RunConfig.from_dict(settings), progress=False)
    named = ["--dataset-repo-id", "me/data", "--router-repo-id", "me/router", "--quiet"]
    named += ["--set", "publish.license=mit"]
    with pytest.raises(PublishError, match="Name the dataset repository"):
        client(command, ["push", str(file), "--quiet"])
    assert "nothing was uploaded" in client(command, ["push", str(file), *named, "--dry-run"])
    assert hub.repos == {}
    printed = client(command, ["push", str(file), *named, "--set", "publish.tags=[v1.0]"])
    assert "dataset me/data: " in printed and "/datasets/me/data/commit/" in printed
    card = hub.dataset().text("README.md")
    assert (
        "figures/teachers.png" in card
        and "The answers cost \\$" in card
        and "generate-then-select would have cost about" in card
    )
    assert "[me/router]" not in card and 'model="me/router"' in card and hub.dataset().tags.keys() == {"v1.0"}
    assert "no changes" in client(command, ["push", str(file), *named])
    dataset, provenance, _, scores = client(load)
    assert len(dataset) == 40 and provenance.generations == 40 + 20 and len(scores[0]) == 2
    assert all(teacher.strength is not None and teacher.cost > 0 for teacher in provenance.teachers if teacher.rows)
