"""Checks for installed packages, and the pip command for missing ones.

`pip install persyn-hf` installs everything. A light installation (`requirements/light.txt`) leaves out packages that
only models in this process, solvers and plots need. Code that needs them calls [`require`] before it imports them; all
other code runs without them.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from persyn_hf.errors import MissingExtraError, MissingPackageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

#: Dependencies that `requirements/light.txt` leaves out.
HEAVY = frozenset({"accelerate", "matplotlib", "safetensors", "scipy", "torch", "transformers"})

#: Extras for developing persyn_hf; users do not need them.
_DEVELOPMENT = frozenset({"check", "test"})


def require(purpose: str, *packages: str) -> None:
    """Checks that packages are installed; call it before importing them.

    Args:
        purpose (`str`): Purpose of the packages, which completes "is needed to …".
        packages (`str`): Names in the dependencies or extras of persyn-hf.

    Raises:
        MissingPackageError: If a package is not installed; the message names all missing ones and the pip command.
        MissingExtraError: If a missing package belongs to an extra.

    Example:
        >>> require("plan a run", "pydantic")
    """
    missing = absent(*packages)
    if missing:
        raise _missing(missing, purpose)


def absent(*packages: str) -> list[str]:
    """The packages that are not installed."""
    return [package for package in packages if not is_installed(package)]


def explained(error: ModuleNotFoundError, purpose: str) -> ImportError:
    """Adds the pip command to an import error if the missing module is a dependency; other errors are unchanged.

    Args:
        error (`ModuleNotFoundError`): Error of an import.
        purpose (`str`): Purpose of the import, which completes "is needed to …".
    """
    name = (error.name or "").partition(".")[0]
    for known in (*dependencies(), *(package for extra in extras().values() for package in extra)):
        if _module(known) == name:
            return _missing([known], purpose)
    return error


def is_installed(package: str) -> bool:
    """Tells whether a package can be imported, without importing it."""
    module = _module(package)
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


@lru_cache(maxsize=1)
def dependencies() -> Mapping[str, Requirement]:
    """The packages that `pip install persyn-hf` installs: name → requirement."""
    return {wanted.name: wanted for wanted in _requirements() if _needed(wanted, "")}


@lru_cache(maxsize=1)
def extras() -> Mapping[str, Mapping[str, Requirement]]:
    """The packages that each extra adds to the dependencies: extra → name → requirement."""
    names = [name for name in _metadata("Provides-Extra") if name not in _DEVELOPMENT]
    return {name: {w.name: w for w in _requirements() if _needed(w, name) and not _needed(w, "")} for name in names}


def pip_command(*packages: str) -> str:
    """The pip command that installs supported releases of packages."""
    return "pip install " + " ".join(f"'{wanted}'" for wanted in _bounded(packages))


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    return [Requirement(line) for line in _metadata("Requires-Dist")]


def _metadata(field: str) -> list[str]:
    """A field of the installed metadata; empty in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        return metadata("persyn-hf").get_all(field) or []
    except PackageNotFoundError:
        return []


def _needed(wanted: Requirement, extra: str) -> bool:
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def _missing(packages: list[str], purpose: str) -> MissingPackageError:
    for package in packages:
        for extra, brought in extras().items():
            if package in brought:
                return MissingExtraError(package, extra, purpose)
    return MissingPackageError(packages, _bounded(packages), purpose)


def _bounded(packages: Iterable[str]) -> list[str]:
    known = dependencies()
    return [f"{package}{known[package].specifier}" if package in known else package for package in packages]


def _module(package: str) -> str:
    """The module name of a package; only pyyaml's differs."""
    return {"pyyaml": "yaml"}.get(package.lower(), package.replace("-", "_").lower())
