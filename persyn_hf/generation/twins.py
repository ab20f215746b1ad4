"""Teachers that the ledger cannot distinguish, so that they would share their answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from persyn_hf.generation.jobs import Asked

#: Prompt whose keys are compared; any other prompt gives the same result.
_ANY_PROMPT, _ANY_ID = "Hi", "0" * 16


@dataclass(frozen=True)
class Twins:
    """Teachers whose answers have the same key in the ledger.

    Args:
        names (`Sequence[str]`): Names of the teachers, in the order of the configuration.
        model (`str`): Model that all of them name.
        addresses (`Sequence[str]`): Their distinct addresses; empty for models in this process.
        apart (`bool`): Whether two of them have no address in common, so that they may be different models.
    """

    names: Sequence[str]
    model: str
    addresses: Sequence[str]
    apart: bool

    def __str__(self) -> str:
        """Describes the problem and its fix."""
        same = f"{' and '.join(f'`{name}`' for name in self.names)} have the same `model`, `revision`, sampling and "
        if not self.apart:
            return (
                f"teachers {same}`system_prompt`, so they are one teacher and give the same answers (`{self.model}`). "
                "Remove one, or change its settings."
            )
        return (
            f"teachers {same}`system_prompt` (`{self.model}`) at different addresses ({', '.join(self.addresses)}). "
            "The ledger finds an answer by these and not by its address, so each would get the other's answers. If "
            "they are different models, give each its own `revision` (any text), or the name that its server uses; "
            "if they are one model, give one teacher both addresses: `endpoint: [..., ...]`."
        )


def find_twins(asked: Sequence[Asked]) -> Iterator[Twins]:
    """Finds teachers whose answers have the same key in the ledger.

    Args:
        asked (`Sequence[Asked]`): Teachers with their model identities.
    """
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.job(_ANY_PROMPT, _ANY_ID, 0).key, []).append(one)
    for group in groups.values():
        if len(group) > 1:
            places = [set(one.teacher.endpoints) for one in group]
            apart = any(not one & other for one, other in itertools.combinations(filter(None, places), 2))
            addresses = list(dict.fromkeys(address for one in group for address in one.teacher.endpoints))
            yield Twins([one.name for one in group], group[0].teacher.model, addresses, apart)
