"""The policies, which are ways to choose a teacher for every prompt: their keys, labels and constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

#: Policies that can allocate prompts before anything is answered: the router's own, and what it must beat.
AllocationPolicy = Literal["persyn", "strong", "mix", "family-strong", "car", "random"]

#: With `oracle`, which needs every teacher's answer to every prompt.
Policy = Literal[AllocationPolicy, "oracle"]

#: The label of every policy, in the order of tables and plots.
POLICIES: Final[Mapping[str, str]] = {
    "strong": "Strong",
    "mix": "Mix",
    "family-strong": "Family-Strong",
    "car": "CAR",
    "random": "random teacher",
    "persyn": "PerSyn router",
    "oracle": "oracle",
}

#: The label of every key that a table may show: the policies and what stands beside them. `router` is `persyn` as the
#: `held_out` entry of a router's `persyn` block spells it.
POLICY_LABELS: Final[Mapping[str, str]] = {
    **POLICIES,
    "router": POLICIES["persyn"],
    "best_single": "best single teacher",
    "knn": "kNN on the embeddings",
    "generate-then-select": "generate-then-select",
}

#: Policies in the `held_out` entry of a router's `persyn` block, in the order of tables and plots.
HELD_OUT_POLICIES: Final = ("random", "best_single", "knn", "router", "oracle")

#: Policies that draw at random: another seed gives other routes.
DRAWN: Final[frozenset[Policy]] = frozenset({"mix", "random"})

#: Share of the prompts that Mix sends to the strong teacher, 0 to 1 (arXiv 2502.12143).
MIX_STRONG_SHARE: Final = 0.5

#: Weight of the student's loss in CAR (arXiv 2411.07133).
CAR_BETA: Final = 3.0


def policy_label(key: str) -> str:
    """The label of a policy.

    Args:
        key (`str`): A key of [`POLICY_LABELS`]. Any other name is its own label: a summary may hold policies of its
            caller.

    Example:
        >>> policy_label("family-strong"), policy_label("my-own")
        ('Family-Strong', 'my-own')
    """
    return POLICY_LABELS.get(key, key)
