"""The student, the quality of an answer, and the reward."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from persyn_hf.config.connection import Connection
from persyn_hf.config.settings import Address, Dtype, Settings

Alpha = Annotated[float, Field(ge=0.0, le=1.0)]
Normalization = Literal["minmax", "zscore", "rank"]
LearnabilityMetric = Literal["mean-logprob", "rsr", "perplexity"]
Metric = Literal["mean-logprob", "rsr", "perplexity", "completion_tokens"]


class Service(Connection):
    """A server with a model that scores answers.

    Args:
        url (`str`): Base URL of the server, read as a teacher's `endpoint`.
        max_concurrency (`int`, defaults to 32): Requests in flight at once.
        timeout (`float`, defaults to 120): Seconds for one request.
        attempts (`int`, defaults to 6): Tries of one request, with growing pauses, before it counts as failed. What
            is refused for load is asked again for as long as `down_after` says.
        down_after (`float`, *optional*): Seconds without any answer that show that a server is down which has answered
            before; five times as many where it refuses for load. `None`: 300, five minutes.
        max_response_bytes (`int`, defaults to 64 MiB): An answer is not read further than this.
        price_per_million_prompt_tokens, price_per_million_completion_tokens (`float`, defaults to 0): USD for a
            million tokens.
    """

    unkeyed: ClassVar[frozenset[str]] = Connection.reached | frozenset(
        {
            "url",
            "max_concurrency",
            "timeout",
            "attempts",
            "down_after",
            "max_response_bytes",
            "price_per_million_prompt_tokens",
            "price_per_million_completion_tokens",
        }
    )

    url: Address
    max_concurrency: int = Field(32, ge=1)
    timeout: float = Field(120.0, gt=0)
    attempts: int = Field(6, ge=1)
    down_after: float | None = Field(None, gt=0)
    max_response_bytes: int = Field(64 * 2**20, ge=1024)
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    price_per_million_completion_tokens: float = Field(0.0, ge=0)

    @property
    def has_price(self) -> bool:
        """True if a price is set."""
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)

    def price(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Returns the cost of the tokens, in USD."""
        return (
            prompt_tokens * self.price_per_million_prompt_tokens
            + completion_tokens * self.price_per_million_completion_tokens
        ) / 1e6


class StudentEndpoint(Service):
    """A server with the student, which reports the log-probabilities of its input.

    Args:
        api (`str`, defaults to `"prompt_logprobs"`): Request that returns the log-probabilities. `"prompt_logprobs"`
            and `"echo"` are parameters of `/v1/completions`; `"generate"` sends `decoder_input_details` to
            `/generate` and needs a server started with `--enable-prefill-logprobs`. Only `"prompt_logprobs"` returns
            the ranks that `rsr` needs.
        served_model (`str`, *optional*): The server's name for the student. Default: the student's `model`.
    """

    api: Literal["prompt_logprobs", "echo", "generate"] = "prompt_logprobs"
    served_model: str | None = None


class ScorerOptions(Settings):
    """Options of a model that scores in this process.

    Args:
        dtype (defaults to `"auto"`): Type of the weights. The log-softmax is computed in float32, sums in float64.
        device (`str`, *optional*): Device of the model. Default: `cuda` if available, else `cpu`.
        token_budget (`int`, *optional*): Maximum number of tokens in one forward pass, padding included. Default:
            8,192 on a CPU; on a GPU 16,384, doubled while that makes scoring at least 5% faster and memory allows it.
    """

    dtype: Dtype = "auto"
    device: str | None = None
    token_budget: int | None = Field(None, ge=1)

    #: The default on a CPU.
    cpu_tokens: ClassVar[int] = 8192


class Student(ScorerOptions):
    """The student that scores answers (and is trained on them later).

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
        dtype (defaults to `"auto"`): Type of the weights during scoring; `auto` is the checkpoint's.
        device (*optional*): Device of scoring, such as `cuda:1` or `cpu`. Default: a GPU if available.
        devices (`"all"` or `tuple[str, ...]`, *optional*): Score in one process for each of these devices; `all` is
            every GPU.
        attn_implementation (*optional*): Attention implementation of transformers during scoring: `sdpa`, `eager` … If
            set, answers to one prompt are scored without sharing its computation.
        token_budget (`int`, *optional*): Maximum number of tokens in one forward pass, padding included. Default:
            8,192 on a CPU; on a GPU 16,384, doubled while that makes scoring at least 5% faster and memory allows it.
        too_long (`"error"` or `"truncate"`): Treatment of an answer that exceeds the student's context.
        metrics (defaults to none): Columns to add to `learnability`: `rsr`, `perplexity`, `completion_tokens`.
        teacher_system_prompts (`bool`, defaults to `False`): Whether to score every answer with its teacher's system
            prompt.
        endpoint (`StudentEndpoint`, *optional*): Server that scores instead of this process. `model` then provides
            the tokenizer and the chat template.
    """

    unkeyed: ClassVar[frozenset[str]] = frozenset({"device", "devices", "attn_implementation", "token_budget"})
    checkpoints: ClassVar[Mapping[str, str]] = {"model": "revision"}

    model: str = Field(min_length=1)
    revision: str | None = None
    devices: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    attn_implementation: str | None = None
    too_long: Literal["error", "truncate"] = "error"
    metrics: tuple[Metric, ...] = ()
    teacher_system_prompts: bool = False
    endpoint: StudentEndpoint | None = None

    @model_validator(mode="after")
    def _device_or_devices(self) -> Student:
        if self.device is not None and self.devices is not None:
            raise ValueError("give `device` or `devices`, not both")
        return self


class Judge(Service):
    """A model behind a chat endpoint that scores an answer from 1 to 10.

    Args:
        model (`str`): Name of the model on the server.
        revision (`str`, *optional*): Label of the model's version, such as a date. The ledger reuses scores only for
            the same revision.
        template (`str`, *optional*): Jinja template of the request over `prompt`, `completion` and `answer`. It must
            ask for a reply whose last line is the score alone (`7`, `Score: **7**`, `7/10`, `[[7]]`, `{"score": 7}`).
        temperature (`float`, defaults to 0): Sampling temperature; 0 is greedy decoding. `null` is not sent, for
            models that reject the parameter.
        max_tokens (`int`, defaults to 512): Maximum length of the reply, in tokens.
        max_tokens_field (`str`, defaults to `"max_tokens"`): The request's key for `max_tokens`.
        seed (`int`, defaults to 0): The seed of every request; `null` sends none.
        extra_body (`dict`, defaults to `{}`): More keys of the request, such as `reasoning_effort`.
        preflight (`bool`, defaults to `True`): Before the run, check that the server lists `model`, or else that it
            replies under that name.
    """

    unkeyed: ClassVar[frozenset[str]] = Service.unkeyed | {"preflight"}
    added: ClassVar[frozenset[str]] = frozenset({"revision", "max_tokens_field", "seed", "extra_body"})
    #: Keys of the request that `extra_body` may not hold.
    own_keys: ClassVar[frozenset[str]] = frozenset(
        {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "seed", "stream"}
    )

    model: str = Field(min_length=1)
    revision: str | None = None
    template: str | None = None
    temperature: float | None = Field(0.0, ge=0.0)
    max_tokens: int = Field(512, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seed: int | None = Field(0, ge=0)
    extra_body: dict[str, Any] = Field({})
    preflight: bool = True

    @property
    def sampling_fields(self) -> dict[str, object]:
        """The fields of a request that decide the reply, beside model and messages."""
        chosen = {"temperature": self.temperature, "seed": self.seed}
        given = {name: value for name, value in chosen.items() if value is not None}
        return {**self.extra_body, **given, self.max_tokens_field: self.max_tokens}

    @field_validator("extra_body")
    @classmethod
    def _only_more(cls, value: dict[str, object]) -> dict[str, object]:
        taken = sorted(cls.own_keys & value.keys())
        if taken:
            raise ValueError(f"`extra_body` must not set {', '.join(taken)}; persyn_hf sets them from other settings")
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"`extra_body` must be JSON: {error}") from None
        return value


class QualitySource(Settings):
    """One of several sources of quality. Exactly one of `verifier`, `reward_model` and `judge` is given.

    Args:
        verifier, trust_verifier, reward_model, revision, judge: As in the section `quality`.
        name (`str`, *optional*): Suffix of the source's column, `quality_<name>`. Default: `math`, `exact`,
            `reasoning_gym`, a function's name, `reward_model` or `judge`.
        weight (`float`, defaults to 1): Weight in the weighted mean.
        range (`tuple[float, float]`, *optional*): Smallest and largest value of the source. Default: 0 to 1 for the
            verifiers `math`, `exact`, `reasoning-gym` and `json-schema`, 1 to 10 for a judge, otherwise unknown.
    """

    checkpoints: ClassVar[Mapping[str, str]] = {"reward_model": "revision"}
    code: ClassVar[frozenset[str]] = frozenset({"verifier"})
    unkeyed: ClassVar[frozenset[str]] = frozenset({"trust_verifier"})

    verifier: str | None = None
    trust_verifier: bool = False
    reward_model: str | None = None
    revision: str | None = None
    judge: Judge | None = None
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+$")
    weight: float = Field(1.0, gt=0.0, allow_inf_nan=False)
    range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> QualitySource:
        if [self.verifier, self.reward_model, self.judge].count(None) != 2:
            raise ValueError("give exactly one of `verifier`, `reward_model` and `judge`")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("`range` must be the smallest and the largest value, in this order")
        return self

    @property
    def label(self) -> str:
        """Name of the source, for provenance."""
        return self.verifier or self.reward_model or (self.judge.model if self.judge else "")


class Quality(Settings):
    """Measure of an answer's quality. Give exactly one of `verifier`, `reward_model`, `judge` and `sources`.

    Args:
        verifier (`str`, *optional*): Function that grades an answer: `math`, `exact`, `reasoning-gym`, `json-schema`,
            the name of an entry point in the group `persyn_hf.verifiers`, or `package.module:function`. It is called
            with `(prompt, completion, answer)` and returns a number. The module is imported, and the function must be
            marked with `@persyn_hf.verifier`.
        trust_verifier (`bool`, defaults to `False`): Whether to call a function that is not marked as a verifier. It
            receives every prompt and answer.
        reward_model (`str`, *optional*): Hub id or folder of a sequence classifier with one label.
        judge (`Judge`, *optional*): Model behind a chat endpoint.
        sources (`tuple[QualitySource, ...]`, *optional*): Several sources, combined in a weighted mean.
        revision (`str`, *optional*): Commit, tag or branch of the reward model.
        normalize (`str`, *optional*): Normalisation of the sources before the mean: `range` maps each source's range
            to 0 to 1; `minmax`, `zscore` and `rank` normalise each source within the prompt.
    """

    checkpoints: ClassVar[Mapping[str, str]] = {"reward_model": "revision"}
    code: ClassVar[frozenset[str]] = frozenset({"verifier"})
    unkeyed: ClassVar[frozenset[str]] = frozenset({"trust_verifier"})

    verifier: str | None = None
    trust_verifier: bool = False
    reward_model: str | None = None
    revision: str | None = None
    judge: Judge | None = None
    sources: tuple[QualitySource, ...] | None = Field(None, min_length=1)
    normalize: Literal["range", "minmax", "zscore", "rank"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Quality:
        if [self.verifier, self.reward_model, self.judge, self.sources].count(None) != 3:
            raise ValueError("give exactly one of `verifier`, `reward_model`, `judge` and `sources`")
        return self

    @property
    def parts(self) -> tuple[QualitySource, ...]:
        """The sources; a tuple of one without `sources`."""
        if self.sources is not None:
            return self.sources
        return (
            QualitySource(
                verifier=self.verifier,
                trust_verifier=self.trust_verifier,
                reward_model=self.reward_model,
                revision=self.revision,
                judge=self.judge,
            ),
        )

    @property
    def label(self) -> str:
        """Names of the sources, for provenance."""
        return " + ".join(part.label for part in self.parts)


class Reward(Settings):
    """Combination of quality and learnability: `reward = (1 - alpha) * n(quality) + alpha * n(learnability)`.

    Args:
        alpha (`float`, defaults to 0.4): Weight of learnability, 0 to 1.
        normalization (`str`, defaults to `"minmax"`): Normalisation `n`, over the teachers of one prompt.
        learnability_metric (`str`, defaults to `"mean-logprob"`): Metric of learnability. `rsr` and `perplexity` are
            negated, since lower is better.
    """

    alpha: Alpha = 0.4
    normalization: Normalization = "minmax"
    learnability_metric: LearnabilityMetric = "mean-logprob"
