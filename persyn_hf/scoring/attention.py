"""Attention over packed answers: a completion attends to its prompt and to itself, never to a neighbour.

On a CPU, queries are processed in blocks. The scores of a block are one matrix product with the keys it may attend to:
the prompt and the completion up to the block. This skips most of the masked half of the scores, heads that share keys
share the product, and no matrix of queries × keys is allocated. It takes half the time of PyTorch's own CPU kernel,
and scores stay in float32 for bfloat16 too. On other devices, PyTorch's kernels get one masked call per completion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    """The trees of a pack; `masks` caches the masks that all layers share."""

    trees: tuple[Tree, ...]
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)


_LAYOUT: ContextVar[Layout] = ContextVar("persyn_layout")


@contextmanager
def with_layout(layout: Layout) -> Iterator[None]:
    """Tells `packed_attention` which pack the model is reading."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def register_packed_attention() -> None:
    """Registers `PACKED` with transformers, without a mask: the layout says which tokens attend to which."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)


def _no_mask(*args: object, **kwargs: object) -> None:
    return None


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

    Args:
        module (`torch.nn.Module`): The attention layer.
        query (`Tensor`): `(1, heads, tokens, dim)`.
        key, value (`Tensor`): `(1, key_value_heads, tokens, dim)`.
        attention_mask (`None`): Unused.
        scaling (`float`, *optional*): Factor on the scores; defaults to `dim ** -0.5`.
        sliding_window (`int`, *optional*), softcap (`float`, *optional*): The layer's settings.

    Returns:
        `tuple[Tensor, None]`: `(1, tokens, heads, dim)`.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("packed attention supports neither attention sinks nor position biases")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    way = _Blocks if query.device.type == "cpu" else _Masked
    attend = way(_LAYOUT.get(), query, key, value, output, scale, sliding_window, softcap)
    for tree in attend.layout.trees:
        attend(tree)
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

    def __call__(self, tree: Tree) -> None:
        """Fills the output of a tree: the prompt, then every completion after the prompt."""
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


class _Masked(_Attention):
    """PyTorch's kernels with an explicit mask."""

    def __post_init__(self) -> None:
        groups = self.query.shape[1] // self.key.shape[1]
        if groups > 1:
            self.key, self.value = (part.repeat_interleave(groups, dim=1) for part in (self.key, self.value))

    def segment(self, prompt: tuple[int, int], own: tuple[int, int]) -> None:
        """See `_Attention.segment`."""
        query = self.query[:, :, slice(*own)]
        key, value = (_joined(part, prompt, own, dim=2) for part in (self.key, self.value))
        mask = self.allowed(query.shape[2], key.shape[2])
        if self.softcap is None:
            found = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scale)
        else:
            scores = torch.tanh(query @ key.transpose(2, 3) * (self.scale / self.softcap)) * self.softcap
            scores = scores.masked_fill(~mask, float("-inf"))
            wide = torch.promote_types(query.dtype, torch.float32)
            found = torch.softmax(scores, dim=-1, dtype=wide).to(query.dtype) @ value
        self.output[:, slice(*own)] = found.transpose(1, 2)


def _joined(part: Tensor, prompt: tuple[int, int], own: tuple[int, int], dim: int = 1) -> Tensor:
    behind = part.narrow(dim, own[0], own[1] - own[0])
    if prompt[0] == prompt[1]:
        return behind
    return torch.cat((part.narrow(dim, prompt[0], prompt[1] - prompt[0]), behind), dim=dim)
