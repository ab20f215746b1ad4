"""Nothing but `persyn_hf.models` loads a checkpoint, or asks torch what devices there are."""

import ast
from pathlib import Path

import pytest

import persyn_hf

PACKAGE = Path(persyn_hf.__file__).parent
#: Attributes by which torch tells devices, and numbers of threads, which belong to the whole process.
DEVICES = {"cuda", "mps", "is_available", "device_count", "set_num_threads", "get_num_threads"}


def offences(source: str) -> list[str]:
    """What a file does that only `models/` may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
            if not (isinstance(node.value, ast.Name) and node.value.id == "PersynRouter"):
                found.append(f"{ast.unparse(node)} in line {node.lineno}")
        elif isinstance(node, ast.Attribute) and node.attr in DEVICES:
            found.append(f"{ast.unparse(node)} in line {node.lineno}")
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if node.module.startswith("torch") and (names & DEVICES or node.module.startswith("torch.cuda")):
                found.append(f"{ast.unparse(node)} in line {node.lineno}")
            if node.module == "transformers" and any(name.startswith("Auto") for name in names):
                found.append(f"{ast.unparse(node)} in line {node.lineno}")
        elif isinstance(node, ast.Import) and any(alias.name.startswith("torch.cuda") for alias in node.names):
            found.append(f"{ast.unparse(node)} in line {node.lineno}")
        elif isinstance(node, ast.Constant) and node.value == "from_pretrained":
            found.append(f"'from_pretrained' by name in line {node.lineno}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "AutoModel.from_pretrained(name)",
        "loader = transformers.AutoConfig.from_pretrained",
        "getattr(AutoModel, 'from_pretrained')(name)",
        "from transformers import AutoTokenizer",
        "torch.cuda.is_available()",
        "torch.backends.mps.is_available()",
        "from torch import cuda",
        "from torch.cuda import device_count",
        "import torch.cuda as gpus",
        "torch.set_num_threads(1)",
    ],
)
def test_what_counts_as_another_way(source):
    assert offences(source) != []


def test_our_own_router_is_no_other_way():
    assert offences("router = PersynRouter.from_pretrained(folder)\nfrom transformers import GenerationConfig") == []


def test_nothing_outside_models_loads_or_asks_for_devices():
    wrong = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] != "models":
            found = offences(path.read_text(encoding="utf-8"))
            if found:
                wrong[str(path.relative_to(PACKAGE))] = found
    assert wrong == {}


def test_there_is_one_lock_for_loading():
    """Every `from_pretrained` in `models/` stands inside `with LOADING`."""
    for path in (PACKAGE / "models").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        locked = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.With) and any("LOADING" in ast.unparse(item) for item in node.items)
            for inner in ast.walk(node)
        }
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"]
        assert [ast.unparse(call) for call in calls if call not in locked] == []
