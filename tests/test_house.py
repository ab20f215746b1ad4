"""The floors of the house, its public names, and what importing it must not do."""

import ast
import subprocess
import sys
from pathlib import Path

import persyn_hf

PACKAGE = Path(persyn_hf.__file__).parent

# From the ground up. A module imports from the floors below its own; siblings on one floor never import each other.
FLOORS = (
    {"errors", "text", "version"},
    {"messages"},
    {"columns", "config", "packages", "tables"},
    {"hygiene"},
    {"endpoints", "ledger", "models", "prompts", "personalize"},
    {"generation", "scoring", "routing"},
    {"publishing", "doctor"},
    {"students", "run"},
    {"planning", "comparison", "demo"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


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
                found.add(rest.split(".")[0] or "__init__")
    return found


def test_no_arrow_runs_up_or_sideways():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in FLOOR_OF, f"{path} stands on no floor: add it to the house"
        for name in _imports(path) - {room}:
            if FLOOR_OF.get(name, len(FLOORS)) >= FLOOR_OF[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} -> {name}")
    assert sorted(wrong) == []


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


def test_no_function_has_more_than_eight_parameters():
    many = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                given = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                if len(given) - (given[:1] in (["self"], ["cls"])) > 8:
                    many.append(f"{path.name}:{getattr(node, 'name', 'lambda')}")
    assert many == []


def test_public_names_are_pinned():
    assert persyn_hf.__all__ == [
        "Ledger", "PersynError", "PersynRouter", "Quality", "RunConfig", "Sampling", "Teacher", "__version__",
        "add_teacher", "allocate", "compare", "evaluate_router", "export_routes", "generate_parallel",
        "generate_routed", "keep_best", "load_personalized", "persyn_generate", "persyn_learnability",
        "persyn_quality", "persyn_route", "personalize", "pin_quality", "pin_router", "pin_student",
        "preference_pairs", "prompt_id", "push_pairs", "push_personalized", "remove_teacher", "run", "sample_probe",
        "save_personalized", "score", "train_router", "train_student", "verifier",
    ]  # fmt: skip


def test_every_public_name_resolves_and_is_documented():
    for name in persyn_hf.__all__:
        value = getattr(persyn_hf, name)
        assert name == "__version__" or value.__doc__, name


def test_a_public_name_is_no_submodule_whatever_was_imported_before():
    code = (
        "import persyn_hf, persyn_hf.personalize, persyn_hf.run.pipeline\n"
        "print([name for name in persyn_hf.__all__ if type(getattr(persyn_hf, name)).__name__ == 'module'])\n"
        "from persyn_hf import personalize, run\n"
        "print(run.__module__, personalize.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "persyn_hf.run.pipeline persyn_hf.personalize"]


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
