"""The examples in docstrings do what they say. Blocks marked `+SKIP` need a network or a model, and stay."""

import doctest
import importlib
from pathlib import Path

import pytest

import persyn_hf

PACKAGE = Path(persyn_hf.__file__).parent
MODULES = [
    ".".join(("persyn_hf", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0, f"of {tried} lines; python -m doctest shows them"


def test_most_examples_run():
    lines = [line.strip() for path in PACKAGE.rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    examples = [line for line in lines if line.startswith(">>> ")]
    assert len(examples) > 40 and sum("+SKIP" in line for line in examples) < len(examples) / 2
