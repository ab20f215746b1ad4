"""One table of policies: what can be chosen, what it is called, and that nothing else names it."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import persyn_hf
from persyn_hf.config import (
    DRAWN,
    HELD_OUT_POLICIES,
    POLICIES,
    POLICY_LABELS,
    Allocation,
    AllocationPolicy,
    Compare,
    Policy,
    policy_label,
    read_settings,
)
from persyn_hf.errors import ConfigError


def test_every_policy_has_one_label_and_every_label_one_policy():
    assert set(POLICIES) == set(get_args(Policy))
    assert len(set(POLICIES.values())) == len(POLICIES)
    assert all(POLICY_LABELS[key] == label for key, label in POLICIES.items())
    # What a router's checkpoint calls `router` is the policy `persyn`; every other key is something else.
    assert POLICY_LABELS["router"] == POLICY_LABELS["persyn"]
    assert len(set(POLICY_LABELS.values())) == len(POLICY_LABELS) - 1


def test_what_checkpoints_store_has_a_label():
    assert set(HELD_OUT_POLICIES) == {"router", "best_single", "random", "oracle", "knn"}  # a stored format
    assert set(HELD_OUT_POLICIES) <= set(POLICY_LABELS)


def test_an_allocation_takes_every_policy_but_the_oracle():
    assert set(get_args(Policy)) - set(get_args(AllocationPolicy)) == {"oracle"}
    assert set(DRAWN) < set(get_args(AllocationPolicy))
    for policy in get_args(AllocationPolicy):
        assert read_settings(Allocation, {"policy": policy, "student_family": "Small"}, "here").policy == policy
    with pytest.raises(ConfigError, match="'persyn', 'strong', 'mix', 'family-strong', 'car' or 'random'"):
        read_settings(Allocation, {"policy": "oracle"}, "here")


def test_a_comparison_takes_every_policy_in_one_spelling():
    base = {"students": [{"name": "s", "model": "m"}], "held_out": {"source": "p.jsonl", "column": "prompt"}}
    assert read_settings(Compare, {**base, "policies": list(POLICIES)}, "here").policies == tuple(POLICIES)
    with pytest.raises(ConfigError, match="'family-strong'"):
        read_settings(Compare, {**base, "policies": ["family_strong"]}, "here")


def test_a_policy_of_the_caller_is_its_own_label():
    assert policy_label("family-strong") == "Family-Strong"
    assert policy_label("my-own") == "my-own"


def test_no_other_module_writes_a_label():
    # A key that is its own label ("oracle") may stand anywhere.
    labels = set(POLICY_LABELS.values()) - set(POLICY_LABELS)
    found = []
    for path in Path(persyn_hf.__file__).parent.rglob("*.py"):
        if path.name == "policies.py" and path.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in labels:
                found.append(f"{path.name}: {node.value}")
    assert found == []


@pytest.mark.parametrize(("page", "known"), [("students.md", POLICIES), ("allocation.md", get_args(Policy)[1:])])
def test_pages_list_every_policy_with_its_label(page, known):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    rows = [
        [cell.strip("` ") for cell in line.split("|")[1:3]] for line in text.splitlines() if line.startswith("| `")
    ]
    listed = {key: label for key, label in rows if key in get_args(Policy)}
    assert set(listed) == set(known)
    if page == "students.md":
        assert listed == POLICIES
