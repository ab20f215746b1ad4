"""A name stands once: jump-to-definition and grep are the map of the house."""

import ast
from collections import defaultdict
from pathlib import Path

import persyn_hf

PACKAGE = Path(persyn_hf.__file__).parent


def _modules():
    """Every module of the package with its path under it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, path.relative_to(PACKAGE)


def _repeated(places):
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


def test_no_public_name_is_defined_in_two_modules():
    places = defaultdict(set)
    for path, place in _modules():
        if place.parts[0] == "cli":  # a command is called as the function it runs
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                places[node.name].add(str(place))
    assert _repeated(places) == {}


def test_no_file_name_stands_twice():
    places = defaultdict(set)
    for _, place in _modules():
        if place.parts[0] not in ("cli", "config") and place.name != "__init__.py":
            places[place.name].add(str(place))
    assert _repeated(places) == {}
