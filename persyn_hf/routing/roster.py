"""Adding a teacher to a trained router and removing one, by adding or dropping one row of its head."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from persyn_hf.config import Router, default_of
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.heads import Array, Head
from persyn_hf.routing.rewards import left_out_lines, read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.seen import PROBE_KEY, seen_record
from persyn_hf.routing.training import describe_teachers, require_plain_names, save_router

#: Candidate strengths for the new row, strongest first; the first leaves only its mean.
_STRENGTHS = (1e3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)


def add_teacher(
    router: PersynRouter,
    scored: Any,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    teacher: Any = None,
    folds: int = 5,
    seed: int = 0,
    device: str | None = None,
    min_answered: float = default_of(Router, "min_answered"),
) -> PersynRouter:
    """Adds a teacher to a router, from that teacher's answers to the router's probe; nothing else is trained.

    A router's logits are Bradley–Terry scores, so the new row is fitted to the pairs of the new teacher with the old
    ones, whose scores stay fixed: a logistic regression with a strength chosen on held-out pairs.

    Args:
        router (`PersynRouter`): Router to extend; it is not changed.
        scored (`Dataset`): Rows of the old teachers and of exactly one new teacher on the same prompts, with rewards
            normalised together.
        output_dir (`str` or `PathLike`, *optional*): Folder of the new checkpoint; default: a temporary folder,
            removed when the process ends.
        teacher (`Teacher` or `Mapping`, *optional*): Description of the new teacher, for the checkpoint.
        folds (`int`, defaults to 5): Folds of the cross-validation.
        seed (`int`, defaults to 0): Random seed of the cross-validation.
        device (`str`, *optional*): Device of the new router; default: `cuda` if available, else `cpu`.
        min_answered (`float`, defaults to 0.5): Share of the prompts, 0 to 1, that each teacher must have answered.

    Returns:
        `PersynRouter`: New router, with the new teacher last. If the old router has fallen back to its best single
            teacher, so has the new one; it falls back to the new teacher if that one is better.

    Raises:
        RouterMismatchError: If the table does not have exactly one teacher that the router lacks.
        DataError: If the new teacher mostly failed, or its rewards equal the old teachers' on every prompt.

    Example:
        >>> wider = add_teacher(router, scored_with_the_new_one, "router-v2")  # doctest: +SKIP
    """
    table = read_rewards(scored, "add_teacher", min_answered)
    failed = [name for name in table.left_out if name not in router.teachers]
    if failed:
        raise DataError(
            " ".join(left_out_lines(replace(table, left_out={failed[0]: table.left_out[failed[0]]}), min_answered))
        )
    require_plain_names(table.teachers)
    new = [name for name in table.teachers if name not in router.teachers]
    if len(new) != 1:
        raise RouterMismatchError(
            f"add_teacher adds one teacher: expected one that is not in {router.teachers}, got {new}."
        )
    described = describe_teachers(new, None if teacher is None else [teacher])
    table = table.reordered([*router.teachers, *new])
    means, scores = table.means, table.mean_scores()
    table = table.subset(np.flatnonzero(~np.isnan(table.rewards[:, -1])))
    model, tokenizer = copy.deepcopy(router.model), router.tokenizer
    has_bias, linear = backbones.final_linear(model)
    inputs = router.embeddings(table.prompts)
    features = backbones.FeatureMap(inputs, has_bias)
    rows = features(inputs)
    if router.fallback is not None:
        rows = rows * 0.0  # the router ignores the prompt
    offsets = router.scores(table.prompts).astype(np.float64)
    head = _fit_row(rows, offsets, table.rewards, folds, seed)
    row = nn.Linear(linear.in_features, 1, bias=has_bias, dtype=torch.float64)
    features.write(head, row)
    _replace_head(
        model,
        torch.cat([linear.weight.data, row.weight.to(linear.weight)]),
        torch.cat([linear.bias.data, row.bias.to(linear.bias)]) if has_bias else None,
    )
    block = _block(router, [*router.metadata["teachers"], *described])
    if PROBE_KEY in block:
        block[PROBE_KEY] = seen_record(table.prompts, block[PROBE_KEY])
    block["left_out"] = {name: gave for name, gave in block.get("left_out", {}).items() if name != new[0]}
    for name, values in scores.items():
        block.setdefault("probe_means", {}).setdefault(name, {})[new[0]] = values[new[0]]
    if router.fallback is not None and means[-1] > means[table.teachers.index(router.fallback)]:
        block["fallback"] = new[0]
    block["roster"] = [*block.get("roster", []), {"added": new[0], "prompts": len(table.prompts)}]
    return _saved(model, tokenizer, block, table.teachers, output_dir, device)


def remove_teacher(
    router: PersynRouter, name: str, output_dir: str | os.PathLike[str] | None = None, *, device: str | None = None
) -> PersynRouter:
    """Removes a teacher from a router; nothing is trained, and the other teachers' scores do not change.

    Args:
        router (`PersynRouter`): Router to reduce; it is not changed.
        name (`str`): Name of the teacher to remove.
        output_dir (`str` or `PathLike`, *optional*): Folder of the new checkpoint; default: a temporary folder,
            removed when the process ends.
        device (`str`, *optional*): Device of the new router; default: `cuda` if available, else `cpu`.

    Returns:
        `PersynRouter`: New router. If the old router has fallen back to this teacher, the new one falls back to the
            best remaining teacher.

    Raises:
        RouterMismatchError: If the router does not have the teacher, or would keep fewer than two.
    """
    if name not in router.teachers:
        raise RouterMismatchError(f"`name` must be one of the router's teachers {router.teachers}, got {name!r}.")
    left = [teacher for teacher in router.teachers if teacher != name]
    if len(left) < 2:
        raise RouterMismatchError(f"A router needs at least two teachers; without {name!r} only {left} would remain.")
    model = copy.deepcopy(router.model)
    has_bias, linear = backbones.final_linear(model)
    kept = [index for index, teacher in enumerate(router.teachers) if teacher != name]
    _replace_head(model, linear.weight.data[kept], linear.bias.data[kept] if has_bias else None)
    block = _block(router, [teacher for teacher in router.metadata["teachers"] if teacher["name"] != name])
    for values in block.get("probe_means", {}).values():
        values.pop(name, None)
    if router.fallback == name:
        means = block.get("probe_means", {}).get("reward", {})
        block["fallback"] = max(left, key=lambda teacher: means.get(teacher, float("-inf")))
    block["roster"] = [*block.get("roster", []), {"removed": name}]
    return _saved(model, router.tokenizer, block, left, output_dir, device)


def _fit_row(features: Array, offsets: Array, rewards: Array, folds: int, seed: int) -> Head:
    """Fits the new teacher's mean and weights, with fixed scores of the others; its rewards are the last column."""
    with np.errstate(invalid="ignore"):
        sign = np.sign(rewards[:, -1:] - rewards[:, :-1])
    sign = np.nan_to_num(sign)
    if not sign.any():
        raise DataError(
            "Expected prompts on which the new teacher's reward differs from an old teacher's, got none; there is "
            "nothing to fit."
        )
    fold = np.random.default_rng(seed).permutation(len(features)) % min(folds, len(features))
    losses = np.zeros(len(_STRENGTHS))
    for index in np.unique(fold):
        inside, outside = fold != index, fold == index
        for step, head in enumerate(_fit_rows(features[inside], offsets[inside], sign[inside])):
            gaps = sign[outside] * (head(features[outside]) - offsets[outside])
            losses[step] += (np.logaddexp(0.0, -gaps) * (sign[outside] != 0)).sum()
    best = int(losses.argmin())
    return _fit_rows(features, offsets, sign)[best]


def _fit_rows(features: Array, offsets: Array, sign: Array) -> list[Head]:
    x, base, wins = torch.from_numpy(features), torch.from_numpy(offsets), torch.from_numpy(sign)
    mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    weight = torch.zeros(features.shape[1], 1, dtype=torch.float64, requires_grad=True)
    pairs = wins.abs()
    heads = []
    for strength in _STRENGTHS:
        optimizer = torch.optim.LBFGS([mean, weight], max_iter=60, line_search_fn="strong_wolfe")

        def closure(strength: float = strength, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            gaps = wins * (mean + x @ weight - base)
            # The small penalty on the mean keeps it finite if the new teacher always or never wins.
            loss = (softplus(-gaps) * pairs).sum() / pairs.sum().clamp_min(1) + 1e-4 * mean.square().sum()
            loss = loss + strength * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        heads.append(Head(mean.detach().numpy().copy(), weight.detach().numpy().copy()))
    return heads


def _replace_head(model: Any, weight: Tensor, bias: Tensor | None) -> None:
    _, linear = backbones.final_linear(model)
    name = next(name for name, module in model.named_modules() if module is linear)
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    model.set_submodule(name, head)


def _block(router: PersynRouter, teachers: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {**copy.deepcopy(router.metadata), "teachers": teachers}


def _saved(
    model: Any,
    tokenizer: Any,
    block: Mapping[str, Any],
    teachers: list[str],
    output_dir: str | os.PathLike[str] | None,
    device: str | None,
) -> PersynRouter:
    model.config.id2label = dict(enumerate(teachers))
    model.config.label2id = {name: index for index, name in enumerate(teachers)}
    model.num_labels = len(teachers)
    return save_router(model, tokenizer, block, output_dir, device=device)
