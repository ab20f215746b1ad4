"""Teachers and how they sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from persyn_hf.config.connection import Connection
from persyn_hf.config.dialects import DIALECTS, DialectName, with_dialect
from persyn_hf.config.sampling import Sampling, unknown_extras, wrong_locally
from persyn_hf.config.settings import Dtype, base_url

#: Keys of `extra_body` that `/generate` of Text Generation Inference or persyn_hf itself supports.
TGI_EXTRAS = frozenset(
    {
        "adapter_id",
        "best_of",
        "chat_template_kwargs",
        "decoder_input_details",
        "frequency_penalty",
        "grammar",
        "repetition_penalty",
        "top_k",
        "top_n_tokens",
        "truncate",
        "typical_p",
        "watermark",
    }
)


class Teacher(Connection):
    """A teacher: a model, its server and its sampling parameters.

    Args:
        name (`str`): Name of the teacher in tables, routes and the router's labels.
        model (`str`): Hub repository id or local folder; for an endpoint, the name of the model on the server.
        revision (`str`, *optional*): Commit, tag or branch of `model`.
        backend (`"endpoint"` or `"local"`, defaults to `"endpoint"`): Place of generation: a server, or this process.
        endpoint (`str` or `tuple[str, ...]`, *optional*): Base URL of the server, or of several that serve the same
            model; required for `backend: endpoint`. `/v1` is added to a host without a path; any other path is used
            as given, including a full route (`…/chat/completions`).
        api (`"chat"` or `"tgi"`, defaults to `"chat"`): Protocol of the endpoint: `/v1/chat/completions`, or
            `/generate` of Text Generation Inference, for which persyn_hf renders the chat template.
        dialect (`str`, *optional*): Service whose variant of the chat protocol the endpoint uses. It sets defaults of
            `sampling`, `api_key_header` and `stream_usage`, and is never guessed.
        tokenizer (`str`, *optional*): Hub repository id or local folder of the tokenizer, if `model` is only a name on
            the server. With it, prompts that are too long are found before any request is sent.
        system_prompt (`str`, *optional*): System prompt, put before the prompt's own system message if it has one. The
            student sees it only with `student.teacher_system_prompts`.
        stream (`bool`, defaults to `False`): Whether to stream the answer, for services that offer nothing else.
        stream_usage (`bool`, defaults to `True`): Whether to request token counts in a stream (`stream_options`).
        sampling (`Sampling`): Sampling parameters.
        reasoning (`"separate"`, `"keep"` or `"drop"`, defaults to `"separate"`): Treatment of a reasoning model's
            thoughts (`reasoning_content`, or `<think>` text): their own column, back into the completion between
            `<think>` tags, or nothing. The ledger keeps them in every case, so it can be changed without asking again.
        leaks (`"cut"`, `"cut-words"` or `"mark"`, defaults to `"cut"`): Treatment of special tokens at the end of
            an answer (`<|im_end|>`, `</s>` …) and of turns that the model invented behind it: they are cut off;
            turns that plain words open (`User:`, `### Instruction`) too; or all of it stays. The column `leak` marks
            the row in every case, and the ledger keeps the answer as it came.
        max_concurrency (`int`, *optional*): Requests in flight at once to one endpoint, at most. `None`: what `/info`
            says, or what is learnt while asking.
        timeout (`float`, defaults to 120): Seconds for one request.
        hedge_after (`float`, *optional*): Seconds after which a request without an answer is sent a second time, and
            the first answer counts. It may be paid for twice, so it is off unless set.
        max_response_bytes (`int`, defaults to 16 MiB): An answer is not read further than this; the events of a
            stream, which take many bytes for each token, not further than 64 times this.
        down_after (`float`, *optional*): Seconds without any answer, after the first one, that show that an endpoint
            is down: more than it takes to start again. `None`: 300, five minutes.
        on_teacher_down (`"error"`, `"wait"` or `"reroute"`, defaults to `"error"`): Treatment of the rows of a
            teacher that stops answering: they carry an error, they wait until it is back, or they go to the next
            best teacher of `route_scores`.
        preflight (`bool`, defaults to `True`): Before the first request, check that the endpoint serves `model` and
            that the prompts fit its limits.
        batch_size (`int`, defaults to 32): Prompts per batch of `backend: local`.
        dtype (defaults to `"auto"`), device (*optional*): For `backend: local`.
        price_per_million_prompt_tokens, price_per_million_completion_tokens (`float`, defaults to 0): USD for a
            million tokens.
        price_per_million_cached_tokens (`float`, *optional*): USD for a million tokens of prompts that the server
            read from its cache. `None`: they cost what others do.
        price_per_million_reasoning_tokens (`float`, *optional*): USD for a million tokens of reasoning. `None`: they
            cost what the completion's others do.
        family (`str`, *optional*): Model family ("Qwen2.5"), for the Family-Strong baseline.
        license (`str`, *optional*): SPDX or Hub licence identifier, for the cards.
    """

    #: Fields that say how to reach and run the teacher. The ledger's keys leave them out too.
    unkeyed: ClassVar[frozenset[str]] = Connection.reached | frozenset(
        {
            "backend",
            "endpoint",
            "api",
            "dialect",  # what it sets counts by itself
            "tokenizer",  # but see `renderer`
            "stream",
            "stream_usage",
            "max_concurrency",
            "timeout",
            "hedge_after",
            "max_response_bytes",
            "preflight",
            "down_after",
            "batch_size",
            "dtype",
            "device",
        }
    )
    #: Facts about the teacher that do not change its answers.
    facts: ClassVar[frozenset[str]] = frozenset(
        {
            "price_per_million_prompt_tokens",
            "price_per_million_completion_tokens",
            "price_per_million_cached_tokens",
            "price_per_million_reasoning_tokens",
            "family",
            "license",
        }
    )
    added: ClassVar[frozenset[str]] = frozenset(
        {"leaks", "price_per_million_cached_tokens", "price_per_million_reasoning_tokens"}
    )

    name: str = Field(min_length=1)
    model: str = Field(min_length=1)
    revision: str | None = None
    backend: Literal["endpoint", "local"] = "endpoint"
    endpoint: str | tuple[str, ...] | None = None
    api: Literal["chat", "tgi"] = "chat"
    dialect: DialectName | None = None
    tokenizer: str | None = Field(None, min_length=1)
    system_prompt: str | None = None
    stream: bool = False
    stream_usage: bool = True
    sampling: Sampling = Sampling()
    reasoning: Literal["separate", "keep", "drop"] = "separate"
    leaks: Literal["cut", "cut-words", "mark"] = "cut"
    max_concurrency: int | None = Field(None, ge=1)
    timeout: float = Field(120.0, gt=0)
    hedge_after: float | None = Field(None, gt=0)
    max_response_bytes: int = Field(16 * 2**20, ge=1024)
    down_after: float | None = Field(None, gt=0)
    on_teacher_down: Literal["error", "wait", "reroute"] = "error"
    preflight: bool = True
    batch_size: int = Field(32, ge=1)
    dtype: Dtype = "auto"
    device: str | None = None
    price_per_million_prompt_tokens: float = Field(0.0, ge=0)
    price_per_million_completion_tokens: float = Field(0.0, ge=0)
    price_per_million_cached_tokens: float | None = Field(None, ge=0)
    price_per_million_reasoning_tokens: float | None = Field(None, ge=0)
    family: str | None = None
    license: str | None = None

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Base URLs without a trailing slash; empty with `backend: local`."""
        given = (self.endpoint,) if isinstance(self.endpoint, str) else self.endpoint or ()
        return tuple(address.rstrip("/") for address in given)

    @property
    def renderer(self) -> str | None:
        """The `tokenizer`, where its template decides what the model reads: with `api: tgi`."""
        return self.tokenizer if self.api == "tgi" else None

    @property
    def has_price(self) -> bool:
        """True if a price is set."""
        return any(self.prices)

    @property
    def prices(self) -> tuple[float, float, float, float]:
        """Prices of a million prompt, completion, cached and reasoning tokens, in USD."""
        asked, made = self.price_per_million_prompt_tokens, self.price_per_million_completion_tokens
        cached, reasoning = self.price_per_million_cached_tokens, self.price_per_million_reasoning_tokens
        return asked, made, asked if cached is None else cached, made if reasoning is None else reasoning

    def price(
        self, prompt_tokens: float, completion_tokens: float, cached_tokens: float = 0, reasoning_tokens: float = 0
    ) -> float:
        """Returns the cost of the tokens, in USD.

        Args:
            prompt_tokens, completion_tokens (`float`): Tokens of the prompt and of the completion in total.
            cached_tokens (`float`, defaults to 0): Prompt tokens from the server's cache.
            reasoning_tokens (`float`, defaults to 0): Completion tokens spent on reasoning.
        """
        return priced(self.prices, (prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens))

    @model_validator(mode="before")
    @classmethod
    def _speaks_its_dialect(cls, data: object) -> object:
        if not isinstance(data, Mapping) or data.get("dialect") not in DIALECTS:
            return data
        sampling = data.get("sampling", {})
        if isinstance(sampling, Sampling):
            sampling = {name: getattr(sampling, name) for name in sampling.model_fields_set}
        return with_dialect(data["dialect"], data, sampling) if isinstance(sampling, Mapping) else data

    @field_validator("endpoint")
    @classmethod
    def _addresses(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for address in (value,) if isinstance(value, str) else value or ():
            base_url(address)
        return value

    @model_validator(mode="after")
    def _endpoint_where_one_is_used(self) -> Teacher:
        if len(set(self.endpoints)) < len(self.endpoints):
            raise ValueError("`endpoint` names a server more than once")
        if self.backend == "endpoint" and not self.endpoints:
            raise ValueError("`endpoint` is required: the server's base URL, or set `backend: local`")
        if self.backend == "local" and self.endpoint is not None:
            raise ValueError("`endpoint` must be left out with `backend: local`")
        return self

    @model_validator(mode="after")
    def _only_what_is_understood(self) -> Teacher:
        """Raises an error for settings that local generation, or TGI's own protocol, does not support."""
        problems = []
        if self.backend == "local":
            problems += wrong_locally(self.sampling)
            problems += [
                f"`{name}` is a setting of endpoints; leave it out with `backend: local`"
                for name in ("api_key_header", "dialect", "extra_headers", "extra_query", "stream", "tokenizer")
                if getattr(self, name)
            ]
        elif self.api == "tgi":
            problems += unknown_extras(self.sampling, TGI_EXTRAS, "`api: tgi`")
            if self.stream:
                problems.append("`stream` is for `api: chat`; leave it out with `api: tgi`")
            if self.dialect not in (None, "tgi"):
                problems.append(f"`dialect: {self.dialect}` is for `api: chat`; leave it out with `api: tgi`")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def priced(prices: Sequence[float], tokens: Sequence[float | None]) -> float:
    """USD for tokens.

    Args:
        prices (`Sequence[float]`): USD for a million tokens of the prompt and of the completion, and, where they are
            given, of a cached prompt and of reasoning ([`Teacher.prices`]); left out, these cost what others do.
        tokens (`Sequence[float]`): Tokens of the prompt and of the completion; then, where it is known, how many
            of them were cached, and how many went into reasoning. `None` counts as 0.

    Example:
        >>> priced((1.0, 2.0, 0.5, 10.0), (1e6, 2e6, 1e6, 1e6))
        12.5
        >>> priced((1.0, 2.0), (1e6, 2e6, 1e6, 1e6))
        5.0
    """
    asked, made, cached, reasoning = (*prices, *prices[:2])[:4]
    counts = [count or 0 for count in tokens] + [0] * (4 - len(tokens))
    own = (asked, made, cached - asked, reasoning - made)
    return sum(count * price for count, price in zip(counts, own, strict=True)) / 1e6


def require_distinct_teachers(teachers: Sequence[Teacher]) -> None:
    """Raises an error if two teachers have the same name.

    Raises:
        ValueError: If a name is repeated. The error lists the repeated names.
    """
    names = [teacher.name for teacher in teachers]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"teacher names must differ; named more than once: {', '.join(repeated)}")
