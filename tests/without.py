"""Hides installed packages from this process, as if they had never been installed. Stands alone."""

import sys

#: What a light installation does not have, and the extras.
HEAVY = (
    "accelerate", "gguf", "lm_eval", "math_verify", "matplotlib", "peft", "reasoning_gym", "safetensors", "scipy",
    "sklearn", "tokenizers", "torch", "transformers", "trl",
)  # fmt: skip


class _Without:
    """A finder that finds what another one does, but for some packages and their metadata."""

    def __init__(self, finder, names):
        self._finder, self._names = finder, names

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._names else self._finder.find_spec(name, path, target)

    def find_distributions(self, context):
        for found in getattr(self._finder, "find_distributions", lambda context: ())(context):
            if found.metadata["Name"].lower().replace("-", "_") not in self._names:
                yield found

    def invalidate_caches(self):
        getattr(self._finder, "invalidate_caches", lambda: None)()


def hide(names=HEAVY):
    """From now on these packages cannot be imported."""
    assert not set(names) & set(sys.modules), "they were imported before"
    sys.meta_path[:] = [_Without(finder, frozenset(names)) for finder in sys.meta_path]
