"""Supervised fine-tuning with TRL's `SFTTrainer`, on rows that already have labels."""

from __future__ import annotations

import json
import logging
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.config import Training
from persyn_hf.errors import ConfigError, StudentError
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import is_whole
from persyn_hf.packages import require
from persyn_hf.students.labels import IGNORED, LABELS, RowCounts, check_batch, digest_rows

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from peft import LoraConfig

logger = logging.getLogger(__name__)

REPORT_FILE = "training.json"
CHECKPOINTS = "checkpoints"
_IDENTITY_FILE = "persyn.json"
#: Arguments of `SFTConfig` that `training` sets, or that do not work with labelled rows.
_OURS = {
    "output_dir",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "bf16",
    "gradient_checkpointing",
    "logging_steps",
    "report_to",
    "save_strategy",
    "save_steps",
    "completion_only_loss",
    "assistant_only_loss",
    "chat_template_path",
    "eos_token",
    "push_to_hub",
    "hub_model_id",
    "disable_tqdm",
    "model_init_kwargs",
    "dataset_kwargs",
}


@dataclass(frozen=True)
class TrainingReport:
    """Report of a training run.

    Args:
        student (`str`): Repository id or folder of the student.
        student_revision (`str`): Resolved commit or folder digest of the student.
        seed (`int`): Random seed of the row order and of new weights.
        steps (`int`): Number of optimiser steps.
        loss (`float`): Mean training loss, nats/token.
        seen_tokens (`int`, *optional*): Completion tokens in the loss over all steps; a token counts once per epoch.
            `None` in reports of older versions.
        seconds (`float`): Training time of the last process, in seconds; after a resume, less than the total.
        counts (`RowCounts`): Rows and tokens.
        settings (`dict`): Training settings.
        versions (`dict`): Versions of the libraries.
    """

    student: str
    student_revision: str
    seed: int
    steps: int
    loss: float
    seconds: float
    counts: RowCounts
    settings: dict[str, Any]
    versions: dict[str, str]
    seen_tokens: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, as stored in `training.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainingReport:
        """Reads a report from the values of [`TrainingReport.to_dict`]."""
        return cls(**{**data, "counts": RowCounts(**data["counts"])})


@dataclass(frozen=True)
class Lesson:
    """The training data of a student.

    Args:
        rows (`Dataset`): Rows of `input_ids` and `labels`.
        counts (`RowCounts`): Counts of the rows, for the report.
        ends (`frozenset[int]`): Tokens that end a turn; the trained student stops generation at them.
        tokenizer (`PreTrainedTokenizerBase`): The student's tokenizer, saved with the weights.
    """

    rows: Dataset
    counts: RowCounts
    ends: frozenset[int]
    tokenizer: Any


def fit(
    lesson: Lesson,
    student: str,
    student_revision: str,
    output_dir: Path,
    training: Training,
    seed: int,
    resume: bool = True,
    progress: bool = True,
) -> TrainingReport:
    """Trains a student on labelled rows and saves it as an ordinary model.

    Args:
        lesson (`Lesson`): Rows, and the tokenizer that made them.
        student (`str`), student_revision (`str`): Repository id and commit, or folder and digest.
        output_dir (`Path`): Output folder of the model, the tokenizer and `training.json`, which is written last.
        training (`Training`): Training settings.
        seed (`int`): Random seed of the row order and of new weights.
        resume (`bool`, defaults to `True`): Resume from the last checkpoint; checkpoints of another training run are
            refused.
        progress (`bool`, defaults to `True`): Show a bar and the loss.

    Raises:
        ConfigError: If a setting is wrong, or the folder holds checkpoints of another training run.
        StudentError: If the loss on the trainer's first batch would cover anything but completions.
        MissingExtraError: If TRL or peft is not installed.
    """
    rows, tokenizer = lesson.rows, lesson.tokenizer
    identity = _identity(rows, student_revision, training, seed)
    if not resume:
        (output_dir / REPORT_FILE).unlink(missing_ok=True)
    known = _finished(output_dir, identity)
    if known is not None:
        return known
    checkpoint = _last_checkpoint(output_dir, identity, resume)
    trainer = _trainer(rows, tokenizer, student, student_revision, output_dir, training, seed, progress)
    _stop_at(trainer.model, lesson.ends)
    _count_seen(trainer)
    first = range(min(len(trainer.train_dataset), training.per_device_train_batch_size))
    check_batch(trainer.data_collator([trainer.train_dataset[row] for row in first]), rows)
    if trainer.is_world_process_zero():
        folder = output_dir / CHECKPOINTS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _IDENTITY_FILE).write_text(json.dumps(identity), encoding="utf-8")
    began = time.monotonic()
    outcome = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - began
    _save(trainer, tokenizer, output_dir, training, _own_dtype(student, student_revision))
    report = TrainingReport(
        student,
        student_revision,
        seed,
        outcome.global_step,
        float(outcome.training_loss),
        seconds,
        lesson.counts,
        training.model_dump(mode="json"),
        _versions(),
        trainer.state.num_input_tokens_seen,
    )
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        text = json.dumps(report.to_dict() | {"identity": identity}, indent=2)
        (output_dir / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(output_dir / CHECKPOINTS)
    return report


def _trainer(
    rows: Dataset,
    tokenizer: Any,
    student: str,
    student_revision: str,
    output_dir: Path,
    training: Training,
    seed: int,
    progress: bool,
) -> Any:
    require("train a student", "trl")
    import trl
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from persyn_hf.models.device import trains_in_bfloat16
    from persyn_hf.models.loading import load_model

    bf16 = training.bf16 if training.bf16 is not None else trains_in_bfloat16()
    set_seed(seed)
    # Trained weights are float32, with autocast if `bf16`; frozen weights below adapters can be bfloat16.
    dtype = "bfloat16" if bf16 and training.lora is not None else "float32"
    # The trainer moves the model to its own device.
    model = load_model(_files(student, student_revision), "causal-lm", dtype, "cpu", trainable=True)
    arguments = _arguments(training, output_dir / CHECKPOINTS, seed, bf16, progress)
    try:
        config = trl.SFTConfig(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`training`: {str(error).splitlines()[0]}") from error
    try:
        trainer = trl.SFTTrainer(
            model=model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=_adapters(training)
        )
    except RuntimeError as error:  # transformers raises it if a tracker is not installed
        raise StudentError(f"The trainer cannot be set up: {str(error).splitlines()[0]}") from error
    if not progress:
        trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(training: Training, folder: Path, seed: int, bf16: bool, progress: bool) -> dict[str, Any]:
    from persyn_hf.models.device import gpu_count

    taken = sorted(_OURS & set(training.extra))
    if taken:
        raise ConfigError(
            f"`training.extra` must not set {', '.join(taken)}: use the keys of `training`, if it has them."
        )
    return {
        "output_dir": str(folder),
        "num_train_epochs": training.num_train_epochs,
        "max_steps": training.max_steps or -1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "warmup_steps": training.warmup_ratio,  # a value below 1 is a ratio
        "weight_decay": training.weight_decay,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "max_length": training.max_length,
        "packing": training.packing,
        "bf16": bf16,
        "gradient_checkpointing": training.gradient_checkpointing,
        "logging_steps": training.logging_steps,
        "report_to": list(training.report_to) or "none",
        "save_strategy": "no" if training.save_steps is None else "steps",
        "save_steps": training.save_steps or 500,
        "save_total_limit": 2,
        "seed": seed,
        "data_seed": seed,
        "disable_tqdm": not progress,
        "dataloader_pin_memory": gpu_count() > 0,
    } | training.extra


def _adapters(training: Training) -> LoraConfig | None:
    if training.lora is None:
        return None
    require("train low-rank adapters", "peft")
    from peft import LoraConfig

    lora = training.lora
    modules = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    return LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules, task_type="CAUSAL_LM"
    )


def _stop_at(model: Any, ends: frozenset[int]) -> None:
    """Makes generation stop at the tokens that end a turn, which may differ from the end-of-text token."""
    known = model.generation_config.eos_token_id
    known = [] if known is None else [known] if isinstance(known, int) else list(known)
    together = [*known, *sorted(ends - set(known))]
    model.generation_config.eos_token_id = together[0] if len(together) == 1 else together or None


def _count_seen(trainer: Any) -> None:
    """Counts the tokens in the loss, batch by batch.

    The count is stored in a field of the trainer's state that is otherwise unused here, so that checkpoints keep it.
    """
    step = trainer.training_step

    def counted(model: Any, inputs: Mapping[str, Any], *more: Any, **options: Any) -> Any:
        learnt = (inputs[LABELS] != IGNORED).sum()
        trainer.state.num_input_tokens_seen += int(trainer.accelerator.gather(learnt).sum())
        return step(model, inputs, *more, **options)

    trainer.training_step = counted


def _files(student: str, revision: str) -> ModelFiles:
    return ModelFiles(student, revision, "The student", StudentError)


def _own_dtype(student: str, revision: str) -> torch.dtype | None:
    """The dtype of the student's published weights; `None` if its config has none."""
    from persyn_hf.models.loading import load_config

    config = load_config(_files(student, revision))
    return getattr(config.get_text_config(), "dtype", None)


def _save(trainer: Any, tokenizer: Any, output_dir: Path, training: Training, dtype: torch.dtype | None) -> None:
    model = trainer.accelerator.unwrap_model(trainer.model)
    if dtype is not None and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        model.to(dtype)  # trained in float32, saved in the student's dtype; sharded weights stay as they are
    if training.lora is not None and training.lora.merge:
        merged = model.merge_and_unload()
        if trainer.is_world_process_zero():
            merged.save_pretrained(output_dir)
            tokenizer.save_pretrained(output_dir)
        return
    trainer.save_model(str(output_dir))
    if trainer.is_world_process_zero():
        (output_dir / "training_args.bin").unlink(missing_ok=True)  # a pickle; `training.json` has the settings


def _identity(rows: Dataset, student_revision: str, training: Training, seed: int) -> dict[str, Any]:
    recipe = training.model_dump(mode="json", exclude={"logging_steps", "report_to", "save_steps"})
    return {"rows": digest_rows(rows), "student": student_revision, "training": recipe, "seed": seed}


def _finished(output_dir: Path, identity: dict[str, Any]) -> TrainingReport | None:
    try:
        data = json.loads((output_dir / REPORT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if data.pop("identity", None) != identity:
        raise ConfigError(
            f"`output_dir`: {output_dir} holds a student of another training run (data, settings, student or seed "
            "differ). Use another folder, or pass `resume=False` to overwrite it."
        )
    return TrainingReport.from_dict(data)


def _last_checkpoint(output_dir: Path, identity: dict[str, Any], resume: bool) -> str | None:
    folder = output_dir / CHECKPOINTS
    if not folder.is_dir():
        return None
    file = folder / _IDENTITY_FILE
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)  # every process of a launch does this
        return None
    if file.exists() and json.loads(file.read_text(encoding="utf-8")) != identity:
        raise ConfigError(
            f"`output_dir`: {folder} holds checkpoints of another training run (data, settings, student or seed "
            "differ). Use another folder, or pass `resume=False` to delete them."
        )
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if _is_complete(path):
            return str(path)
        logger.warning("%s is damaged or incomplete and is skipped.", path)
    return None


def _is_complete(checkpoint: Path) -> bool:
    """Tells whether a checkpoint's files exist and are complete, as far as their formats show.

    Sharded checkpoints (FSDP, DeepSpeed) have other formats and are not checked.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if any(checkpoint.glob("global_step*")) or any(checkpoint.glob("*_fsdp_*")):
        return True
    states = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    there = {path.name for path in states}
    whole = {"optimizer.pt", "scheduler.pt"} <= there and any(name.startswith("rng_state") for name in there)
    return whole and is_whole(checkpoint) and all(map(zipfile.is_zipfile, states))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("persyn-hf", "trl", "transformers", "torch")}
