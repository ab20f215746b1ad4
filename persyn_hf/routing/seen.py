"""The prompts that a router was trained on, as its `persyn` block records them, so that none is taken for held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns

#: The key of the `persyn` block.
PROBE_KEY = "probe_prompts"
#: Hex digits that are kept of a prompt's identity: of a million other prompts, one is taken for one of 4,000.
DIGITS = 8


def seen_record(prompts: Sequence[columns.Prompt], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The record of the prompts that a router was trained on.

    Args:
        prompts (`Sequence`): Strings, or lists of chat messages.
        before (`Mapping`, *optional*): The record of an earlier training, whose prompts stay.

    Returns:
        `dict`: `prompts` (how many), `ids` (the first eight hex digits of each identity, sorted and joined) and
        `digest` (the SHA-256 of `ids`).

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


def seen_prompts(block: Mapping[str, Any], prompts: Sequence[columns.Prompt]) -> NDArray[np.bool_] | None:
    """Marks the prompts that a router was trained on; `None` where its block does not say.

    Args:
        block (`Mapping`): The `persyn` block.
        prompts (`Sequence`): Strings, or lists of chat messages.
    """
    record = block.get(PROBE_KEY)
    if not isinstance(record, Mapping):
        return None
    known = set(_pieces(record))
    return np.array([columns.prompt_id(prompt)[:DIGITS] in known for prompt in prompts], dtype=bool)


def _pieces(record: Mapping[str, Any]) -> list[str]:
    ids = str(record.get("ids", ""))
    return [ids[start : start + DIGITS] for start in range(0, len(ids), DIGITS)]
