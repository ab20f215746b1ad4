"""Training a router: a stock sequence classifier, judged by cross-validation before it is trusted."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from persyn_hf import columns
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.models.device import choose_device, dtype_named
from persyn_hf.models.identity import resolve_revision
from persyn_hf.models.loading import save_tokenizer
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.backbone import readable_template
from persyn_hf.routing.block import PERSYN_KEY, names_problem
from persyn_hf.routing.checkpoint import library_version
from persyn_hf.routing.crossval import cross_validate
from persyn_hf.routing.heads import OBJECTIVES, POWER, STRENGTHS, Array, Head, fit_path
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.tuning import FineTuning, cross_validate_tuning, fine_tune
from persyn_hf.routing.verdict import RouterReport, judge, learning_curve

Tuning = Literal["frozen", "full", "lora"]

#: What a checkpoint may say about a teacher. Addresses and the names of keys stay out of it.
TEACHER_KEYS = ("name", "model", "revision", "system_prompt", "sampling", "family", "license")


def train_router(
    scored: Any,
    backbone: str,
    student: str | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    *,
    objective: str = "regression",
    tuning: Tuning = "frozen",
    fallback: Literal["best-single", "none"] = "best-single",
    folds: int = 5,
    epochs: int = 4,
    learning_rate: float | None = None,
    batch_size: int = 16,
    lora_rank: int = 16,
    seed: int = 0,
    max_length: int = 512,
    dtype: str = "float32",
    revision: str | None = None,
    teachers: Sequence[Any] | None = None,
    reward_settings: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    prompt_column: str = columns.PROMPT,
    device: str | None = None,
    progress: bool = False,
) -> PersynRouter:
    """Trains a router on scored answers (PerSyn, arXiv 2510.10925).

    With `tuning="frozen"` the backbone's features are computed once and a linear head is fitted on them, which takes
    seconds on a CPU; otherwise the backbone is fine-tuned. Scores start from the teachers' mean rewards, and what a
    prompt adds is regularised: as strongly, or for as many epochs, as held-out prompts say. A router that does not
    beat the best single teacher there falls back to it, with a warning.

    Args:
        scored (`Dataset`): One row per prompt and teacher, with `prompt_id`, `prompt`, `teacher`, `reward`. A null
            reward (a failed answer) is missing.
        backbone (`str`): Hub repository id or local folder of an encoder or decoder.
        student (`str`, *optional*): Default: the table's `student`.
        output_dir (`str` or `PathLike`, *optional*): Default: a temporary folder, removed when the process ends.
        objective (`str`, defaults to `"regression"`): One of `OBJECTIVES`: the rewards themselves, all teachers
            regressed together (`regression`); the order of each two teachers (`bradley-terry`, eq. 3 of the paper);
            the same with each pair weighted by its difference in reward (`bradley-terry-margin`); the reward that
            routing earns (`expected-reward`).
        tuning (`"frozen"`, `"full"` or `"lora"`, defaults to `"frozen"`): What of the backbone is trained. LoRA needs
            the extra `lora` and is merged before saving.
        fallback (`"best-single"` or `"none"`, defaults to `"best-single"`): What becomes of a router with no gain.
        folds (`int`, defaults to 5): Of the cross-validation. Fine-tuning trains that many models more.
        epochs (`int`, defaults to 4), learning_rate (`float`, *optional*), batch_size (`int`, defaults to 16),
            lora_rank (`int`, defaults to 16): Of fine-tuning, see [`FineTuning`]; not read for a frozen backbone.
        seed (`int`, defaults to 0): Of folds, batches and dropout.
        max_length (`int`, defaults to 512): Tokens of a prompt that are read.
        dtype (`str`, defaults to `"float32"`): `"float32"`, `"bfloat16"` or `"float16"`: of the saved weights. A
            frozen backbone is run in it; fine-tuning keeps float32 weights and uses mixed precision.
        revision (`str`, *optional*): Of the backbone.
        teachers (`Sequence[Teacher | Mapping]`, *optional*): Their descriptions, for the checkpoint.
        reward_settings (`Mapping`, *optional*): `alpha`, `normalization`, `learnability_metric`, for the checkpoint.
        metadata (`Mapping`, *optional*): More for the `persyn` block: training data, its revision …
        prompt_column (`str`, defaults to `"prompt"`): The column that the router will read by default.
        device (`str`, *optional*): Default: `cuda` where there is one, else `cpu`.
        progress (`bool`, defaults to `False`): Show progress bars.

    Returns:
        `PersynRouter`: With a `report` ([`RouterReport`]).

    Raises:
        MissingColumnError, DataError: If the table is not what it must be.
        ConfigError: If a setting is wrong (`max_length` may leave no room for a prompt), or the backbone cannot be
            found.
        RouterError: If the backbone cannot be loaded or cannot carry a head.
        RouterMismatchError: If `teachers` do not describe those in the table.
        MissingExtraError: If `peft` is absent and LoRA was asked for.

    Example:
        >>> router = train_router(scored, "Qwen/Qwen2.5-1.5B", tuning="lora", output_dir="router")  # doctest: +SKIP
        >>> print(router.report)  # doctest: +SKIP
    """
    _check_settings(objective, tuning, fallback, folds, dtype, output_dir)
    table = read_rewards(scored)
    require_plain_names(table.teachers)
    described = describe_teachers(table.teachers, teachers)
    backbone_revision = resolve_revision(backbone, revision)
    build = partial(
        backbones.build_classifier,
        backbone,
        table.teachers,
        max_length=max_length,
        revision=None if os.path.isdir(backbone) else backbone_revision,
    )
    if tuning == "frozen":
        build = partial(build, dtype=dtype_named(dtype), device=choose_device(device))
        model, tokenizer, report = _frozen(build, table, objective, fallback, folds, seed, progress)
    else:
        settings = FineTuning(
            method=tuning,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            lora_rank=lora_rank,
            mixed={"bfloat16": "bf16", "float16": "fp16"}.get(dtype),
            device=device,
            seed=seed,
            progress=progress,
        )
        build = partial(build, dtype=torch.float32, device=_training_device(device))
        model, tokenizer, report = _tuned(build, table, objective, fallback, folds, settings)
        model = model.to(dtype_named(dtype))
    if report.fallback is not None or report.gain.low <= 0:
        warnings.warn(report.reason, stacklevel=2)
    block = {
        "library_version": library_version(),
        "backbone": backbone,
        "backbone_revision": backbone_revision,
        "student": student or table.student,
        "student_revision": table.student_revision,
        "reward": dict(reward_settings or {}),
        "teachers": described,
        "probe_means": table.mean_scores(),
        "prompt_column": prompt_column,
        **_reading(tokenizer),
        "objective": objective,
        "tuning": tuning,
        **_findings(report),
        "seed": seed,
        **(metadata or {}),
    }
    return save_router(model, tokenizer, block, output_dir, report=report, device=device)


def _reading(tokenizer: Any) -> dict[str, Any]:
    """How the router reads a prompt, for its `persyn` block."""
    return {
        "prompt_format": "text of a single user message; else `role: content` paragraphs",
        "prompt_template": readable_template(tokenizer),
        "max_length": tokenizer.model_max_length,
    }


def _findings(report: RouterReport) -> dict[str, Any]:
    """What training found, for the router's `persyn` block."""
    return {
        "strength": report.strength,
        "scale": report.scale,
        "fallback": report.fallback,
        "held_out": report.as_dict(),
    }


def _frozen(
    build: Callable[[], tuple[Any, Any]],
    table: RewardTable,
    objective: str,
    fallback: str,
    folds: int,
    seed: int,
    progress: bool,
) -> tuple[Any, Any, RouterReport]:
    model, tokenizer = build()
    inputs = backbones.head_inputs(model, tokenizer, _texts(table), progress=progress)
    has_bias, linear = backbones.final_linear(model)
    features = backbones.FeatureMap(inputs, has_bias, POWER[objective])
    head, report = fit_head(table, features(inputs), objective, fallback, folds, seed)
    features.write(head, linear)
    return model, tokenizer, report


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
    curve = partial(learning_curve, objective, features, rewards, folds, seed)
    report = judge(table, rounds, objective, fallback, seed, curve)
    path = tuple(strength for strength in STRENGTHS[objective] if strength >= report.strength)
    head = fit_path(objective, features, rewards, path)[-1]
    if report.fallback is not None:
        head = Head(table.means, head.weight * 0.0)
    return head.scaled(report.scale), report


def _tuned(
    build: Callable[[], tuple[Any, Any]],
    table: RewardTable,
    objective: str,
    fallback: str,
    folds: int,
    settings: FineTuning,
) -> tuple[Any, Any, RouterReport]:
    from accelerate.utils import broadcast_object_list

    texts = _texts(table)
    inputs = backbones.head_inputs(*build(), texts)
    rounds = cross_validate_tuning(build, texts, inputs, table.rewards, objective, folds, settings)
    trained = len(texts) - len(texts) // len(set(rounds[0].fold.tolist()))
    report = judge(table, rounds, objective, fallback, settings.seed, lambda gain: [(trained, gain)])
    # Every process has judged the same scores; they must also train for the same number of epochs.
    report = broadcast_object_list([report])[0]
    epochs = 0 if report.fallback is not None else int(report.strength)
    tuned = fine_tune(build, texts, table.rewards, objective, settings.for_epochs(epochs), [])
    means_scale = report.scale
    if report.fallback is not None and objective != "regression":
        means_scale = 1.0  # they start as Bradley–Terry scores
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
    """Saves a classifier with its `persyn` block, once under `accelerate launch`, and loads it as a router."""
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
    """What the checkpoint says about the named teachers, in their order.

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
        raise RouterMismatchError(f"The table has answers of {absent}, but `teachers` describes {list(described)}.")
    return [described[name] for name in names]


def require_plain_names(teachers: Sequence[str]) -> None:
    """Holds teachers to what a router's labels may be, before anything is trained.

    Raises:
        DataError: If a name is empty or has control characters, or two are equal.
    """
    problem = names_problem(teachers)
    if problem is not None:
        raise DataError(f"The teachers' names in the table {problem}.")


def _check_settings(objective: str, tuning: str, fallback: str, folds: int, dtype: str, output_dir: Any) -> None:
    for name, value, allowed in (
        ("objective", objective, OBJECTIVES),
        ("tuning", tuning, ("frozen", "full", "lora")),
        ("fallback", fallback, ("best-single", "none")),
        ("dtype", dtype, ("float32", "bfloat16", "float16")),
    ):
        if value not in allowed:
            raise ConfigError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}.")
    if folds < 2:
        raise ConfigError(f"`folds` must be at least 2, got {folds}.")
    if output_dir is None and _processes() > 1:
        raise ConfigError("Under `accelerate launch` the processes share what they save: give `output_dir`.")


def _texts(table: RewardTable) -> list[str]:
    return [columns.prompt_text(prompt) for prompt in table.prompts]


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _training_device(device: str | None) -> Any:
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu").device


#: Folders of routers that were given no `output_dir`; they go when the process ends.
_TEMPORARY: list[tempfile.TemporaryDirectory[str]] = []
