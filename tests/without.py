"""Hides installed packages from this process, as if they had never been installed. Stands alone."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

#: What a light installation does not have, and the extras.
HEAVY = (
    "accelerate", "gguf", "lm_eval", "math_verify", "matplotlib", "peft", "reasoning_gym", "safetensors", "scipy",
    "sklearn", "tokenizers", "torch", "transformers", "trl",
)  # fmt: skip


class _Without:
    """A finder that finds what another one does, but for some packages and their metadata."""

    def __init__(self, finder: Any, names: frozenset[str]) -> None:
        self._finder, self._names = finder, names

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self._names:
            return None
        found: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return found

    def find_distributions(self, context: Any) -> Iterator[Any]:
        for found in getattr(self._finder, "find_distributions", lambda context: ())(context):
            if found.metadata["Name"].lower().replace("-", "_") not in self._names:
                yield found

    def invalidate_caches(self) -> None:
        getattr(self._finder, "invalidate_caches", lambda: None)()


def hide(names: Iterable[str] = HEAVY) -> None:
    """From now on these packages cannot be imported."""
    assert not set(names) & set(sys.modules), "they were imported before"
    sys.meta_path[:] = [_Without(finder, frozenset(names)) for finder in sys.meta_path]
