"""Preference pairs on the Hub: a configuration of their own, beside what is there."""

from datasets import Dataset, load_dataset

from persyn_hf.run.pairs import preference_pairs, push_pairs
from tests.publishing.client import push
from tests.publishing.conftest import make_data


def made():
    rows = {
        "prompt_id": ["p", "p"],
        "prompt": ["Why?"] * 2,
        "teacher": ["a", "b"],
        "completion": ["So.", "Thus."],
        "finish_reason": ["stop"] * 2,
        "reward": [0.25, 1.0],
    }
    return preference_pairs(Dataset.from_dict(rows))


def test_pairs_stand_beside_the_training_set(hub, client):
    client(push, make_data("one", "two"), "me/data")
    url = client(push_pairs, made(), dataset_repo_id="me/data", private=True)
    assert "me/data" in url
    pairs = client(load_dataset, "me/data", "pairs", split="train")
    assert pairs["chosen"][:] == [[{"role": "assistant", "content": "Thus."}]] and pairs["margin"][:] == [0.75]
    assert len(client(load_dataset, "me/data", "default", split="train")) == 2
