"""Which prompts to ask every teacher: a random sample, or one that covers the prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.errors import ConfigError
from persyn_hf.packages import require
from persyn_hf.prompts.reading import random_probe

if TYPE_CHECKING:
    from datasets import Dataset

#: Candidates whose distances to all prompts are computed at once.
_BLOCK = 64
#: Prompts that are embedded at once.
_CHUNK = 4096


def sample_probe(
    prompts: Dataset,
    size: int,
    method: Literal["random", "cover"] = "random",
    seed: int = 0,
    *,
    backbone: str | None = None,
    revision: str | None = None,
    embeddings: NDArray[np.floating] | None = None,
    max_length: int = 512,
    device: str | None = None,
    prompt_column: str = columns.PROMPT,
    where: str = "probe",
) -> Dataset:
    """Draws the prompts that every teacher answers.

    `"cover"` is greedy k-center (Sener and Savarese, arXiv 1708.00489): after a random first one, always the prompt
    that is farthest from all chosen ones, so that none is far from the probe. It takes unusual prompts first. Whether
    that helps a router is another question; docs/routing.md has measurements.

    Args:
        prompts (`Dataset`): With the prompt column.
        size (`int`): How many; at most all.
        method (`"random"` or `"cover"`, defaults to `"random"`): How.
        seed (`int`, defaults to 0): Of the sample, or of the first prompt.
        backbone (`str`, *optional*), revision (`str`, *optional*): Model whose embeddings `"cover"` looks at: the
            router's backbone.
        embeddings (`ndarray` of shape `(prompts, width)`, *optional*): Instead of a backbone.
        max_length (`int`, defaults to 512): Tokens of a prompt that the backbone reads.
        device (`str`, *optional*): For the backbone; default: `cuda` where there is one, else `cpu`.
        prompt_column (`str`, defaults to `"prompt"`): Strings or chat messages.
        where (`str`, defaults to `"probe"`): Names the section in errors.

    Returns:
        `Dataset`: The chosen prompts, in their order.

    Raises:
        ConfigError: If there are too few prompts, the method is unknown, or it has nothing to look at.
    """
    if method == "random":
        return random_probe(prompts, size, seed, where=where)
    if method != "cover":
        raise ConfigError(f"{where}.method: must be 'random' or 'cover', got {method!r}.")
    if not 1 <= size <= len(prompts):
        raise ConfigError(f"{where}.size: must be at most the number of prompts, {len(prompts)}, got {size}.")
    if embeddings is None:
        if backbone is None:
            raise ConfigError(f"{where}.method: 'cover' needs a `backbone`, or `embeddings`.")
        embeddings = embed(prompts, backbone, revision, max_length, device, prompt_column)
    if len(embeddings) != len(prompts):
        raise ConfigError(f"`embeddings` must have a row for each of {len(prompts)} prompts, got {len(embeddings)}.")
    return prompts.select(sorted(cover(embeddings, size, seed).tolist()))


def embed(
    prompts: Dataset, backbone: str, revision: str | None, max_length: int, device: str | None, prompt_column: str
) -> NDArray[np.float32]:
    """What a router's head would read of each prompt, shape `(prompts, hidden)`."""
    require("draw a probe that covers the prompts of a backbone", "torch", "transformers")
    from persyn_hf.models.device import choose_device
    from persyn_hf.routing.backbone import build_classifier, head_inputs

    where = choose_device(device)
    model, tokenizer = build_classifier(
        backbone, ["first", "second"], revision=revision, max_length=max_length, dtype=None, device=where
    )
    parts = []
    for start in range(0, len(prompts), _CHUNK):
        texts = [columns.prompt_text(prompt) for prompt in prompts[start : start + _CHUNK][prompt_column]]
        parts.append(np.asarray(head_inputs(model, tokenizer, texts), dtype=np.float32))
    return np.concatenate(parts)


def cover(embeddings: NDArray[np.floating], size: int, seed: int = 0) -> NDArray[np.int64]:
    """Greedy k-center: rows so that the farthest row is as near to one of them as a greedy choice can make it.

    The choice is exactly that of the plain algorithm, one farthest row after the other. Distances are computed for the
    rows that are farthest now all at once, since the next farthest are nearly always among them.

    Args:
        embeddings (`ndarray` of shape `(rows, width)`): Compared by the angle around their mean.
        size (`int`): Rows to choose.
        seed (`int`, defaults to 0): Of the first row.

    Returns:
        `ndarray` of shape `(size,)`: Rows, in the order of the choice. No row is farther from the first `n` than twice
        the distance of the best possible `n`.
    """
    points: NDArray[Any] = np.array(embeddings, dtype=np.float32)
    points -= points.mean(axis=0)
    points /= np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    chosen = [int(np.random.default_rng(seed).integers(len(points)))]
    nearest = _distances(points, chosen)[0]
    nearest[chosen[0]] = -1.0  # never chosen again, even among equal rows
    block: dict[int, NDArray[Any]] = {}
    while len(chosen) < size:
        farthest = int(nearest.argmax())
        if farthest not in block:
            width = min(_BLOCK, size - len(chosen))
            rows = np.argpartition(-nearest, width - 1)[:width].tolist()
            rows = [farthest, *(row for row in rows if row != farthest)]
            block = dict(zip(rows, _distances(points, rows), strict=True))
        np.minimum(nearest, block.pop(farthest), out=nearest)
        nearest[farthest] = -1.0
        chosen.append(farthest)
    return np.array(chosen, dtype=np.int64)


def _distances(points: NDArray[Any], rows: list[int]) -> NDArray[Any]:
    """Cosine distance of every point to some of them, shape `(rows, points)`."""
    distances: NDArray[Any] = 1.0 - points[rows] @ points.T
    return distances
