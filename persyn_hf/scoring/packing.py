"""Answers of one prompt in one packed sequence: the prompt's tokens once, then every completion's.

A pack is a row of trees, a tree is a prompt and some of its completions. Position ids restart after the prompt for
every completion, and attention sees the prompt and the completion itself, never a neighbour: no padding, and a prompt
is computed once however many teachers answered it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from persyn_hf.scoring.rendering import Rendered

#: The name of the packed attention among transformers' attention implementations.
PACKED = "persyn_packed"

_LAYOUT: ContextVar[Layout] = ContextVar("persyn_layout")


@dataclass(frozen=True)
class Tree:
    """A prompt's place in a pack and its completions' places, all `[start, end)`."""

    prompt: tuple[int, int]
    completions: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """One past the last token of the tree."""
        return self.completions[-1][1] if self.completions else self.prompt[1]


@dataclass
class Layout:
    """Where the trees of a pack lie; `masks` keeps what all layers share."""

    trees: tuple[Tree, ...]
    masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """One forward pass.

    Args:
        ids, positions (`list[int]`): Tokens fed and their position ids. The last token of a completion predicts
            nothing that is scored, so it is not fed.
        layout (`Layout`): Where prompts and completions lie.
        rows (`list[int]`): The answers, in the order of their completions.
        sources (`list[int]`): For every scored token the place in `ids` that predicts it.
        targets (`list[int]`): The scored tokens.
        lengths (`list[int]`): Scored tokens per answer.
    """

    ids: list[int]
    positions: list[int]
    layout: Layout
    rows: list[int]
    sources: list[int]
    targets: list[int]
    lengths: list[int]


def plan_packs(answers: Sequence[Rendered], rows: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Groups answers into packs of at most `token_budget` fed tokens, answers of one prompt beside each other.

    Args:
        answers (`Sequence[Rendered]`): All answers.
        rows (`Sequence[int]`): Those to score.
        token_budget (`int`): Tokens per pack. An answer longer than this has a pack of its own.

    Yields:
        `list[int]`: The rows of one pack.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(answers[row].prompt_ids, []).append(row)
    pack: list[int] = []
    used = 0
    for prompt_ids, members in groups.items():
        opened = False
        for row in members:
            own = len(answers[row].completion_ids) - 1
            cost = own + (0 if opened else len(prompt_ids))
            if pack and used + cost > token_budget:
                yield pack
                pack, used, cost = [], 0, own + len(prompt_ids)
            pack.append(row)
            used += cost
            opened = True
    if pack:
        yield pack


def build_pack(answers: Sequence[Rendered], rows: Sequence[int]) -> Pack:
    """Lays out answers as one packed sequence; neighbours with the same prompt share it."""
    pack = Pack([], [], Layout(()), [], [], [], [])
    trees: list[Tree] = []
    prompt: tuple[int, ...] | None = None
    start = 0
    completions: list[tuple[int, int]] = []
    for row in rows:
        answer = answers[row]
        if answer.prompt_ids != prompt:
            if prompt is not None:
                trees.append(Tree((start, start + len(prompt)), tuple(completions)))
            prompt, start, completions = answer.prompt_ids, len(pack.ids), []
            pack.ids.extend(prompt)
            pack.positions.extend(range(len(prompt)))
        fed = answer.completion_ids[:-1]
        first = len(pack.ids)
        if fed:
            completions.append((first, first + len(fed)))
        pack.ids.extend(fed)
        pack.positions.extend(range(len(prompt), len(prompt) + len(fed)))
        pack.rows.append(row)
        pack.sources.append(start + len(prompt) - 1)
        pack.sources.extend(range(first, first + len(fed)))
        pack.targets.extend(answer.completion_ids)
        pack.lengths.append(len(answer.completion_ids))
    if prompt is not None:
        trees.append(Tree((start, start + len(prompt)), tuple(completions)))
    pack.layout.trees = tuple(trees)
    return pack


def run_packed(forward: Callable[..., Any], pack: Pack, device: torch.device) -> Tensor:
    """Runs a model body on a pack.

    Returns:
        `Tensor`: Last hidden states, `(tokens, hidden)`.
    """
    token = _LAYOUT.set(pack.layout)
    try:
        output = forward(
            input_ids=torch.tensor([pack.ids], device=device),
            position_ids=torch.tensor([pack.positions], device=device),
            use_cache=False,
        )
    finally:
        _LAYOUT.reset(token)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def register_packed_attention() -> None:
    """Makes `PACKED` known to transformers. Its mask is none at all: the layout says who sees whom."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the trees of the current pack, with transformers' attention signature.

    Args:
        module (`torch.nn.Module`): The attention layer.
        query (`Tensor`): `(1, heads, tokens, dim)`.
        key, value (`Tensor`): `(1, key_value_heads, tokens, dim)`.
        attention_mask (`None`): Unused.
        scaling (`float`, *optional*), sliding_window (`int`, *optional*), softcap (`float`, *optional*): Of the layer.

    Returns:
        `tuple[Tensor, None]`: `(1, tokens, heads, dim)`.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not packed")
    layout = _LAYOUT.get()
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attend = _Attend(layout, query, key, value, scaling, sliding_window, softcap)
    output = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    merged = query.device.type == "cpu" and softcap is None and query.dtype != torch.float16
    for tree in layout.trees:
        windowed = sliding_window is not None and _longest(tree) > sliding_window
        (attend.masked if windowed or not merged else attend.merged)(tree, output.transpose(1, 2))
    return output, None


def _longest(tree: Tree) -> int:
    start, end = tree.prompt
    return end - start + max((stop - first for first, stop in tree.completions), default=0)


@dataclass(frozen=True)
class _Attend:
    """Attention of one layer, tree by tree."""

    layout: Layout
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None
    window: int | None
    softcap: float | None

    def merged(self, tree: Tree, output: Tensor) -> None:
        """Prompt part (one call for all completions) and own part, joined by their log-sum-exps: no masks."""
        start, end = tree.prompt
        output[:, :, start:end] = self._flash(tree.prompt, tree.prompt, causal=True)[0]
        if not tree.completions:
            return
        whole = (tree.completions[0][0], tree.completions[-1][1])
        shared, shared_lse = self._flash(whole, tree.prompt, causal=False)
        for first, stop in tree.completions:
            own, own_lse = self._flash((first, stop), (first, stop), causal=True)
            here = slice(first - whole[0], stop - whole[0])
            weight = torch.sigmoid(shared_lse[:, :, here] - own_lse).unsqueeze(-1).to(own.dtype)
            torch.lerp(own, shared[:, :, here], weight, out=output[:, :, first:stop])

    def _flash(self, queries: tuple[int, int], keys: tuple[int, int], causal: bool) -> tuple[Tensor, Tensor]:
        query, span = self.query[:, :, slice(*queries)], slice(*keys)
        key, value = self.key[:, :, span], self.value[:, :, span]
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, is_causal=causal, scale=self.scaling
        )
        return out, lse

    def masked(self, tree: Tree, output: Tensor) -> None:
        """One call per segment with an explicit mask: windows, soft caps and devices without the CPU kernel."""
        start, end = tree.prompt
        output[:, :, start:end] = self._with_mask(tree.prompt, self.key[:, :, start:end], self.value[:, :, start:end])
        for first, stop in tree.completions:
            key = torch.cat((self.key[:, :, start:end], self.key[:, :, first:stop]), dim=2)
            value = torch.cat((self.value[:, :, start:end], self.value[:, :, first:stop]), dim=2)
            output[:, :, first:stop] = self._with_mask((first, stop), key, value)

    def _with_mask(self, queries: tuple[int, int], key: Tensor, value: Tensor) -> Tensor:
        query = self.query[:, :, slice(*queries)]
        mask = self._mask(query.shape[2], key.shape[2])
        if self.softcap is None:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self.scaling)
        scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if self.scaling is None else self.scaling)
        scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype) @ value

    def _mask(self, queries: int, keys: int) -> Tensor:
        """True where a query may look; queries are the last of the keys."""
        name = (queries, keys, self.window or 0)
        if name not in self.layout.masks:
            places = torch.arange(keys, device=self.query.device)
            at = places[keys - queries :, None]
            mask = places <= at
            if self.window is not None:
                mask &= places > at - self.window
            self.layout.masks[name] = mask
        return self.layout.masks[name]
