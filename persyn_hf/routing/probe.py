"""Sampling the probe, which every teacher answers: at random, or so that it covers the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.config import Probe, Router, default_of, merged, require_known
from persyn_hf.errors import ConfigError
from persyn_hf.packages import require
from persyn_hf.prompts.reading import random_probe

if TYPE_CHECKING:
    from datasets import Dataset

#: Number of candidates whose distances to all prompts are computed at once.
_BLOCK = 64
#: Number of prompts embedded at once.
_CHUNK = 4096
#: Router settings that define how a prompt is read.
_READING = ("backbone", "revision", "max_length", "device")


def sample_probe(
    prompts: Dataset,
    size: int,
    method: Literal["random", "cover"] = default_of(Probe, "method"),
    seed: int = 0,
    *,
    embeddings: NDArray[np.floating] | None = None,
    settings: Router | Mapping[str, Any] | None = None,
    prompt_column: str = columns.PROMPT,
    where: str = "probe",
    **options: Any,
) -> Dataset:
    """Draws the probe: the prompts that every teacher answers.

    `"cover"` is greedy k-center (Sener and Savarese, arXiv 1708.00489): it starts with a random prompt and repeatedly
    adds the prompt farthest from all chosen ones, so that no prompt is far from the probe. It picks unusual prompts
    first, which does not always help a router; docs/routing.md has measurements.

    Args:
        prompts (`Dataset`): Table with the prompt column.
        size (`int`): Number of prompts to draw, at most `len(prompts)`.
        method (`"random"` or `"cover"`, defaults to `"random"`): Sampling method.
        seed (`int`, defaults to 0): Random seed of the sample, or of the first prompt.
        embeddings (`ndarray` of shape `(prompts, width)`, *optional*): Embeddings for `"cover"`, instead of a
            backbone's.
        settings (`Router` or `Mapping`, *optional*): The section `router` of a configuration, or its keys; its
            backbone computes the embeddings for `"cover"`.
        prompt_column (`str`, defaults to `"prompt"`): Column of strings or chat messages.
        where (`str`, defaults to `"probe"`): Name of the section in errors.
        options: Single keys of [`Router`] that define how a prompt is read: `backbone`, `revision`, `max_length` and
            `device`.

    Returns:
        `Dataset`: The chosen prompts, in their original order.

    Raises:
        ConfigError: If there are too few prompts, the method is unknown, or `"cover"` has neither backbone nor
            embeddings.
    """
    require_known(Router, options, "sample_probe", _READING)
    if method == "random":
        return random_probe(prompts, size, seed, where=where)
    if method != "cover":
        raise ConfigError(f"{where}.method: must be 'random' or 'cover', got {method!r}.")
    if not 1 <= size <= len(prompts):
        raise ConfigError(f"{where}.size: must be at most the number of prompts, {len(prompts)}, got {size}.")
    if embeddings is None:
        given = {name: value for name, value in options.items() if value is not None}
        if settings is None and "backbone" not in given:
            raise ConfigError(f"{where}.method: 'cover' needs a `backbone`, or `embeddings`.")
        embeddings = embed(prompts, merged(Router, settings, given, "sample_probe"), prompt_column)
    if len(embeddings) != len(prompts):
        raise ConfigError(f"`embeddings` must have a row for each of {len(prompts)} prompts, got {len(embeddings)}.")
    return prompts.select(sorted(cover(embeddings, size, seed).tolist()))


def embed(prompts: Dataset, router: Router, prompt_column: str = columns.PROMPT) -> NDArray[np.float32]:
    """Embeds prompts as a router on the section's backbone does: the inputs of its head, shape `(prompts, hidden)`."""
    if router.backbone is None:
        raise ConfigError("`router.backbone` is required to embed prompts; `pretrained` names a finished router.")
    require("draw a probe that covers the prompts of a backbone", "torch", "transformers")
    from persyn_hf.models.device import choose_device
    from persyn_hf.routing.backbone import build_classifier, head_inputs

    where = choose_device(router.device)
    model, tokenizer = build_classifier(
        router.backbone,
        ["first", "second"],
        revision=router.revision,
        max_length=router.max_length,
        dtype=None,
        device=where,
    )
    parts = []
    for start in range(0, len(prompts), _CHUNK):
        texts = [columns.prompt_text(prompt) for prompt in prompts[start : start + _CHUNK][prompt_column]]
        parts.append(np.asarray(head_inputs(model, tokenizer, texts), dtype=np.float32))
    return np.concatenate(parts)


def cover(embeddings: NDArray[np.floating], size: int, seed: int = 0) -> NDArray[np.int64]:
    """Chooses rows by greedy k-center, which keeps the largest distance of any row to a chosen one small.

    The result is exactly that of the plain algorithm, which adds one farthest row after the other. For speed, the
    distances of several of the farthest rows are computed at once, since the next farthest are nearly always among
    them.

    Args:
        embeddings (`ndarray` of shape `(rows, width)`): Embeddings, compared by cosine after centring.
        size (`int`): Number of rows to choose.
        seed (`int`, defaults to 0): Random seed of the first row.

    Returns:
        `ndarray` of shape `(size,)`: Row numbers in the order of the choice. For every `n`, the largest distance to
            the first `n` is at most twice that to the best possible `n`.
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
    """Returns the cosine distance of every point to the given rows, shape `(rows, points)`."""
    distances: NDArray[Any] = 1.0 - points[rows] @ points.T
    return distances
