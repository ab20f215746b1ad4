"""How students are fine-tuned, and how several ways to build their training sets are compared."""

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
    """Low-rank adapters instead of all weights (peft).

    Args:
        r (`int`, defaults to 16): Rank of the adapters.
        alpha (`int`, defaults to 32): Adapters count with `alpha / r`.
        dropout (`float`, defaults to 0): Dropout on the adapters' input.
        target_modules (`"all-linear"` or `tuple[str, ...]`): Layers that get one; the output layer never does.
        merge (`bool`, defaults to `True`): Save an ordinary model with the adapters merged in, not the adapters.
    """

    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    merge: bool = True


class Training(Settings):
    """The recipe of supervised fine-tuning. The names are those of TRL's `SFTConfig`.

    Args:
        num_train_epochs (`float`, defaults to 2): Passes over the data.
        max_steps (`int`, *optional*): Optimiser steps, instead of epochs.
        learning_rate (`float`, defaults to 2e-5): The highest learning rate.
        lr_scheduler_type (`str`, defaults to `"cosine"`): How the learning rate falls.
        warmup_ratio (`float`, defaults to 0.03): Share of the steps in which the learning rate rises.
        weight_decay (`float`, defaults to 0): Weight decay of AdamW.
        per_device_train_batch_size (`int`, defaults to 8): Rows of one forward pass on one device.
        gradient_accumulation_steps (`int`, defaults to 4): Forward passes of one optimiser step.
        max_length (`int`, defaults to 2048): Tokens of a row; a longer answer is cut and learns no end of turn.
        packing (`bool`, defaults to `False`): Put several rows into one sequence of `max_length` tokens, each row
            still attending to itself only.
        bf16 (`bool`, *optional*): Compute in bfloat16. Left out: on GPUs that can.
        gradient_checkpointing (`bool`, defaults to `False`): Recompute activations, for memory.
        lora (`Lora`, *optional*): Train adapters. Left out: train all weights.
        chat_template (`str`, *optional*): A Jinja file that replaces the student's chat template.
        save_steps (`int`, *optional*): Optimiser steps between two checkpoints. Left out: none are written, and an
            interrupted training starts again.
        logging_steps (`int`, defaults to 10): Optimiser steps between two lines of a report.
        report_to (`tuple[str, ...]`, defaults to `()`): `trackio`, `wandb` or `tensorboard`.
        extra (`dict`): Any other argument of `SFTConfig`.
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
    """A student that is scored with, routed for and trained.

    Args:
        name (`str`): Its name in tables and folders.
        family (`str`, *optional*): Its model family, as teachers name theirs; for the policy `family-strong`.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    family: str | None = None


class Decoding(Sampling):
    """A way to let the trained student answer the held-out prompts.

    Args:
        name (`str`): Its name in tables.
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
        tasks (`tuple[str, ...]`): As `lm-eval ls tasks` names them: `ifeval`, `truthfulqa_mc2`, `gsm8k` …
        limit (`int`, *optional*): Only the first documents of each task.
        num_fewshot (`int`, *optional*): Solved examples before each question. Left out: each task's own number.
        batch_size (`int` or `"auto"`, defaults to `"auto"`): Requests in one forward pass; `"auto"` finds the most.
        apply_chat_template (`bool`, defaults to `True`): Ask as a conversation, which is how the student is trained.
        include_path (`str`, *optional*): A folder with further task definitions.
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
    """Several ways to build a training set, judged by the students that are trained on them.

    Args:
        students (`tuple[ComparedStudent, ...]`): All are trained with the recipe of `training`.
        held_out (`Prompts`): The prompts that trained students are judged on; none of them may be a training prompt.
        policies (`tuple[str, ...]`): Of `strong`, `mix`, `family-strong`, `car`, `random`, `persyn` and `oracle`. The
            oracle needs every teacher's answer to every training prompt: N · M generations.
        seeds (`tuple[int, ...]`, defaults to five): Seeds of the training and of the policies that draw at random. The
            answers, the probe and the router are those of the run's own `seed`.
        quality (`Quality`, *optional*): What judges held-out answers. Left out: the run's `quality`.
        decodings (`tuple[Decoding, ...]`, defaults to greedy): How students answer the held-out prompts.
        nll_teachers (`tuple[str, ...]`, *optional*): Teachers on whose answers to the held-out prompts the negative
            log-likelihood is measured. Left out: all; empty: it is not measured.
        lm_eval (`LmEval`, *optional*): Benchmarks.
        strong_share (`float`, defaults to 0.5): Share of the strong teacher in `mix`.
        beta (`float`, defaults to 3): Weight of the student's loss in `car` (arXiv 2411.07133).
        keep_students (`bool`, defaults to `False`): Keep the weights of every trained student.
        processes (`int`, defaults to 1): How many students are trained and judged side by side. Each process has one
            GPU to itself, in turn, or its share of the cores.
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
