"""Training a router: a stock sequence classifier, evaluated by cross-validation before it is used."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from persyn_hf import columns
from persyn_hf.config import Router, merged, require_known
from persyn_hf.config.routing import RouterRecord
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.models.device import choose_device, dtype_named
from persyn_hf.models.identity import resolve_revision
from persyn_hf.models.loading import save_tokenizer
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.backbone import readable_template
from persyn_hf.routing.block import PERSYN_KEY, names_problem
from persyn_hf.routing.checkpoint import library_version
from persyn_hf.routing.crossval import cross_validate
from persyn_hf.routing.heads import POWER, STRENGTHS, Array, Head, fit_path
from persyn_hf.routing.rewards import RewardTable, left_out_lines, read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.seen import PROBE_KEY, seen_record
from persyn_hf.routing.tuning import Build, FineTuning, cross_validate_tuning, fine_tune
from persyn_hf.routing.verdict import RouterReport, judge, learning_curve
from persyn_hf.tables import require_table

#: Fields of a teacher that a checkpoint records. Endpoint URLs and names of keys are not among them.
TEACHER_KEYS = ("name", "model", "revision", "system_prompt", "sampling", "family", "license")


def train_router(
    scored: Any,
    backbone: str | None = None,
    student: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    settings: Router | Mapping[str, Any] | None = None,
    teachers: Sequence[Any] | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> PersynRouter:
    """Trains a router on scored answers (PerSyn, arXiv 2510.10925).

    With `tuning="frozen"` the backbone's features are computed once and a linear head is fitted on them, which takes
    seconds on a CPU; otherwise the backbone is fine-tuned. Scores start from the teachers' mean rewards, and the
    prompt's effect is regularised with a strength, or a number of epochs, chosen by cross-validation. A router that
    does not beat the best single teacher on held-out prompts falls back to it, with a warning. There, a missing answer
    counts as the lowest reward. A teacher that answered less than `min_answered` of the prompts is left out, with a
    warning.

    Args:
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id`, `prompt`, `teacher`, `reward`. A null
            reward (a failed answer) is missing.
        backbone (`str`): Hub repository id or local folder of an encoder or decoder; default: the one in `settings`.
        student (`str`, *optional*): Name of the student, for the checkpoint; default: the table's `student`.
        output_dir (`str` or `PathLike`, *optional*): Folder of the checkpoint; default: a temporary folder, removed
            when the process ends.
        settings (`Router` or `Mapping`, *optional*): The section `router` of a configuration, or its keys.
        teachers (`Sequence[Teacher | Mapping]`, *optional*): Descriptions of the teachers, for the checkpoint.
        seed (`int`, defaults to 0): Random seed of folds, batches and dropout.
        progress (`bool`, defaults to `False`): Whether to show progress bars.
        options: Single keys of [`Router`] (`objective`, `tuning`, `folds`, `revision`, `device` …), which replace
            those of `settings`; and those of [`RouterRecord`] (`reward_settings`, `metadata`, `prompt_column`), which
            the checkpoint records.

    Returns:
        `PersynRouter`: Trained router with its `report` ([`RouterReport`]).

    Raises:
        MissingColumnError, DataError: If the table is invalid.
        ConfigError: If a setting is wrong (such as a `max_length` too short for a prompt), or the backbone is not
            found.
        RouterError: If the backbone cannot be loaded or has no linear head.
        RouterMismatchError: If `teachers` lacks a teacher of the table.
        MissingExtraError: If `tuning="lora"` and `peft` is not installed.

    Example:
        >>> router = train_router(scored, "Qwen/Qwen2.5-1.5B", tuning="lora", output_dir="router")  # doctest: +SKIP
        >>> print(router.report)  # doctest: +SKIP
    """
    router, name, record = _settings(backbone, settings, options)
    _require_place(output_dir)
    require_table(scored, "train_router", "scored", rows=True)
    table = read_rewards(scored, "train_router", router.min_answered)
    for line in left_out_lines(table, router.min_answered):
        warnings.warn(line, stacklevel=2)
    require_plain_names(table.teachers)
    described = describe_teachers(table.teachers, teachers)
    backbone_revision = resolve_revision(name, router.revision)
    build = partial(
        backbones.build_classifier,
        name,
        table.teachers,
        max_length=router.max_length,
        revision=None if os.path.isdir(name) else backbone_revision,
    )
    if router.tuning == "frozen":
        build = partial(build, dtype=dtype_named(router.dtype), device=choose_device(router.device))
        model, tokenizer, report = _frozen(build, table, router, seed, progress)
    else:
        build = partial(build, dtype=torch.float32, device=_training_device(router.device))
        model, tokenizer, report = _tuned(build, table, router, seed, progress)
        model = model.to(dtype_named(router.dtype))
    if report.fallback is not None or report.gain.low <= 0:
        warnings.warn(report.reason, stacklevel=2)
    block = {
        "library_version": library_version(),
        "backbone": name,
        "backbone_revision": backbone_revision,
        "student": student or table.student,
        "student_revision": table.student_revision,
        "reward": record.reward_settings,
        "teachers": described,
        "left_out": dict(table.left_out),
        PROBE_KEY: seen_record(table.prompts),
        "probe_means": table.mean_scores(),
        "prompt_column": record.prompt_column,
        **_reading(tokenizer),
        "objective": router.objective,
        "tuning": router.tuning,
        **_findings(report),
        "seed": seed,
        **record.metadata,
    }
    return save_router(model, tokenizer, block, output_dir, report=report, device=router.device)


def _settings(
    backbone: str | None, settings: Router | Mapping[str, Any] | None, options: Mapping[str, Any]
) -> tuple[Router, str, RouterRecord]:
    """Returns the training section, the backbone, and the further entries of the `persyn` block."""
    require_known(Router, [name for name in options if name not in RouterRecord.model_fields], "train_router")
    own = {name: value for name, value in options.items() if name in Router.model_fields}
    given = own if backbone is None else own | {"backbone": backbone}
    router = merged(Router, settings, given, "train_router")
    if router.backbone is None:
        raise ConfigError("train_router: `backbone` is required, as an argument or in `settings`.")
    noted = {name: value for name, value in options.items() if value is not None and name not in own}
    return router, router.backbone, merged(RouterRecord, None, noted, "train_router")


def _reading(tokenizer: Any) -> dict[str, Any]:
    """Returns the entries of the `persyn` block on how a prompt is read."""
    return {
        "prompt_format": "text of a single user message; else `role: content` paragraphs",
        "prompt_template": readable_template(tokenizer),
        "max_length": tokenizer.model_max_length,
    }


def _findings(report: RouterReport) -> dict[str, Any]:
    """Returns the entries of the `persyn` block on the results of training."""
    return {
        "strength": report.strength,
        "scale": report.scale,
        "fallback": report.fallback,
        "held_out": report.as_dict(),
    }


def _frozen(
    build: Build, table: RewardTable, router: Router, seed: int, progress: bool
) -> tuple[Any, Any, RouterReport]:
    model, tokenizer = build()
    inputs = backbones.head_inputs(model, tokenizer, _texts(table), progress=progress)
    has_bias, linear = backbones.final_linear(model)
    features = backbones.FeatureMap(inputs, has_bias, POWER[router.objective])
    head, report = fit_head(table, features(inputs), router.objective, router.fallback, router.folds, seed)
    features.write(head, linear)
    return model, tokenizer, report


def fit_head(
    table: RewardTable, features: Array, objective: str, fallback: str, folds: int, seed: int
) -> tuple[Head, RouterReport]:
    """Chooses a head by cross-validation and fits it on all prompts.

    Args:
        table (`RewardTable`): Rewards, best teacher first.
        features (`ndarray` of shape `(prompts, features)`): Features of the frozen backbone.
        objective, fallback, folds, seed: As for [`train_router`].

    Returns:
        `(Head, RouterReport)`: Head whose scores are Bradley–Terry scores, and report.
    """
    rewards = table.rewards
    rounds = cross_validate(objective, features, rewards, folds, seed)
    curve = partial(learning_curve, objective, features, rewards, folds, seed)
    report = judge(table, rounds, objective, fallback, seed, curve)
    path = tuple(strength for strength in STRENGTHS[objective] if strength >= report.strength)
    head = fit_path(objective, features, rewards, path)[-1]
    if report.fallback is not None:
        head = Head(table.means, head.weight * 0.0)
    return head.scaled(report.scale), report


def _tuned(
    build: Build, table: RewardTable, router: Router, seed: int, progress: bool
) -> tuple[Any, Any, RouterReport]:
    from accelerate.utils import broadcast_object_list

    objective, how = router.objective, FineTuning.of(router, seed, progress)
    texts = _texts(table)
    inputs = backbones.head_inputs(*build(), texts)
    rounds = cross_validate_tuning(build, texts, inputs, table.rewards, objective, router.folds, how)
    trained = len(texts) - len(texts) // len(set(rounds[0].fold.tolist()))
    report = judge(table, rounds, objective, router.fallback, seed, lambda gain: [(trained, gain)])
    # Every process has evaluated the same scores; all must also train for the same number of epochs.
    report = broadcast_object_list([report])[0]
    epochs = 0 if report.fallback is not None else int(report.strength)
    tuned = fine_tune(build, texts, table.rewards, objective, how.for_epochs(epochs), [])
    means_scale = report.scale
    if report.fallback is not None and objective != "regression":
        means_scale = 1.0  # the means already are Bradley–Terry scores
    _, linear = backbones.final_linear(tuned.model)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.mul_(means_scale)
    return tuned.model, tuned.tokenizer, report


def save_router(
    model: Any,
    tokenizer: Any,
    block: Mapping[str, Any],
    output_dir: str | os.PathLike[str] | None,
    *,
    report: RouterReport | None = None,
    device: str | None = None,
) -> PersynRouter:
    """Saves a classifier with its `persyn` block (under `accelerate launch`: once) and loads it as a router."""
    if output_dir is None:
        holder = tempfile.TemporaryDirectory(prefix="persyn-router-")
        _TEMPORARY.append(holder)
        output_dir = holder.name
    model.config.update({PERSYN_KEY: dict(block)})
    if _processes() == 1 or int(os.environ["RANK"]) == 0:
        os.makedirs(output_dir, exist_ok=True)
        model.save_pretrained(output_dir, safe_serialization=True)
        save_tokenizer(tokenizer, output_dir)
    if _processes() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu").wait_for_everyone()
    router = PersynRouter.from_pretrained(output_dir, device=device)
    router.report = report
    return router


def describe_teachers(names: Sequence[str], teachers: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Returns descriptions of the named teachers for the checkpoint, in their order.

    Raises:
        RouterMismatchError: If one of them is not described.
    """
    if teachers is None:
        return [{"name": name} for name in names]
    described = {}
    for teacher in teachers:
        values = teacher.model_dump(mode="json") if hasattr(teacher, "model_dump") else dict(teacher)
        described[values["name"]] = {key: values[key] for key in TEACHER_KEYS if values.get(key) is not None}
    absent = [name for name in names if name not in described]
    if absent:
        raise RouterMismatchError(
            f"`teachers` must describe all teachers of the table; {absent} are not among {list(described)}."
        )
    return [described[name] for name in names]


def require_plain_names(teachers: Sequence[str]) -> None:
    """Checks before training that teachers' names can be a router's labels.

    Raises:
        DataError: If a name is empty or has control characters, or two names are equal.
    """
    problem = names_problem(teachers)
    if problem is not None:
        raise DataError(f"The teachers' names in the table {problem}.")


def _require_place(output_dir: str | os.PathLike[str] | None) -> None:
    if output_dir is None and _processes() > 1:
        raise ConfigError("`output_dir` is required under `accelerate launch`, where all processes share the folder.")


def _texts(table: RewardTable) -> list[str]:
    return [columns.prompt_text(prompt) for prompt in table.prompts]


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _training_device(device: str | None) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu").device


#: Temporary folders of routers without `output_dir`, removed when the process ends.
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []
