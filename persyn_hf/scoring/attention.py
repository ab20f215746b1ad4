"""Attention over packed answers: a completion attends to its prompt and to itself, never to a neighbour.

On a CPU the queries go in blocks. The scores of a block are one matrix product with the keys it may see: the prompt
and the completion up to the block. So the half of the scores that causality forbids is hardly computed, heads that
share keys share the product, and nothing is as large as queries × keys. It takes half the time of PyTorch's own CPU
kernel, and scores stay in float32 also for bfloat16. Elsewhere all trees go at once, see `persyn_hf.scoring.parts`,
and batches of plain sequences go to PyTorch's causal kernels, without a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from persyn_hf.scoring.parts import Parts, Scores, in_blocks

#: The name of the packed attention among transformers' attention implementations.
PACKED = "persyn_packed"

#: Queries of one block. Smaller blocks waste less on masked keys, larger blocks make faster matrix products.
_BLOCK = 64


@dataclass(frozen=True)
class Tree:
    """The span of a prompt in a pack and the spans of its completions, all `[start, end)`."""

    prompt: tuple[int, int]
    completions: tuple[tuple[int, int], ...]


@dataclass
class Layout:
    """Positions of the trees of a pack; `masks` keeps what all layers share.

    With `parts`, the same places as tensors of a device, all trees go at once; without, one after the other.
    """

    trees: tuple[Tree, ...]
    parts: Parts | None = None
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)


_LAYOUT: ContextVar[Layout | None] = ContextVar("persyn_layout", default=None)


@contextmanager
def with_layout(layout: Layout) -> Iterator[None]:
    """Tells `packed_attention` which pack the model is reading."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def register_packed_attention() -> None:
    """Makes `PACKED` known to transformers.

    It gets no mask function: then transformers makes no mask, and does not look at position ids to learn whether it
    should, for which it would wait for the device at every forward pass.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Computes attention over the trees of the current pack, with transformers' attention signature.

    Outside of `with_layout` the rows are plain sequences, right-padded.

    Args:
        module (`torch.nn.Module`): The attention layer.
        query (`Tensor`): `(1, heads, tokens, dim)`; of plain sequences `(rows, heads, tokens, dim)`.
        key, value (`Tensor`): `(1, key_value_heads, tokens, dim)`; of plain sequences as many rows.
        attention_mask (`None`): Unused.
        scaling (`float`, *optional*): Factor on the scores; defaults to `dim ** -0.5`.
        sliding_window (`int`, *optional*), softcap (`float`, *optional*): The layer's settings.

    Returns:
        `tuple[Tensor, None]`: `(1, tokens, heads, dim)`; of plain sequences `(rows, tokens, heads, dim)`.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("packed attention supports neither attention sinks nor position biases")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout = _LAYOUT.get()
    if layout is None:
        return _causal(query, key, value, Scores(scale, sliding_window, softcap)), None
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    way = _Blocks if layout.parts is None else _TwoParts
    way(layout, query, key, value, output, scale, sliding_window, softcap).fill()
    return output, None


@dataclass
class _Attention:
    """One layer's attention over one pack."""

    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float
    window: int | None
    softcap: float | None

    def __post_init__(self) -> None:
        """Prepares the tensors that all trees of the pack share."""

    def fill(self) -> None:
        """Fills the output, tree by tree: the prompt, then every completion behind the prompt."""
        for tree in self.layout.trees:
            self.segment((tree.prompt[0], tree.prompt[0]), tree.prompt)
            for completion in tree.completions:
                self.segment(tree.prompt, completion)

    def segment(self, prompt: tuple[int, int], own: tuple[int, int]) -> None:
        """Fills the output of the tokens `own`, which attend to `prompt` and, causally, to themselves."""
        raise NotImplementedError

    def allowed(self, queries: int, keys: int) -> Tensor:
        """The mask, true where a query may attend; the queries are the last of the keys. Cached for all layers."""
        name = (queries, keys, self.window or 0)
        if name not in self.layout.masks:
            places = torch.arange(keys, device=self.query.device)
            at = places[keys - queries :, None]
            mask = places <= at
            if self.window is not None:
                mask &= places > at - self.window
            self.layout.masks[name] = mask
        return self.layout.masks[name]


class _Blocks(_Attention):
    """Blocks of queries as plain matrix products, scores in at least float32."""

    def __post_init__(self) -> None:
        wide = torch.promote_types(self.query.dtype, torch.float32)
        self._heads = self.key.shape[1]
        self._query = self.query[0].to(wide) * self.scale
        self._key = self.key[0].to(wide)

    def segment(self, prompt: tuple[int, int], own: tuple[int, int]) -> None:
        """See `_Attention.segment`."""
        key, value = (_joined(part, prompt, own) for part in (self._key, self.value[0]))
        key = key.transpose(1, 2)
        before = prompt[1] - prompt[0]
        for start in range(own[0], own[1], _BLOCK):
            stop = min(start + _BLOCK, own[1])
            seen = before + stop - own[0]
            first = 0 if self.window is None else max(seen - (stop - start) - self.window + 1, 0)
            self._block(start, stop, key[:, :, first:seen], value[:, first:seen])

    def _block(self, start: int, stop: int, key: Tensor, value: Tensor) -> None:
        queries, keys = stop - start, key.shape[2]
        query = self._query[:, start:stop].reshape(self._heads, -1, self._query.shape[-1])
        scores = torch.bmm(query, key)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        by_query = scores.view(self._heads, -1, queries, keys)
        if self.window is None:  # every query of the block attends to all tokens before the block
            own = self.allowed(queries, queries)
            by_query[..., keys - queries :].masked_fill_(~own, float("-inf"))
        else:
            by_query.masked_fill_(~self.allowed(queries, keys), float("-inf"))
        found = torch.bmm(torch.softmax(scores, dim=-1).to(value.dtype), value)
        self.output[0, start:stop] = found.view(-1, queries, value.shape[-1]).transpose(0, 1)


class _TwoParts(_Attention):
    """All trees of a pack at once: every segment on itself, every completion on its prompt, merged by their sums."""

    def fill(self) -> None:
        """See `_Attention.fill`."""
        parts = self.layout.parts
        assert parts is not None
        query, key, value = (part[0].transpose(0, 1) for part in (self.query, self.key, self.value))
        window = self.window if self.window is not None and self.window < parts.longest else None
        how = Scores(self.scale, window, self.softcap)
        self.output[0] = parts.attend(query, key, value, how)


def _causal(query: Tensor, key: Tensor, value: Tensor, how: Scores) -> Tensor:
    """Rows of sequences, right-padded, which needs no mask: `(rows, heads, tokens, dim)`."""
    tokens = query.shape[2]
    window = how.window if how.window is not None and how.window < tokens else None
    if window is None and how.softcap is None:
        # Only FlashAttention reads grouped heads; for the other kernels PyTorch would take one that holds all scores.
        grouped = query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256
        if query.shape[1] != key.shape[1] and not grouped:
            groups = query.shape[1] // key.shape[1]
            key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        unlike = query.shape[1] != key.shape[1]
        found = scaled_dot_product_attention(query, key, value, is_causal=True, scale=how.scale, enable_gqa=unlike)
        return found.transpose(1, 2)
    places = torch.arange(tokens, device=query.device).expand(query.shape[0], -1)
    how = Scores(how.scale, window, how.softcap)
    return in_blocks(query, key, value, places, places, how, causal=True)[0].transpose(1, 2)


def _joined(part: Tensor, prompt: tuple[int, int], own: tuple[int, int], dim: int = 1) -> Tensor:
    behind = part.narrow(dim, own[0], own[1] - own[0])
    if prompt[0] == prompt[1]:
        return behind
    return torch.cat((part.narrow(dim, prompt[0], prompt[1] - prompt[0]), behind), dim=dim)
