"""Batches of a device that computes while the host prepares: which answers go together, and their tensors.

Two kinds. Sorted batches hold answers of like length, padded on the right: a causal model gives what stands before the
padding no other numbers, so no mask is needed. Shared ones are packs, in which a prompt stands once. Which is cheaper
depends on the lengths alone, and is counted in tokens that go through the model, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.attention import Layout, Tree, with_layout
from persyn_hf.scoring.packing import build_pack, plan_packs
from persyn_hf.scoring.parts import Group, Parts, Places, Ragged, grouped, joined_runs, ragged_runs, segments_of


@dataclass(frozen=True)
class Batch:
    """Answers of one forward pass.

    Args:
        rows (`tuple[int, ...]`): Which.
        tokens (`int`): Tokens that go through the model, padding included.
        shared (`bool`): Whether it is a pack, in which a prompt stands once.
        size (`int`): The tokens that it was allowed.
    """

    rows: tuple[int, ...]
    tokens: int
    shared: bool
    size: int


@dataclass(frozen=True)
class Sharing:
    """The attention that reads packs, and its relative cost.

    Args:
        cost (`float`): Cost of a token of a pack, relative to one of a sorted batch.
        ragged (`bool`): FlashAttention over ragged sequences is there.
        groups (`bool`): Some layers need padded groups.
    """

    cost: float
    ragged: bool
    groups: bool


def plan_batches(
    answers: Sequence[Rendered], rows: Sequence[int], size: Callable[[], int], sharing: Sharing | None
) -> Iterator[Batch]:
    """Goes through answers, the longest first, each prompt in the kind of batch that its lengths make cheaper.

    Args:
        answers (`Sequence[Rendered]`): All answers.
        rows (`Sequence[int]`): Rows to score.
        size (`Callable[[], int]`): Tokens of a batch, asked before each.
        sharing (`Sharing`, *optional*): `None` where the model cannot be packed.

    Yields:
        `Batch`: One forward pass.
    """
    shared = set() if sharing is None else _shared_rows(answers, rows, size(), sharing.cost)
    yield from _sorted_batches(answers, [row for row in rows if row not in shared], size)
    packed = sorted(shared, key=lambda row: (-len(answers[row].ids), row))
    allowed = [size()]

    def noted() -> int:
        allowed[0] = size()
        return allowed[0]

    for pack in plan_packs(answers, packed, noted):
        prompts = {answers[row].prompt_ids for row in pack}
        tokens = sum(map(len, prompts)) + sum(len(answers[row].completion_ids) - 1 for row in pack)
        yield Batch(tuple(pack), tokens, True, allowed[0])


def _sorted_batches(answers: Sequence[Rendered], rows: Sequence[int], size: Callable[[], int]) -> Iterator[Batch]:
    order = sorted(rows, key=lambda row: -len(answers[row].ids))
    at = 0
    while at < len(order):
        width, allowed = len(answers[order[at]].ids), size()
        batch = order[at : at + max(1, allowed // width)]
        at += len(batch)
        yield Batch(tuple(batch), width * len(batch), False, allowed)


def _shared_rows(answers: Sequence[Rendered], rows: Sequence[int], size: int, cost: float) -> set[int]:
    """Answers of the prompts for which a pack is cheaper."""
    plain: dict[tuple[int, ...], int] = {}
    packed: dict[tuple[int, ...], int] = {}
    members: dict[tuple[int, ...], list[int]] = {}
    for batch in _sorted_batches(answers, rows, lambda: size):
        width = batch.tokens // len(batch.rows)
        for row in batch.rows:
            prompt = answers[row].prompt_ids
            plain[prompt] = plain.get(prompt, 0) + width
            packed[prompt] = packed.get(prompt, len(prompt)) + len(answers[row].completion_ids) - 1
            members.setdefault(prompt, []).append(row)
    return {row for prompt, own in members.items() if packed[prompt] * cost < plain[prompt] for row in own}


def upload(arrays: Mapping[str, Places], device: torch.device) -> dict[str, Tensor]:
    """Brings integers to a device in one copy, which the host does not wait for."""
    joined = torch.empty(
        sum(part.size for part in arrays.values()), dtype=torch.long, pin_memory=device.type == "cuda"
    )
    view, at = joined.numpy(), 0
    for part in arrays.values():
        view[at : at + part.size] = part.ravel()
        at += part.size
    there, at, found = joined.to(device, non_blocking=True), 0, {}
    for name, part in arrays.items():
        found[name] = there[at : at + part.size].view(part.shape)
        at += part.size
    return found


def sorted_arrays(answers: Sequence[Rendered], rows: Sequence[int]) -> dict[str, Places]:
    """The tensors of a sorted batch.

    Returns:
        `dict[str, Places]`: `ids` `(rows, tokens)` and `lengths` `(rows,)`; for every scored token the place in the
        flattened batch that predicts it (`sources`), its id (`targets`) and its answer (`owners`).
    """
    width = max(len(answers[row].ids) for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    sources, targets = [], []
    for place, row in enumerate(rows):
        own, (start, end) = answers[row].ids, answers[row].span
        ids[place, : len(own)] = own
        sources.append(np.arange(place * width + start - 1, place * width + end - 1))
        targets.append(ids[place, start:end])
    return {
        "ids": ids,
        "lengths": np.array([len(answers[row].ids) for row in rows], dtype=np.int64),
        "sources": np.concatenate(sources),
        "targets": np.concatenate(targets),
        "owners": np.repeat(np.array(rows, dtype=np.int64), [len(part) for part in sources]),
    }


def run_sorted(body: Callable[..., Any], inputs: Mapping[str, Tensor], masked: bool = False) -> Tensor:
    """Runs a model's body on a sorted batch.

    Args:
        body (`Callable`): The model without its head.
        inputs (`Mapping[str, Tensor]`): From `sorted_arrays`.
        masked (`bool`, defaults to `False`): Tell the model where the padding is, which causal models need not know.

    Returns:
        `Tensor`: Last hidden states, `(rows * tokens, hidden)`.
    """
    ids = inputs["ids"]
    mask = {}
    if masked:
        mask = {"attention_mask": (torch.arange(ids.shape[1], device=ids.device) < inputs["lengths"][:, None]).long()}
    hidden: Tensor = body(input_ids=ids, use_cache=False, **mask)[0]
    return hidden.flatten(0, 1)


@dataclass(frozen=True)
class PackTensors:
    """A pack on its way to a device: its integers, and what only the host needs to know of its parts."""

    arrays: dict[str, Places]
    groups: tuple[int, int]
    longest: int
    runs: tuple[int, int, int] | None

    def parts(self, inputs: Mapping[str, Tensor]) -> Parts:
        """Positions of the trees, on the device."""
        own, prompts = (
            tuple(
                Group(causal=part == "own", **{name: inputs[f"{part}.{index}.{name}"] for name in _GROUP})
                for index in range(count)
            )
            for part, count in zip(("own", "prompts"), self.groups, strict=True)
        )
        ragged = None
        if self.runs is not None:
            segments, queries, keys = self.runs
            each, asked, seen = (
                (inputs[name], inputs[f"{name}.bounds"].to(torch.int32)) for name in ("segments", "queries", "keys")
            )
            ragged = (Ragged(*each, segments, *each, segments), Ragged(*asked, queries, *seen, keys))
        return Parts(own, prompts, self.longest, ragged)


_GROUP = ("real", "query", "query_positions", "key", "key_positions")


def pack_tensors(answers: Sequence[Rendered], rows: Sequence[int], sharing: Sharing) -> PackTensors:
    """Lays out answers as one pack; see `persyn_hf.scoring.packing`."""
    pack = build_pack(answers, rows)
    arrays = {
        "ids": np.array([pack.ids], dtype=np.int64),
        "positions": np.array([pack.positions], dtype=np.int64),
        "sources": np.array(pack.sources, dtype=np.int64),
        "targets": np.array(pack.targets, dtype=np.int64),
        "owners": np.repeat(np.array(rows, dtype=np.int64), pack.lengths),
    }
    places = lay_out(pack.layout.trees, sharing)
    return replace(places, arrays=arrays | places.arrays)


def lay_out(trees: Sequence[Tree], sharing: Sharing) -> PackTensors:
    """Lays out the positions of trees as integers for a device."""
    arrays: dict[str, Places] = {}
    own, prompts, longest = segments_of(trees)
    counts = [0, 0]
    for at, (name, part) in enumerate((("own", own), ("prompts", prompts)) if sharing.groups else ()):
        for group in grouped(part):
            arrays |= {f"{name}.{counts[at]}.{key}": value for key, value in zip(_GROUP, group, strict=True)}
            counts[at] += 1
    runs = None
    if sharing.ragged:
        lengths = []
        for name, found in zip(("segments", "queries", "keys"), ragged_runs(trees), strict=True):
            arrays[name], arrays[f"{name}.bounds"], most = joined_runs(found)
            lengths.append(most)
        runs = (lengths[0], lengths[1], lengths[2])
    return PackTensors(arrays, (counts[0], counts[1]), longest, runs)


def run_shared(body: Callable[..., Any], pack: PackTensors, inputs: Mapping[str, Tensor]) -> Tensor:
    """Runs a model's body on a pack.

    Returns:
        `Tensor`: Last hidden states, `(tokens, hidden)`.
    """
    with with_layout(Layout((), pack.parts(inputs))):
        hidden: Tensor = body(input_ids=inputs["ids"], position_ids=inputs["positions"], use_cache=False)[0]
    return hidden[0]
