"""Fine-tuning of students, and comparison of ways to build their training sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from persyn_hf.config.allocation import PolicyOptions
from persyn_hf.config.policies import Policy
from persyn_hf.config.prompts import Prompts
from persyn_hf.config.sampling import Sampling, wrong_locally
from persyn_hf.config.scoring import Quality, Student
from persyn_hf.config.settings import Settings


class Lora(Settings):
    """Low-rank adapters (peft), trained instead of all weights.

    Args:
        r (`int`, defaults to 16): Rank of the adapters.
        alpha (`int`, defaults to 32): Numerator of the adapters' scale, `alpha / r`.
        dropout (`float`, defaults to 0): Dropout on the adapters' input.
        target_modules (`"all-linear"` or `tuple[str, ...]`): Layers with an adapter; the output layer never has one.
        merge (`bool`, defaults to `True`): Whether to merge the adapters and save an ordinary model. Otherwise the
            adapters are saved.
    """

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    merge: bool = True


class Training(Settings):
    """Recipe of supervised fine-tuning, with the names of TRL's `SFTConfig`.

    Args:
        num_train_epochs (`float`, defaults to 2): Number of passes over the data.
        max_steps (`int`, *optional*): Number of optimiser steps, which overrides `num_train_epochs`.
        learning_rate (`float`, defaults to 2e-5): Peak learning rate.
        lr_scheduler_type (`str`, defaults to `"cosine"`): Learning-rate schedule.
        warmup_ratio (`float`, defaults to 0.03): Share of the steps spent on warm-up.
        weight_decay (`float`, defaults to 0): Weight decay of AdamW.
        per_device_train_batch_size (`int`, defaults to 8): Rows per forward pass and device.
        gradient_accumulation_steps (`int`, defaults to 4): Forward passes per optimiser step.
        max_length (`int`, defaults to 2048): Maximum length of a row, in tokens. A longer answer is cut, so it does
            not teach the end of turn.
        packing (`bool`, defaults to `False`): Whether to pack several rows into one sequence of `max_length` tokens.
            Each row attends only to itself.
        bf16 (`bool`, *optional*): Whether to compute in bfloat16. Default: on GPUs that support it.
        gradient_checkpointing (`bool`, defaults to `False`): Whether to recompute activations to save memory.
        lora (`Lora`, *optional*): Adapters to train. Default: all weights are trained.
        chat_template (`str`, *optional*): Path of a Jinja file that replaces the student's chat template.
        save_steps (`int`, *optional*): Optimiser steps between checkpoints. Default: no checkpoints; an interrupted
            training starts over.
        logging_steps (`int`, defaults to 10): Optimiser steps between log lines.
        report_to (`tuple[str, ...]`, defaults to `()`): Experiment trackers: `trackio`, `wandb` or `tensorboard`.
        extra (`dict`): Other arguments of `SFTConfig`.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset({"save_steps", "logging_steps", "report_to"})
    files: ClassVar[frozenset[str]] = frozenset({"chat_template"})

    num_train_epochs: float = Field(2.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    learning_rate: float = Field(2e-5, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = Field(0.03, ge=0.0, lt=1.0)
    weight_decay: float = Field(0.0, ge=0.0)
    per_device_train_batch_size: int = Field(8, ge=1)
    gradient_accumulation_steps: int = Field(4, ge=1)
    max_length: int = Field(2048, ge=2)
    packing: bool = False
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    lora: Lora | None = None
    chat_template: str | None = None
    save_steps: int | None = Field(None, ge=1)
    logging_steps: int = Field(10, ge=1)
    report_to: tuple[Literal["trackio", "wandb", "tensorboard"], ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)


class ComparedStudent(Student):
    """A student of the comparison: it scores answers, has its own routes and is trained.

    Args:
        name (`str`): Name of the student in tables and folders.
        family (`str`, *optional*): Model family, spelled as in the teachers' `family`, for `family-strong`.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    family: str | None = None


class Decoding(Sampling):
    """Named sampling parameters with which trained students answer the held-out prompts.

    Args:
        name (`str`): Name of the decoding in tables.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")

    @model_validator(mode="after")
    def _in_this_process(self) -> Decoding:
        if problems := wrong_locally(self):
            raise ValueError("; ".join(problems).replace("sampling.", ""))
        return self


class LmEval(Settings):
    """Public benchmarks, run by lm-evaluation-harness (the extra `lm-eval`).

    Args:
        tasks (`tuple[str, ...]`): Task names, as listed by `lm-eval ls tasks`: `ifeval`, `truthfulqa_mc2`, `gsm8k` …
        limit (`int`, *optional*): Number of documents of each task to use, from the first. Default: all.
        num_fewshot (`int`, *optional*): Number of solved examples before each question. Default: the task's own.
        batch_size (`int` or `"auto"`, defaults to `"auto"`): Requests in one forward pass; `"auto"` finds the maximum.
        apply_chat_template (`bool`, defaults to `True`): Whether to ask in the chat format that the student is trained
            on.
        include_path (`str`, *optional*): Folder with additional task definitions.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[frozenset[str]] = frozenset({"include_path"})

    tasks: tuple[str, ...] = Field(min_length=1)
    limit: int | None = Field(None, ge=1)
    num_fewshot: int | None = Field(None, ge=0)
    batch_size: int | Literal["auto"] = "auto"
    apply_chat_template: bool = True
    include_path: str | None = None


class Compare(PolicyOptions):
    """Comparison of policies by the students that are trained on their sets.

    Args:
        students (`tuple[ComparedStudent, ...]`): Students to train, all with the recipe in `training`.
        held_out (`Prompts`): Prompts for evaluating trained students; none of them may be a training prompt.
        policies (`tuple[str, ...]`): Policies to compare: `strong`, `mix`, `family-strong`, `car`, `random`, `persyn`
            or `oracle`. The oracle needs every teacher's answer to every training prompt: N · M generations.
        seeds (`tuple[int, ...]`, defaults to five): Random seeds of the training and of the policies that draw at
            random. The answers, the probe and the router use the run's own `seed`.
        quality (`Quality`, *optional*): Measure of quality for held-out answers. Default: the run's `quality`.
        decodings (`tuple[Decoding, ...]`, defaults to greedy): Sampling parameters for the held-out answers.
        nll_teachers (`tuple[str, ...]`, *optional*): Teachers whose answers to the held-out prompts are used to
            measure the student's negative log-likelihood. Default: all. An empty list skips the measurement.
        lm_eval (`LmEval`, *optional*): Public benchmarks.
        strong_share (`float`, defaults to 0.5): Share of the prompts that `mix` sends to the strong teacher, 0 to 1.
        beta (`float`, defaults to 3): Weight of the student's loss in `car` (arXiv 2411.07133).
        keep_students (`bool`, defaults to `False`): Whether to keep the weights of every trained student.
        processes (`int`, defaults to 1): Number of students that are trained and evaluated in parallel. The processes
            are assigned to the GPUs in turn, or share the CPU cores.
    """

    renamed: ClassVar[Mapping[str, str]] = {"mix_strong_share": "strong_share", "car_beta": "beta"}

    students: tuple[ComparedStudent, ...] = Field(min_length=1)
    held_out: Prompts
    policies: tuple[Policy, ...] = Field(("strong", "mix", "family-strong", "car", "random", "persyn"), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2, 3, 4), min_length=1)
    quality: Quality | None = None
    decodings: tuple[Decoding, ...] = Field((Decoding(name="greedy", temperature=0.0),), min_length=1)
    nll_teachers: tuple[str, ...] | None = None
    lm_eval: LmEval | None = None
    keep_students: bool = False
    processes: int = Field(1, ge=1)

    @field_validator("seeds")
    @classmethod
    def _seeds_in_range(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 <= seed < 2**31 for seed in seeds):
            raise ValueError("seeds must be in [0, 2**31)")
        return seeds

    @model_validator(mode="after")
    def _each_once(self) -> Compare:
        for key, names in (
            ("students", [student.name for student in self.students]),
            ("decodings", [decoding.name for decoding in self.decodings]),
            ("policies", [str(policy) for policy in self.policies]),
            ("seeds", [str(seed) for seed in self.seeds]),
        ):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"`{key}` names {', '.join(repeated)} more than once")
        return self
