"""Which packages are installed, and what to give pip for those that are not.

`pip install persyn-hf` brings everything. A light installation (`requirements/light.txt`) leaves out what only models
in this process, solvers and pictures need; whatever needs none of that imports and runs without it, and the rest calls
[`require`] before it imports.
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

#: What `requirements/light.txt` leaves out of the dependencies.
HEAVY = frozenset({"accelerate", "matplotlib", "safetensors", "scipy", "torch", "transformers"})

#: Extras for those who work on persyn_hf; they are no part of what it can do.
_DEVELOPMENT = frozenset({"check", "test"})


def require(purpose: str, *packages: str) -> None:
    """Refuses to go on without packages: called before they are imported.

    Args:
        purpose (`str`): What they are needed for, as the end of "is needed to …".
        packages (`str`): Their names in the dependencies or extras of persyn-hf.

    Raises:
        MissingPackageError: If one is not installed; names all that are missing with the pip command.
        MissingExtraError: If it belongs to an extra.

    Example:
        >>> require("plan a run", "pydantic")
    """
    missing = absent(*packages)
    if missing:
        raise _missing(missing, purpose)


def absent(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [package for package in packages if not is_installed(package)]


def explained(error: ModuleNotFoundError, purpose: str) -> ImportError:
    """The same error with the pip command, where it is a dependency that is absent; any other one as it is.

    Args:
        error (`ModuleNotFoundError`): From an import.
        purpose (`str`): What was going on, as the end of "is needed to …".
    """
    name = (error.name or "").partition(".")[0]
    for known in (*dependencies(), *(package for extra in extras().values() for package in extra)):
        if _module(known) == name:
            return _missing([known], purpose)
    return error


def is_installed(package: str) -> bool:
    """Whether a package can be imported. It is not imported."""
    module = _module(package)
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


@lru_cache(maxsize=1)
def dependencies() -> Mapping[str, Requirement]:
    """What `pip install persyn-hf` brings, by name, with the releases that work."""
    return {wanted.name: wanted for wanted in _requirements() if _needed(wanted, "")}


@lru_cache(maxsize=1)
def extras() -> Mapping[str, Mapping[str, Requirement]]:
    """What each extra brings beyond that, by the extra's name."""
    names = [name for name in _metadata("Provides-Extra") if name not in _DEVELOPMENT]
    return {name: {w.name: w for w in _requirements() if _needed(w, name) and not _needed(w, "")} for name in names}


def pip_command(*packages: str) -> str:
    """The command that installs releases of dependencies that work."""
    return "pip install " + " ".join(f"'{wanted}'" for wanted in _bounded(packages))


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    return [Requirement(line) for line in _metadata("Requires-Dist")]


def _metadata(field: str) -> list[str]:
    """A field of the installed metadata; nothing in a checkout that is used without having been installed."""
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
    """The module that a package is imported by; pyyaml alone has another name."""
    return {"pyyaml": "yaml"}.get(package.lower(), package.replace("-", "_").lower())
