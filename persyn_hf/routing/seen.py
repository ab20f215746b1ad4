"""Record of a router's training prompts in its `persyn` block, so that an evaluation can leave them out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns

#: Key of the `persyn` block.
PROBE_KEY = "probe_prompts"
#: Hex digits kept of a prompt's id. With 4,000 recorded prompts, about one in a million others matches by chance.
DIGITS = 8


def seen_record(prompts: Sequence[columns.Prompt], before: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Builds the record of the prompts that a router was trained on.

    Args:
        prompts (`Sequence`): Strings, or lists of chat messages.
        before (`Mapping`, *optional*): Record of an earlier training, whose prompts are kept.

    Returns:
        `dict`: `prompts` (their number), `ids` (the first eight hex digits of each id, sorted and joined) and `digest`
            (the SHA-256 of `ids`).

    Example:
        >>> seen_record(["Hi"])["ids"]
        '557f6d95'
    """
    known = sorted({columns.prompt_id(prompt)[:DIGITS] for prompt in prompts} | set(_pieces(before or {})))
    return {
        "prompts": len(known),
        "digest": hashlib.sha256("".join(known).encode()).hexdigest(),
        "ids": "".join(known),
    }


def seen_prompts(block: Mapping[str, object], prompts: Sequence[columns.Prompt]) -> NDArray[np.bool_] | None:
    """Returns a mask of the prompts that a router was trained on, or `None` if its block does not record them.

    Args:
        block (`Mapping`): The `persyn` block.
        prompts (`Sequence`): Strings, or lists of chat messages.
    """
    record = block.get(PROBE_KEY)
    if not isinstance(record, Mapping):
        return None
    known = set(_pieces(record))
    return np.array([columns.prompt_id(prompt)[:DIGITS] in known for prompt in prompts], dtype=bool)


def _pieces(record: Mapping[str, object]) -> list[str]:
    ids = str(record.get("ids", ""))
    return [ids[start : start + DIGITS] for start in range(0, len(ids), DIGITS)]
