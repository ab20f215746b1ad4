"""persyn_hf: find the teacher that your student learns most from, for every prompt (PerSyn, arXiv 2510.10925).

Public names are imported on first use, so that `import persyn_hf` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from persyn_hf.version import __version__

#: Public name → module that defines it.
_HOME = {
    "PersynError": "persyn_hf.errors",
    "Quality": "persyn_hf.config",
    "RunConfig": "persyn_hf.config",
    "Sampling": "persyn_hf.config",
    "Teacher": "persyn_hf.config",
    "prompt_id": "persyn_hf.columns",
    "Ledger": "persyn_hf.ledger.ledger",
    "generate_parallel": "persyn_hf.generation.generate",
    "generate_routed": "persyn_hf.generation.generate",
    "persyn_generate": "persyn_hf.generation.generate",
    "persyn_learnability": "persyn_hf.scoring.learnability",
    "persyn_quality": "persyn_hf.scoring.quality",
    "pin_quality": "persyn_hf.scoring.quality",
    "verifier": "persyn_hf.scoring.verifiers",
    "pin_student": "persyn_hf.scoring.learnability",
    "score": "persyn_hf.scoring.score",
    "PersynRouter": "persyn_hf.routing.router",
    "persyn_route": "persyn_hf.routing.map_function",
    "pin_router": "persyn_hf.routing.map_function",
    "train_router": "persyn_hf.routing.training",
    "allocate": "persyn_hf.routing.allocation.allocate",
    "keep_best": "persyn_hf.routing.allocation.result",
    "sample_probe": "persyn_hf.routing.probe",
    "evaluate_router": "persyn_hf.routing.evaluate",
    "add_teacher": "persyn_hf.routing.roster",
    "remove_teacher": "persyn_hf.routing.roster",
    "load_personalized": "persyn_hf.publishing.load",
    "personalize": "persyn_hf.personalize",
    "push_personalized": "persyn_hf.publishing.personalized",
    "save_personalized": "persyn_hf.publishing.personalized",
    "run": "persyn_hf.run.pipeline",
    "preference_pairs": "persyn_hf.run.pairs",
    "push_pairs": "persyn_hf.run.pairs",
    "export_routes": "persyn_hf.run.trl_routes",
    "train_student": "persyn_hf.students.train",
    "compare": "persyn_hf.comparison.compare",
}

__all__ = [  # pinned by a test
    "Ledger",
    "PersynError",
    "PersynRouter",
    "Quality",
    "RunConfig",
    "Sampling",
    "Teacher",
    "__version__",
    "add_teacher",
    "allocate",
    "compare",
    "evaluate_router",
    "export_routes",
    "generate_parallel",
    "generate_routed",
    "keep_best",
    "load_personalized",
    "persyn_generate",
    "persyn_learnability",
    "persyn_quality",
    "persyn_route",
    "personalize",
    "pin_quality",
    "pin_router",
    "pin_student",
    "preference_pairs",
    "prompt_id",
    "push_pairs",
    "push_personalized",
    "remove_teacher",
    "run",
    "sample_probe",
    "save_personalized",
    "score",
    "train_router",
    "train_student",
    "verifier",
]

if TYPE_CHECKING:
    from persyn_hf.columns import prompt_id
    from persyn_hf.comparison.compare import compare
    from persyn_hf.config import Quality, RunConfig, Sampling, Teacher
    from persyn_hf.errors import PersynError
    from persyn_hf.generation.generate import generate_parallel, generate_routed, persyn_generate
    from persyn_hf.ledger.ledger import Ledger
    from persyn_hf.personalize import personalize
    from persyn_hf.publishing.load import load_personalized
    from persyn_hf.publishing.personalized import push_personalized, save_personalized
    from persyn_hf.routing.allocation.allocate import allocate
    from persyn_hf.routing.allocation.result import keep_best
    from persyn_hf.routing.evaluate import evaluate_router
    from persyn_hf.routing.map_function import persyn_route, pin_router
    from persyn_hf.routing.probe import sample_probe
    from persyn_hf.routing.roster import add_teacher, remove_teacher
    from persyn_hf.routing.router import PersynRouter
    from persyn_hf.routing.training import train_router
    from persyn_hf.run.pairs import preference_pairs, push_pairs
    from persyn_hf.run.pipeline import run
    from persyn_hf.run.trl_routes import export_routes
    from persyn_hf.scoring.learnability import persyn_learnability, pin_student
    from persyn_hf.scoring.quality import persyn_quality, pin_quality
    from persyn_hf.scoring.score import score
    from persyn_hf.scoring.verifiers import verifier
    from persyn_hf.students.train import train_student


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'persyn_hf' has no attribute {name!r}")
    try:
        module = importlib.import_module(_HOME[name])
    except ModuleNotFoundError as error:
        from persyn_hf.packages import explained

        raise explained(error, f"use persyn_hf.{name}") from error
    value = getattr(module, name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """The package's module, in which a submodule never hides a public name: `persyn_hf.run` stays the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
