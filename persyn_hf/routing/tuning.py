"""Fine-tuning a router's backbone with `transformers.Trainer` and a custom loss: all weights, or LoRA."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from persyn_hf.config import Router, default_of
from persyn_hf.packages import require
from persyn_hf.routing import backbone as backbones
from persyn_hf.routing.crossval import OutOfFold, nearest_rewards
from persyn_hf.routing.heads import Array, Head, objective_loss, pair_scale, teacher_means

#: Maximum change of a logit by one optimiser step on the head, independent of the scale of the backbone's features.
_HEAD_STEP = 0.02
#: Default learning rates of the backbone.
_RATES = {"full": 5e-5, "lora": 2e-4}

#: Function that loads a new backbone: model and tokenizer.
Build = Callable[[], tuple[Any, Any]]


@dataclass(frozen=True)
class FineTuning:
    """Settings for fine-tuning a backbone.

    Args:
        method (`"full"` or `"lora"`): Weights to train: all, or low-rank adapters that are merged afterwards.
        epochs (`int`): Maximum number of epochs; cross-validation chooses the number.
        learning_rate (`float`, *optional*): Learning rate of the backbone; default: 5e-5 (full), 2e-4 (LoRA).
        batch_size (`int`): Prompts per step and process.
        pull (`float`): Factor of the penalty on the mean squared distance of the logits from the teachers' means.
        lora_rank (`int`): Rank of the LoRA adapters.
        mixed (`"bf16"` or `"fp16"`, *optional*): Automatic mixed precision; weights stay in float32.
        device (`str`, *optional*): `"cpu"` to train on the CPU even if there is a GPU.
        seed (`int`): Random seed.
        progress (`bool`): Whether to show progress bars.
    """

    method: str
    epochs: int = default_of(Router, "epochs")
    learning_rate: float | None = default_of(Router, "learning_rate")
    batch_size: int = default_of(Router, "batch_size")
    pull: float = 0.01
    lora_rank: int = default_of(Router, "lora_rank")
    mixed: str | None = None
    device: str | None = None
    seed: int = 0
    progress: bool = False

    @classmethod
    def of(cls, router: Router, seed: int, progress: bool) -> FineTuning:
        """Builds the settings from the section `router`."""
        return cls(
            router.tuning,
            epochs=router.epochs,
            learning_rate=router.learning_rate,
            batch_size=router.batch_size,
            lora_rank=router.lora_rank,
            mixed={"bfloat16": "bf16", "float16": "fp16"}.get(router.dtype),
            device=router.device,
            seed=seed,
            progress=progress,
        )

    def for_epochs(self, epochs: int) -> FineTuning:
        """Returns the same settings with another number of epochs."""
        return replace(self, epochs=epochs)


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model.

    Args:
        model, tokenizer: Stock classifier in evaluation mode, with LoRA merged, and its tokenizer.
        losses (`list[float]`): Mean training loss of each epoch.
        held_out (`list[ndarray]`): Scores of the held-out prompts before training and after each epoch, each of shape
            `(prompts, teachers)`.
    """

    model: Any
    tokenizer: Any
    losses: list[float]
    held_out: list[Array]


def fine_tune(
    build: Build, texts: Sequence[str], rewards: Array, objective: str, settings: FineTuning, held_out: Sequence[str]
) -> Tuned:
    """Fine-tunes a new backbone, whose logits start at the teachers' means for every prompt.

    Args:
        build (`Callable`): Function that loads model and tokenizer.
        texts (`Sequence[str]`): Training prompts.
        rewards (`ndarray` of shape `(prompts, teachers)`): Their rewards; NaN where missing.
        objective (`str`): One of `OBJECTIVES`.
        settings (`FineTuning`): Settings.
        held_out (`Sequence[str]`): Prompts to score before training and after every epoch; may be empty.
    """
    torch.manual_seed(settings.seed)
    model, tokenizer = build()
    means = teacher_means(rewards)
    if objective != "regression":
        means = means * pair_scale(np.broadcast_to(means, rewards.shape), rewards)
    rate = _start_at_means(model, tokenizer, texts, means)
    scores = [_scores(model, tokenizer, held_out)] if held_out else []
    if settings.epochs == 0:
        return Tuned(model, tokenizer, [], scores)
    head = backbones.final_linear(model)[1]
    if settings.method == "lora":
        model = _with_lora(model, head, settings.lora_rank)
    goal = _Goal(texts, rewards, objective, means)
    losses = _train(_Fresh(model, tokenizer, head, rate), goal, settings, held_out, scores)
    if settings.method == "lora":
        model = model.merge_and_unload()
    return Tuned(model.eval(), tokenizer, losses, scores)


def cross_validate_tuning(
    build: Build,
    texts: Sequence[str],
    features: Array,
    rewards: Array,
    objective: str,
    folds: int,
    settings: FineTuning,
) -> list[OutOfFold]:
    """Cross-validates fine-tuning: trains on all folds but one and scores that one after each epoch.

    Args:
        build, texts, rewards, objective, settings: As for [`fine_tune`].
        features (`ndarray` of shape `(prompts, features)`): Features of the frozen backbone, for the baseline kNN.
        folds (`int`): Number of folds, at most the number of prompts.

    Returns:
        `list[OutOfFold]`: One round, whose strengths are the epochs from 0 on.
    """
    count = len(rewards)
    fold = np.random.default_rng(settings.seed).permutation(count) % min(folds, count)
    scores = np.empty((settings.epochs + 1, *rewards.shape))
    best_single, knn = np.empty(count, dtype=int), np.empty(rewards.shape)
    for index in np.unique(fold):
        inside, outside = np.flatnonzero(fold != index), np.flatnonzero(fold == index)
        tuned = fine_tune(
            build,
            [texts[int(row)] for row in inside],
            rewards[inside],
            objective,
            settings,
            [texts[int(row)] for row in outside],
        )
        scores[:, outside] = np.stack(tuned.held_out)
        best_single[outside] = teacher_means(rewards[inside]).argmax()
        knn[outside] = nearest_rewards(features[inside], rewards[inside], features[outside])
    return [OutOfFold(tuple(float(epoch) for epoch in range(len(scores))), scores, best_single, fold, knn)]


def _start_at_means(model: Any, tokenizer: Any, texts: Sequence[str], means: Array) -> float:
    """Writes a head that scores every prompt by the teachers' means, and returns the head's learning rate."""
    inputs = backbones.head_inputs(model, tokenizer, texts)
    has_bias, linear = backbones.final_linear(model)
    features = backbones.FeatureMap(inputs, has_bias)
    features.write(Head(means, np.zeros((features.basis.shape[1], len(means)))), linear)
    return _HEAD_STEP / max(float(np.abs(inputs).sum(axis=1).mean()), 1e-6)


def _with_lora(model: Any, head: nn.Linear, rank: int) -> Any:
    require("fine-tune a router with LoRA", "peft")
    from peft import LoraConfig, get_peft_model

    name = next(name for name, module in model.named_modules() if module is head)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=[name])
    model = get_peft_model(model, config)
    head.requires_grad_(True)
    return model


@dataclass(frozen=True)
class _Fresh:
    """A model before training, with its head and the head's learning rate."""

    model: Any
    tokenizer: Any
    head: nn.Linear
    head_rate: float


@dataclass(frozen=True)
class _Goal:
    """Training data and objective; logits are penalised for their distance from the teachers' means."""

    texts: Sequence[str]
    rewards: Array
    objective: str
    means: Array


def _train(
    fresh: _Fresh, goal: _Goal, settings: FineTuning, held_out: Sequence[str], scores: list[Array]
) -> list[float]:
    from transformers import Trainer, TrainerCallback

    tokenizer = fresh.tokenizer
    base = torch.from_numpy(goal.means).float()

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: object = None) -> Tensor:
        logits = outputs["logits"].float()
        effect = logits - base.to(logits.device)
        total: Tensor = objective_loss(goal.objective, logits, labels) + settings.pull * effect.square().mean()
        return total

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = dict(tokenizer.pad({"input_ids": [row["input_ids"] for row in rows]}, return_tensors="pt"))
        return {**batch, "labels": torch.tensor(np.stack([row["labels"] for row in rows]), dtype=torch.float32)}

    class ScoreHeldOut(TrainerCallback):  # type: ignore[misc]
        """Scores the held-out prompts after each epoch; every process scores all of them and gets the same result."""

        def on_epoch_end(self, args: object, state: object, control: object, model: Any = None, **_: object) -> None:
            if held_out:
                scores.append(_scores(model, tokenizer, held_out))

    ids = backbones.encode(tokenizer, goal.texts)
    data = [{"input_ids": row, "labels": reward} for row, reward in zip(ids, goal.rewards, strict=True)]
    with tempfile.TemporaryDirectory(prefix="persyn-tuning-") as folder:
        trainer = Trainer(
            model=fresh.model,
            args=_arguments(folder, settings),
            train_dataset=data,
            data_collator=collate,
            compute_loss_func=loss,
            callbacks=[ScoreHeldOut()],
            optimizers=(_optimizer(fresh.model, fresh.head, settings, fresh.head_rate), None),
        )
        trainer.train()
    return [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]


def _arguments(folder: str, settings: FineTuning) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        # A constant rate makes each epoch independent of how many follow; their number is chosen afterwards.
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.mixed == "bf16",
        fp16=settings.mixed == "fp16",
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=False,
        label_names=["labels"],
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # the loss is a mean over the batch
        save_strategy="no",
        report_to="none",
        logging_strategy="epoch",
        disable_tqdm=not settings.progress,
        log_level="error",
    )


def _optimizer(model: Any, head: nn.Linear, settings: FineTuning, head_rate: float) -> torch.optim.Optimizer:
    own = {id(parameter) for parameter in head.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    rate = settings.learning_rate or _RATES[settings.method]
    return torch.optim.AdamW(
        [{"params": others, "lr": rate}, {"params": list(head.parameters()), "lr": head_rate, "weight_decay": 0.0}]
    )


def _scores(model: Any, tokenizer: Any, texts: Sequence[str]) -> Array:
    training = model.training
    model.eval()
    scores: Array = backbones.logits(model, tokenizer, texts, 8192).astype(np.float64)
    model.train(training)
    return scores
