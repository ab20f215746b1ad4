"""Attention over all trees of a pack at once, on any device, with nothing compiled.

A completion sees its prompt and, causally, itself: two attentions, over keys that do not overlap. Each gives its
output and the log of the sum of its exponentials, by which they are merged exactly. So the first goes over all
segments of a pack at once (prompts and completions, each on itself), and the second over all completions, each on its
prompt. Nothing is as large as queries × keys of the pack.

On CUDA in half precision the two are calls of FlashAttention over ragged sequences (`torch.nn.attention.varlen`).
Elsewhere, and for what that kernel does not know (soft caps, windows that cut, float32), segments of like length are
gathered into padded groups, and their scores are matrix products over blocks of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Places = NDArray[np.int64]

#: Bytes of the scores of one block of queries, in float32.
_BLOCK_BYTES = 2**28
#: The position of a key that pads a group: after every query's, so that causality hides it.
_NOWHERE = 2**40


class Scores(NamedTuple):
    """Scaling factor, window and soft cap of a layer's attention scores."""

    scale: float
    window: int | None
    softcap: float | None


class Segments(NamedTuple):
    """Runs of queries and the runs of keys that they see, each `(first, end)` in the pack; positions start at `at`."""

    queries: list[tuple[int, int]]
    query_at: list[int]
    keys: list[tuple[int, int]]
    key_at: list[int]


@dataclass(frozen=True)
class Group:
    """Segments of like length, padded: places in the pack and positions, `(segments, tokens)`.

    `real` are the places of queries that are no padding, in the flattened group; a device that was asked for them
    would have to be waited for.
    """

    real: Tensor
    query: Tensor
    query_positions: Tensor
    key: Tensor
    key_positions: Tensor
    causal: bool


@dataclass(frozen=True)
class Ragged:
    """The same segments one after the other: where in the pack they lie, and where each begins and ends (int32)."""

    query: Tensor
    query_bounds: Tensor
    longest_query: int
    key: Tensor
    key_bounds: Tensor
    longest_key: int


@dataclass(frozen=True)
class Parts:
    """Positions of the trees of a pack, as tensors on its device, shared by all layers.

    Args:
        own, prompts (`tuple[Group, ...]`): Every segment on itself, and the completions on their prompts.
        longest (`int`): Tokens of the longest prompt with completion.
        ragged (`tuple[Ragged, Ragged]`, *optional*): The same two for FlashAttention, where it is there.
    """

    own: tuple[Group, ...]
    prompts: tuple[Group, ...]
    longest: int
    ragged: tuple[Ragged, Ragged] | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
        """Attention of a layer.

        Args:
            query (`Tensor`): `(tokens, heads, dim)`.
            key, value (`Tensor`): `(tokens, key_value_heads, dim)`.
            how (`Scores`): Scaling, window and soft cap of the layer.

        Returns:
            `Tensor`: `(tokens, heads, dim)`.
        """
        if self.ragged is not None and how.window is None and how.softcap is None:
            own, prompts = self.ragged
            found, total = _ragged(query, key, value, own, how.scale, causal=True)
            if len(prompts.query):
                places = prompts.query
                seen = _ragged(query[places], key[prompts.key], value[prompts.key], prompts, how.scale, causal=False)
                found[places] = _merged(found[places], total[places], *seen).to(found.dtype)
            return found
        wide = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(*query.shape[:2], value.shape[-1], dtype=wide)
        total = query.new_empty(query.shape[:2], dtype=wide)
        for group in self.own:
            self._group(group, query, key, value, how, output, total)
        for group in self.prompts:
            self._group(group, query, key, value, how, output, total, merge=True)
        return output.to(query.dtype)

    @staticmethod
    def _group(
        group: Group, query: Tensor, key: Tensor, value: Tensor, how: Scores, *into: Tensor, merge: bool = False
    ) -> None:
        output, total = into
        parts = (query[group.query], key[group.key], value[group.key])
        query, key, value = (part.transpose(1, 2) for part in parts)
        found, sums = in_blocks(query, key, value, group.query_positions, group.key_positions, how, group.causal)
        places = group.query.flatten()[group.real]
        found, sums = (part.transpose(1, 2).flatten(0, 1)[group.real] for part in (found, sums))
        if merge:
            found = _merged(output[places], total[places], found, sums)
        output[places] = found.to(output.dtype)
        total[places] = sums.to(total.dtype)


def in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    how: Scores,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """Attention by position, a block of queries at a time, with scores in at least float32.

    Args:
        query (`Tensor`): `(rows, heads, queries, dim)`.
        key, value (`Tensor`): `(rows, key_value_heads, keys, dim)`.
        query_positions, key_positions (`Tensor`): `(rows, queries)` and `(rows, keys)`. A query sees the keys at its
            own position and before, as far back as the window.
        how (`Scores`): Scaling, window and soft cap of the layer.
        causal (`bool`, defaults to `False`): The n-th key lies no earlier than the n-th query, so that later keys
            need not be looked at.

    Returns:
        `tuple[Tensor, Tensor]`: Output `(rows, heads, queries, dim)` in the values' type, and the log of the summed
        exponentials `(rows, heads, queries)`.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    rows, heads, queries, _ = query.shape
    groups = heads // key.shape[1]
    keys = key.shape[2]
    size = max(16, _BLOCK_BYTES // (rows * heads * max(keys, 1) * wide.itemsize))
    output = value.new_empty(rows, heads, queries, value.shape[-1])
    total = torch.empty(rows, heads, queries, dtype=wide, device=query.device)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        end = min(stop, keys) if causal else keys
        first = max(0, start - how.window + 1) if causal and how.window is not None else 0
        own = query[:, :, start:stop].to(wide).reshape(rows, key.shape[1], -1, query.shape[-1])
        scores = own @ key[:, :, first:end].to(wide).transpose(2, 3) * how.scale
        if how.softcap is not None:
            scores = scores.div_(how.softcap).tanh_().mul_(how.softcap)
        seen = key_positions[:, None, first:end] <= query_positions[:, start:stop, None]
        if how.window is not None:
            seen &= key_positions[:, None, first:end] > query_positions[:, start:stop, None] - how.window
        shape = (rows, key.shape[1], groups, stop - start, end - first)
        scores.view(shape).masked_fill_(~seen[:, None, None], float("-inf"))
        top = scores.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(wide).min)  # none is seen: not infinite
        weights = scores.sub_(top).exp_()
        sums = weights.sum(dim=-1, keepdim=True)
        weights.div_(sums.clamp(min=torch.finfo(wide).tiny))
        found = weights.to(value.dtype) @ value[:, :, first:end]
        output[:, :, start:stop] = found.view(rows, heads, stop - start, -1)
        total[:, :, start:stop] = (top + sums.log()).view(rows, heads, stop - start)
    return output, total


def _merged(output: Tensor, total: Tensor, other: Tensor, others: Tensor) -> Tensor:
    """Two attentions over keys that do not overlap as one; of `total` every entry is finite."""
    share = torch.sigmoid(others.to(total.dtype) - total)[..., None]
    return output + share * (other.to(share.dtype) - output.to(share.dtype))


def has_ragged_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Returns whether FlashAttention over ragged sequences is available."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return False
    try:
        from torch.nn.attention import varlen
    except ImportError:  # before torch 2.10
        return False
    return hasattr(varlen, "varlen_attn")


def _ragged(
    query: Tensor, key: Tensor, value: Tensor, at: Ragged, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """FlashAttention over ragged sequences: output `(tokens, heads, dim)` and log-sums `(tokens, heads)`."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    call: Any = varlen_attn
    known = _arguments(call)
    groups = query.shape[1] // key.shape[1]
    how: dict[str, Any] = {}
    if groups > 1 and "enable_gqa" in known:
        how["enable_gqa"] = True
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    if causal:
        how |= {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    found, total = call(
        query,
        key,
        value,
        at.query_bounds,
        at.key_bounds,
        at.longest_query,
        at.longest_key,
        scale=scale,
        return_aux=AuxRequest(lse=True),
        **how,
    )
    # FlashAttention gives `(heads, tokens)`, whatever the function's words say; cuDNN `(tokens, heads, 1)`.
    total = total.squeeze(-1) if total.dim() == 3 else total
    return found, total.transpose(0, 1) if total.shape[0] == query.shape[1] else total


def _arguments(function: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(function).parameters)


def segments_of(trees: Sequence[Any]) -> tuple[Segments, Segments, int]:
    """Every segment on itself, the completions on their prompts, and the longest prompt with completion.

    Args:
        trees (`Sequence[Tree]`): The trees of a pack.
    """
    own, prompts, longest = Segments([], [], [], []), Segments([], [], [], []), 1
    for tree in trees:
        start, end = tree.prompt
        runs = [(tree.prompt, 0), *((completion, end - start) for completion in tree.completions)]
        for run, at in runs:
            if run[0] < run[1]:
                own.queries.append(run)
                own.query_at.append(at)
            longest = max(longest, at + run[1] - run[0])
        if tree.completions and start < end:
            for completion in tree.completions:
                prompts.queries.append(completion)
                prompts.query_at.append(end - start)
                prompts.keys.append(tree.prompt)
                prompts.key_at.append(0)
    return Segments(own.queries, own.query_at, own.queries, own.query_at), prompts, longest


def grouped(segments: Segments) -> Iterator[tuple[Places, Places, Places, Places, Places]]:
    """Segments of like length (within a factor of two) as the first five fields of a `Group`."""
    groups: dict[tuple[int, int], list[int]] = {}
    for at, (query, key) in enumerate(zip(segments.queries, segments.keys, strict=True)):
        size = ((query[1] - query[0]).bit_length(), (key[1] - key[0]).bit_length())
        groups.setdefault(size, []).append(at)
    for members in groups.values():
        queries = _padded_runs([segments.queries[at] for at in members], [segments.query_at[at] for at in members])
        keys = _padded_runs([segments.keys[at] for at in members], [segments.key_at[at] for at in members])
        yield np.flatnonzero(queries[1] < _NOWHERE), *queries, *keys


def _padded_runs(runs: Sequence[tuple[int, int]], starts: Sequence[int]) -> tuple[Places, Places]:
    first, end = np.array(runs, dtype=np.int64).T
    offsets = np.arange((end - first).max(), dtype=np.int64)
    inside = offsets < (end - first)[:, None]
    places = np.where(inside, first[:, None] + offsets, 0)
    return places, np.where(inside, np.array(starts, dtype=np.int64)[:, None] + offsets, _NOWHERE)


def joined_runs(runs: Sequence[tuple[int, int]]) -> tuple[Places, Places, int]:
    """Runs one after the other: their places, the bounds between them, and the longest."""
    lengths = np.array([end - first for first, end in runs], dtype=np.int64)
    places = [np.arange(first, end, dtype=np.int64) for first, end in runs]
    joined = np.concatenate(places) if places else np.zeros(0, dtype=np.int64)
    return joined, np.concatenate(([0], np.cumsum(lengths))), int(lengths.max(initial=0))


def ragged_runs(trees: Sequence[Any]) -> tuple[list[tuple[int, int]], ...]:
    """For ragged kernels: all segments; the completions of each prompt as one run; and the prompts."""
    segments, queries, keys = [], [], []
    for tree in trees:
        segments += [run for run in (tree.prompt, *tree.completions) if run[0] < run[1]]
        if tree.completions and tree.prompt[0] < tree.prompt[1]:
            queries.append((tree.completions[0][0], tree.completions[-1][1]))
            keys.append(tree.prompt)
    return segments, queries, keys
