"""The floors of the house, its public names, and what importing it must not do."""

import ast
import subprocess
import sys
from pathlib import Path

import persyn_hf

PACKAGE = Path(persyn_hf.__file__).parent

# A module may import from its own floor's allowance only. Siblings on one floor never import each other.
GROUND = {"errors", "columns", "config", "checkpoints", "prompts", "workers", "__init__"}
ALLOWED = {
    "errors": set(),
    "columns": {"errors"},
    "config": {"errors"},
    "checkpoints": {"errors"},
    "workers": set(),
    "prompts": {"errors", "columns", "config"},
    "generation": GROUND,
    "scoring": GROUND,
    "routing": GROUND,
    # Publishing shows the scores as the reward reads them, and loads a published router.
    "publishing": GROUND | {"scoring", "routing"},
    "students": GROUND,
    "demo": GROUND,
    "runfolder": GROUND,
    "report": GROUND,
    "planning": GROUND | {"report"},
    # The doctor asks endpoints as generation does before it spends.
    "doctor": GROUND | {"generation"},
    "allocation_stage": GROUND | {"routing", "runfolder"},
    "pipeline": GROUND
    | {"allocation_stage", "generation", "scoring", "routing", "publishing", "students", "runfolder", "report"},
    # A student is rendered as it is scored, and published with its card.
    "finetune": GROUND | {"scoring", "students", "publishing"},
    # The comparison runs the pipeline up to its routes, and then every policy's own data, training and evaluation.
    "comparison": GROUND
    | {"pipeline", "generation", "scoring", "routing", "publishing", "students", "finetune", "runfolder"},
    "cli": GROUND
    | {
        "pipeline",
        "report",
        "generation",
        "demo",
        "routing",
        "publishing",
        "planning",
        "doctor",
        "finetune",
        "comparison",
        "students",
    },
}


def _imports(path: Path) -> set[str]:
    """First-level names under persyn_hf that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            module = node.module or ""
            modules = [f"{module}.{alias.name}" for alias in node.names] if module == "persyn_hf" else [module]
        else:
            continue
        for module in modules:
            first, _, rest = module.partition(".")
            if first == "persyn_hf":
                name = rest.split(".")[0] or "__init__"
                found.add("__init__" if name == "__version__" else name)
    return found


def test_no_arrow_runs_up_or_sideways():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        floor = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if floor == "__init__":
            continue
        assert floor in ALLOWED, f"{path} stands on no floor: add it to the house"
        wrong += [f"{path.name} -> {name}" for name in _imports(path) - ALLOWED[floor] - {floor}]
    assert wrong == []


def test_files_and_functions_stay_small():
    large = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            large.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0].end_lineno - node.body[0].lineno + 1 if ast.get_docstring(node) else 0
                signature = node.body[0].lineno - node.lineno
                if node.end_lineno - node.lineno + 1 - docstring - signature > 50:
                    large.append(f"{path.name}:{node.name}")
    assert large == []


def test_public_names_are_pinned():
    assert persyn_hf.__all__ == [
        "Ledger", "PersynError", "PersynRouter", "Quality", "RunConfig", "Sampling", "Teacher", "__version__",
        "add_teacher", "allocate", "compare", "evaluate_router", "generate_parallel", "generate_routed", "keep_best",
        "load_personalized", "persyn_generate", "persyn_learnability", "persyn_quality", "persyn_route", "personalize",
        "pin_quality", "pin_router", "pin_student", "prompt_id", "push_personalized", "remove_teacher", "run",
        "sample_probe", "save_personalized", "score", "train_router", "train_student",
    ]  # fmt: skip


def test_every_public_name_resolves_and_is_documented():
    for name in persyn_hf.__all__:
        value = getattr(persyn_hf, name)
        assert name == "__version__" or value.__doc__, name


def test_import_loads_neither_torch_nor_transformers():
    heavy = ("torch", "transformers", "datasets", "pyarrow")
    code = f"import sys, persyn_hf, persyn_hf.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    try:
        persyn_hf.nothing  # noqa: B018
    except AttributeError as error:
        assert "nothing" in str(error)
    else:
        raise AssertionError("an unknown name was found")
