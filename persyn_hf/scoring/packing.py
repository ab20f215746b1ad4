"""Packed sequences: the prompt's tokens once, then the tokens of every completion of that prompt.

A pack is a row of trees; a tree is a prompt and some of its completions. Position ids restart after the prompt for
every completion, and a completion attends to the prompt and to itself, never to a neighbour. There is no padding, and
a prompt is computed once for all its answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.attention import Layout, Tree, with_layout


@dataclass(frozen=True)
class Pack:
    """One forward pass.

    Args:
        ids, positions (`list[int]`): Tokens fed and their position ids. The last token of a completion predicts no
            scored token, so it is not fed.
        layout (`Layout`): Spans of the prompts and completions.
        rows (`list[int]`): Rows of the answers, in the order of their completions.
        sources (`list[int]`): Position in `ids` that predicts each scored token.
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


def plan_packs(
    answers: Sequence[Rendered], rows: Sequence[int], token_budget: int | Callable[[], int]
) -> Iterator[list[int]]:
    """Groups answers into packs of at most `token_budget` fed tokens, answers of one prompt beside each other.

    Args:
        answers (`Sequence[Rendered]`): All answers.
        rows (`Sequence[int]`): Rows to score.
        token_budget (`int` or `Callable[[], int]`): Tokens per pack; a function is asked before each. An answer longer
            than this has a pack of its own.

    Yields:
        `list[int]`: The rows of one pack.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(answers[row].prompt_ids, []).append(row)
    pack: list[int] = []
    used = 0
    budget = token_budget() if callable(token_budget) else token_budget
    for prompt_ids, members in groups.items():
        opened = False
        for row in members:
            own = len(answers[row].completion_ids) - 1
            cost = own + (0 if opened else len(prompt_ids))
            if pack and used + cost > budget:
                yield pack
                budget = token_budget() if callable(token_budget) else token_budget
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
    with with_layout(pack.layout):
        output = forward(
            input_ids=torch.tensor([pack.ids], device=device),
            position_ids=torch.tensor([pack.positions], device=device),
            use_cache=False,
        )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden
