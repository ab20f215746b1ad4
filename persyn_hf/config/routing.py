"""How the router is trained, or which published one is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings

Objective = Literal["bradley-terry", "bradley-terry-margin", "expected-reward", "regression"]


class Router(Settings):
    """How the router is trained, or which published one is used. Exactly one of the first two is given.

    Args:
        backbone (`str`, *optional*): Hub repository id or local folder of an encoder or decoder to train.
        pretrained (`str`, *optional*): A finished router, Hub id or folder: nothing is probed, scored or trained.
        revision (`str`, *optional*): Commit, tag or branch of either.
        objective (defaults to `"regression"`): The loss; `"bradley-terry"` is the paper's.
        tuning (`"frozen"`, `"full"` or `"lora"`, defaults to `"frozen"`): What of the backbone is trained.
        fallback (`"best-single"` or `"none"`, defaults to `"best-single"`): What a router becomes that does not beat
            the best single teacher on held-out prompts.
        folds (`int`, defaults to 5): Folds of the cross-validation; fine-tuning trains that many models more.
        epochs (`int`, defaults to 4): Passes over the probe in fine-tuning.
        learning_rate (`float`, *optional*): Learning rate of fine-tuning. Left out: the one of `tuning`.
        batch_size (`int`, defaults to 16): Prompts in one step of fine-tuning.
        lora_rank (`int`, defaults to 16): Rank of the adapters, for `tuning: lora`.
        max_length (`int`, defaults to 512): Tokens of a prompt that the router reads.
        dtype (defaults to `"float32"`): Of the saved weights.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset({"pretrained"})  # a stage is given it as a checkpoint
    checkpoints: ClassVar[Mapping[str, str]] = {"backbone": "revision"}

    backbone: str | None = Field(None, min_length=1)
    pretrained: str | None = Field(None, min_length=1)
    revision: str | None = None
    objective: Objective = "regression"
    tuning: Literal["frozen", "full", "lora"] = "frozen"
    fallback: Literal["best-single", "none"] = "best-single"
    folds: int = Field(5, ge=2)
    epochs: int = Field(4, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    lora_rank: int = Field(16, ge=1)
    max_length: int = Field(512, ge=8)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _exactly_one_start(self) -> Router:
        if (self.backbone is None) == (self.pretrained is None):
            raise ValueError("give exactly one of `backbone` (to train a router) and `pretrained` (to use one)")
        return self
