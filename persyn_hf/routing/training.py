"""Training a router: a stock sequence classifier, judged by cross-validation before it is trusted."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from persyn_hf import columns
from persyn_hf.checkpoints import resolve_revision
from persyn_hf.errors import ConfigError, RouterMismatchError
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.checkpoint import PERSYN_KEY, library_version
from persyn_hf.routing.crossval import Interval, choose_strength, cross_validate
from persyn_hf.routing.heads import Array, Head, fit_path, pair_scale
from persyn_hf.routing.objectives import OBJECTIVES
from persyn_hf.routing.report import (
    RouterReport,
    explain,
    learning_curve,
    policy_rewards,
    prompts_needed,
    summarise,
)
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.router import PersynRouter

logger = logging.getLogger(__name__)

#: What a checkpoint may say about a teacher. Addresses and the names of keys stay out of it.
TEACHER_KEYS = ("name", "model", "revision", "system_prompt", "sampling", "family", "license")


def train_router(
    scored: Any,
    backbone: str,
    student: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    objective: str = "bradley-terry",
    fallback: Literal["best-single", "none"] = "best-single",
    folds: int = 5,
    seed: int = 0,
    max_length: int = 512,
    revision: str | None = None,
    teachers: Sequence[Any] | None = None,
    reward_settings: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    prompt_column: str = columns.PROMPT,
    device: str | None = None,
) -> PersynRouter:
    """Trains a router on scored answers: the paper's Bradley–Terry router (PerSyn, arXiv 2510.10925, eq. 3), or ours.

    The backbone is frozen: its features are computed once and a linear head is fitted on them, which takes seconds on
    a CPU. Scores start from the teachers' mean rewards; what a prompt adds is regularised, as strongly as
    cross-validation says. A router that does not beat the best single teacher there falls back to it, with a warning.

    Args:
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id`, `prompt`, `teacher`, `reward`. A null
            reward (a failed answer) is missing.
        backbone (`str`): Hub repository id or local folder of an encoder or decoder.
        student (`str`, *optional*): Default: the table's `student`.
        output_dir (`str` or `PathLike`, *optional*): Default: a temporary folder, removed when the process ends.
        objective (`str`, defaults to `"bradley-terry"`): One of `OBJECTIVES`: the paper's; the same with each pair
            weighted by its difference in reward (`bradley-terry-margin`); the reward that routing earns
            (`expected-reward`); the rewards themselves by least squares (`regression`).
        fallback (`"best-single"` or `"none"`, defaults to `"best-single"`): What becomes of a router with no gain.
        folds (`int`, defaults to 5), seed (`int`, defaults to 0): Of the cross-validation.
        max_length (`int`, defaults to 512): Tokens of a prompt that are read.
        revision (`str`, *optional*): Of the backbone.
        teachers (`Sequence[Teacher | Mapping]`, *optional*): Their descriptions, for the checkpoint.
        reward_settings (`Mapping`, *optional*): `alpha`, `normalization`, `learnability_metric`, for the checkpoint.
        metadata (`Mapping`, *optional*): More for the `persyn` block: training data, its revision …
        prompt_column (`str`, defaults to `"prompt"`): The column that the router will read by default.
        device (`str`, *optional*): Default: `cuda` where there is one, else `cpu`.

    Returns:
        `PersynRouter`: With a `report` ([`RouterReport`]).

    Raises:
        MissingColumnError, DataError: If the table is not what it must be.
        ConfigError: If a setting is wrong, or the backbone cannot be found.
        RouterError: If the backbone cannot be loaded or cannot carry a head.
        RouterMismatchError: If `teachers` do not describe those in the table.
    """
    _check_settings(objective, fallback, folds)
    table = read_rewards(scored)
    described = _describe(table.teachers, teachers)
    backbone_revision = resolve_revision(backbone, revision)
    commit = None if os.path.isdir(backbone) else backbone_revision
    model, tokenizer = backbones.build_classifier(
        backbone, table.teachers, revision=commit, max_length=max_length, dtype=None, device=_device(device)
    )
    texts = [columns.prompt_text(prompt) for prompt in table.prompts]
    inputs = backbones.head_inputs(model, tokenizer, texts)
    has_bias, linear = backbones.final_linear(model)
    features = backbones.FeatureMap(inputs, has_bias)
    head, report = fit_head(table, features(inputs), objective, fallback, folds, seed)
    features.write(head, linear)
    model.config.update(
        {
            PERSYN_KEY: {
                "library_version": library_version(),
                "backbone": backbone,
                "backbone_revision": backbone_revision,
                "student": student or table.student,
                "student_revision": table.student_revision,
                "reward": dict(reward_settings or {}),
                "teachers": described,
                "prompt_column": prompt_column,
                "prompt_format": "text of a single user message; else `role: content` paragraphs",
                "objective": objective,
                "strength": report.strength,
                "fallback": report.fallback,
                "held_out": report.as_dict(),
                "seed": seed,
                "max_length": tokenizer.model_max_length,
                **(metadata or {}),
            }
        }
    )
    return _save(model, tokenizer, output_dir, report, device)


def fit_head(
    table: RewardTable, features: Array, objective: str, fallback: str, folds: int, seed: int
) -> tuple[Head, RouterReport]:
    """Chooses a head by cross-validation and fits it on everything.

    Args:
        table (`RewardTable`): Best teacher first.
        features (`ndarray` of shape `(prompts, features)`): Of the frozen backbone.
        objective, fallback, folds, seed: As for [`train_router`].

    Returns:
        `(Head, RouterReport)`: The head's scores are Bradley–Terry scores.
    """
    rewards = table.rewards
    rounds = cross_validate(objective, features, rewards, folds, seed)
    values = policy_rewards(rewards, rounds)
    policies, gain, closed = summarise(values, seed)
    step = choose_strength(rounds, rewards)
    strength = rounds[0].strengths[step]
    falls_back = fallback == "best-single" and not earns_its_place(values[:, 0] - values[:, 1])
    curve = learning_curve(objective, features, rewards, folds, seed, gain.mean)
    needed: int | None = 0
    if gain.low <= 0:
        needed = prompts_needed(curve, float(np.nanstd(values[:, 0] - values[:, 1])), len(rewards))
    head = fit_path(objective, features, rewards, rounds[0].strengths[: step + 1])[-1]
    if falls_back:
        head = Head(table.means, np.zeros_like(head.weight))
        scores = np.broadcast_to(table.means, rewards.shape)
    else:
        scores = rounds[0].scores[step]
    scale = pair_scale(scores, rewards)
    reason = explain(table.teachers, gain, falls_back, needed, table.teachers[0])
    if falls_back or gain.low <= 0:
        warnings.warn(reason, stacklevel=3)
    report = RouterReport(
        prompts=len(rewards), folds=min(folds, len(rewards)), teachers=table.teachers,
        means=[float(mean) for mean in table.means], objective=objective, strength=strength, held_out=policies,
        gain=gain, gap_closed=closed, fallback=table.teachers[0] if falls_back else None, reason=reason,
        learning_curve=curve, more_prompts=needed or None, scores=scores * scale, prompt_ids=table.ids,
    )  # fmt: skip
    return head.scaled(scale), report


def earns_its_place(gains: Array) -> bool:
    """Whether held-out gains over the best single teacher are more than noise is likely to give.

    The mean must exceed one standard error: a router that knows nothing passes with a chance of about 1 in 6, and one
    that is truly better by two standard errors fails with the same chance.
    """
    known = gains[~np.isnan(gains)]
    if known.size < 2:
        return False
    return bool(known.mean() > known.std(ddof=1) / np.sqrt(known.size))


def _check_settings(objective: str, fallback: str, folds: int) -> None:
    if objective not in OBJECTIVES:
        raise ConfigError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    if fallback not in ("best-single", "none"):
        raise ConfigError(f"`fallback` must be 'best-single' or 'none', got {fallback!r}.")
    if folds < 2:
        raise ConfigError(f"`folds` must be at least 2, got {folds}.")


def _describe(names: Sequence[str], teachers: Sequence[Any] | None) -> list[dict[str, Any]]:
    if teachers is None:
        return [{"name": name} for name in names]
    described = {}
    for teacher in teachers:
        values = teacher.model_dump(mode="json") if hasattr(teacher, "model_dump") else dict(teacher)
        described[values["name"]] = {key: values[key] for key in TEACHER_KEYS if values.get(key) is not None}
    absent = [name for name in names if name not in described]
    if absent:
        raise RouterMismatchError(f"The table has answers of {absent}, but `teachers` describes {list(described)}.")
    return [described[name] for name in names]


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _save(model: Any, tokenizer: Any, output_dir: Any, report: RouterReport, device: str | None) -> PersynRouter:
    if output_dir is None:
        holder = tempfile.TemporaryDirectory(prefix="persyn-router-")
        _TEMPORARY.append(holder)
        output_dir = holder.name
    os.makedirs(output_dir, exist_ok=True)
    model.save_pretrained(output_dir, safe_serialization=True)
    tokenizer.save_pretrained(output_dir)
    router = PersynRouter.from_pretrained(output_dir, device=device)
    router.report = report
    return router


#: Folders of routers that were given no `output_dir`; they go when the process ends.
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []

__all__ = ["Interval", "RouterReport", "earns_its_place", "fit_head", "train_router"]
