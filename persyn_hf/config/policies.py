"""Policies choose a teacher for every prompt. This module holds their keys, labels and constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

#: Policies that need no answers: the router, and the baselines.
AllocationPolicy = Literal["persyn", "strong", "mix", "family-strong", "car", "random"]

#: All policies. `oracle` needs every teacher's answer to every prompt.
Policy = Literal[AllocationPolicy, "oracle"]

#: Labels of the policies, in the order of tables and plots.
POLICIES: Final[Mapping[str, str]] = {
    "strong": "Strong",
    "mix": "Mix",
    "family-strong": "Family-Strong",
    "car": "CAR",
    "random": "random teacher",
    "persyn": "PerSyn router",
    "oracle": "oracle",
}

#: Labels of all keys that a table may show. `router` is the name of `persyn` in the `held_out` entry of a router's
#: `persyn` block.
POLICY_LABELS: Final[Mapping[str, str]] = {
    **POLICIES,
    "router": POLICIES["persyn"],
    "best_single": "best single teacher",
    "knn": "kNN on the embeddings",
    "generate-then-select": "generate-then-select",
}

#: Policies in the `held_out` entry of a router's `persyn` block, in the order of tables and plots.
HELD_OUT_POLICIES: Final = ("random", "best_single", "knn", "router", "oracle")

#: Policies that draw at random, so that their routes depend on the seed.
DRAWN: Final[frozenset[Policy]] = frozenset({"mix", "random"})

#: Share of the prompts that Mix sends to the strong teacher, 0 to 1 (arXiv 2502.12143).
MIX_STRONG_SHARE: Final = 0.5

#: Weight of the student's loss in CAR (arXiv 2411.07133).
CAR_BETA: Final = 3.0


def policy_label(key: str) -> str:
    """Returns the label of a policy.

    Args:
        key (`str`): Key of [`POLICY_LABELS`]. Any other name is returned as it is, since a summary may hold the
            caller's own policies.

    Example:
        >>> policy_label("family-strong"), policy_label("my-own")
        ('Family-Strong', 'my-own')
    """
    return POLICY_LABELS.get(key, key)
