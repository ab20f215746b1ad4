"""The router: its training, or a published one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from persyn_hf.config.connection import Connection
from persyn_hf.config.settings import Settings, base_url

Objective = Literal["bradley-terry", "bradley-terry-margin", "expected-reward", "regression"]


class Router(Settings):
    """Training of a router, or a published router. Give exactly one of `backbone` and `pretrained`.

    Args:
        backbone (`str`, *optional*): Hub repository id or local folder of an encoder or decoder to train.
        pretrained (`str`, *optional*): Hub id or folder of a trained router. The run then skips probe, scores and
            training.
        revision (`str`, *optional*): Commit, tag or branch of `backbone` or `pretrained`.
        objective (defaults to `"regression"`): Training loss; `"bradley-terry"` is the paper's.
        tuning (`"frozen"`, `"full"` or `"lora"`, defaults to `"frozen"`): Part of the backbone to train.
        fallback (`"best-single"` or `"none"`, defaults to `"best-single"`): Replacement for a router that does not
            beat the best single teacher on held-out prompts.
        min_answered (`float`, defaults to 0.5): Minimum share of the probe that a teacher must have answered, 0 to 1.
            A teacher below it is excluded from the router and from the fallback.
        folds (`int`, defaults to 5): Number of cross-validation folds. Fine-tuning trains one more model per fold.
        epochs (`int`, defaults to 4): Number of fine-tuning passes over the probe.
        learning_rate (`float`, *optional*): Learning rate of fine-tuning. Default: depends on `tuning`.
        batch_size (`int`, defaults to 16): Prompts in one step of fine-tuning.
        lora_rank (`int`, defaults to 16): Rank of the adapters, for `tuning: lora`.
        max_length (`int`, defaults to 512): Number of prompt tokens that the router reads, at least 16.
        dtype (`"float32"`, `"bfloat16"` or `"float16"`, defaults to `"float32"`): Type of the saved weights. A frozen
            backbone runs in this type; fine-tuning keeps float32 weights and uses mixed precision.
        device (`str`, *optional*): Device of training and inference. Default: `cuda` if available, else `cpu`.
    """

    # Stages receive a trained router as a checkpoint, which counts there.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"pretrained", "device"})
    checkpoints: ClassVar[Mapping[str, str]] = {"backbone": "revision"}

    backbone: str | None = Field(None, min_length=1)
    pretrained: str | None = Field(None, min_length=1)
    revision: str | None = None
    objective: Objective = "regression"
    tuning: Literal["frozen", "full", "lora"] = "frozen"
    fallback: Literal["best-single", "none"] = "best-single"
    min_answered: float = Field(0.5, ge=0, le=1)
    folds: int = Field(5, ge=2)
    epochs: int = Field(4, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    lora_rank: int = Field(16, ge=1)
    max_length: int = Field(512, ge=16)  # minus the template's tokens, checked once they are known
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str | None = None

    @model_validator(mode="after")
    def _exactly_one_start(self) -> Router:
        if (self.backbone is None) == (self.pretrained is None):
            raise ValueError("give exactly one of `backbone` (to train a router) and `pretrained` (to use one)")
        return self


def _address(value: str | None) -> str | None:
    return None if value is None else base_url(value)


class RouterRecord(Settings):
    """Entries of a router's `persyn` block that do not come from its training.

    Args:
        reward_settings (`Mapping`): Settings of the rewards: `alpha`, `normalization` and `learnability_metric`.
        metadata (`Mapping`): Additional entries, such as the training data and its revision.
        prompt_column (`str`, defaults to `"prompt"`): Column that the router reads by default.
    """

    reward_settings: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    prompt_column: str = Field("prompt", min_length=1)


class RouteOptions(Connection):
    """Settings with which [`persyn_route`] runs a router.

    Args:
        device (`str`, *optional*), dtype (`str`, *optional*): As for [`PersynRouter.from_pretrained`].
        endpoint (`str`, *optional*): Base URL of a Text Embeddings Inference server that serves the router: scores
            come from there and no weights are loaded. `router` may then be left out; given, its `config.json` tells
            the fallback and the prompt column, and must have the server's labels.
        api_key_env, use_hub_token, api_key_header, extra_headers, extra_query (*optional*): Connection to that server,
            reached, as in [`Connection`]. No token is sent there that is not named so.
    """

    device: str | None = None
    dtype: str | None = None
    endpoint: Annotated[str | None, AfterValidator(_address)] = None

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> RouteOptions:
        local = [name for name in ("device", "dtype") if getattr(self, name) is not None]
        if self.endpoint is not None and local:
            raise ValueError(f"`{local[0]}` is for a router in this process; leave it out beside `endpoint`")
        of_a_server = [name for name in sorted(self.reached) if getattr(self, name)]
        if self.endpoint is None and of_a_server:
            what = "the key of a server" if of_a_server[0] == "api_key_env" else "for a router behind a server"
            raise ValueError(f"`{of_a_server[0]}` is {what}; give its `endpoint`, or leave it out")
        return self

    @property
    def connection(self) -> dict[str, Any]:
        """The settings of the connection to the server that are set."""
        return {name: getattr(self, name) for name in sorted(self.reached) if getattr(self, name)}


class PairOptions(Settings):
    """Options of preference pairs built from scored answers.

    Args:
        which (`"best-worst"`, `"adjacent"` or `"all"`, defaults to `"best-worst"`): Pairs of each prompt: its best and
            worst answer, all neighbours in the ranking, or all pairs.
        by (`"reward"` or `"quality"`, defaults to `"reward"`): Column to rank answers by.
        min_margin (`float`, defaults to 0): Minimum difference within a pair. Equal values never form a pair.
        keep_truncated (`bool`, defaults to `False`): Whether to pair answers that were cut at `max_tokens`.
    """

    which: Literal["best-worst", "adjacent", "all"] = "best-worst"
    by: Literal["reward", "quality"] = "reward"
    min_margin: float = Field(0.0, ge=0, allow_inf_nan=False)
    keep_truncated: bool = False
