"""The identity of an answer, under which the ledger keeps it."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Any

from persyn_hf.config import Sampling
from persyn_hf.generation.client import Request

#: Version of [`completion_key`]: raised when the same question gets another key.
_KEY_VERSION = 1


@lru_cache(maxsize=256)
def sampling_values(sampling: Sampling) -> dict[str, Any]:
    """The sampling parameters as plain values."""
    return sampling.model_dump(mode="json")


def completion_key(model: str, revision: str, request: Request) -> str:
    """The identity of an answer: SHA-256 over everything that it depends on, and nothing else.

    Not in it: the teacher's name and the endpoint's address, so that a renamed teacher or a moved server keeps its
    answers.

    Args:
        model (`str`): The model's name; empty for a local folder, whose revision is a digest.
        revision (`str`): What `checkpoints.resolve_revision` gives, or what the configuration says of an endpoint.
        request (`Request`): Messages, sampling parameters and row seed.

    Returns:
        `str`: 64 hex digits.
    """
    head, sampling = _key_head(model, revision), _key_sampling(request.sampling)
    text = f"[{head},{_canonical(request.messages)},{sampling},{request.seed}]"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode


@lru_cache(maxsize=256)
def _key_head(model: str, revision: str) -> str:
    return _canonical([_KEY_VERSION, model, revision])[1:-1]


@lru_cache(maxsize=256)
def _key_sampling(sampling: Sampling) -> str:
    return _canonical(sampling_values(sampling))
