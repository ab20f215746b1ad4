"""Sampling parameters of a request."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StrictInt, model_validator

from persyn_hf.config.settings import Settings

#: Keys of a chat request that `extra_body` may not hold, each with its replacement.
OWNED = {
    "model": "the teacher's `model`",
    "messages": "the prompt and `system_prompt`",
    "stream": "`stream`",
    "stream_options": "`stream_usage`",
    "n": "the column `sample` of the prompts",
    "temperature": "`sampling.temperature`",
    "top_p": "`sampling.top_p`",
    "max_tokens": "`sampling.max_tokens`",
    "max_completion_tokens": "`sampling.max_tokens` with `sampling.max_tokens_field: max_completion_tokens`",
    "max_new_tokens": "`sampling.max_tokens`",
    "seed": "`sampling.seed`",
    "random_seed": "`sampling.seed` with `sampling.seed_field: random_seed`",
    "stop": "`sampling.stop`",
    # Keys of TGI's `/generate` and of the completions routes.
    "inputs": "the prompt",
    "prompt": "the prompt",
    "parameters": "its keys directly, without `parameters`",
    "do_sample": "`sampling.temperature`",
    "details": "nothing; it is always requested",
    "return_full_text": "nothing; only the answer is requested",
}
#: Keys of `extra_body` that local generation supports.
LOCAL_EXTRAS = frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"})
#: Names of keys and passwords; `prompt_cache_key` is none.
_SECRET = re.compile(r"api_?key|access_?(key|token)|auth|secret|passw|credential", re.IGNORECASE)
_FIELD = r"^[A-Za-z_][A-Za-z0-9_]*$"


def _json_only(value: dict[str, object]) -> dict[str, object]:
    problems = list(json_problems(value, "extra_body"))
    owned = [
        f"`extra_body.{key}` is set by persyn_hf; use {instead}" for key, instead in OWNED.items() if key in value
    ]
    keys = [
        f"`extra_body.{key}` is a key by its name, and tables, cards and ledgers show `extra_body`; use `api_key_env` "
        "or `extra_headers`"
        for key, one in value.items()
        if isinstance(one, str) and _SECRET.search(key)
    ]
    if problems or owned or keys:
        raise ValueError("; ".join([*problems, *owned, *keys]))
    return value


def json_problems(value: object, path: str) -> Iterator[str]:
    """Yields the parts of a value that JSON cannot represent, each with its path.

    Example:
        >>> list(json_problems({"top_k": 20, "a": [1.0, float("nan")]}, "extra_body"))
        ['`extra_body.a[1]` is nan, which is not a JSON number']
    """
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            yield f"`{path}` is {value}, which is not a JSON number"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            if isinstance(key, str):
                yield from json_problems(one, f"{path}.{key}")
            else:
                yield f"`{path}` has the key {key!r}, but JSON keys are strings; put it in quotes"
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            yield from json_problems(one, f"{path}[{place}]")
    else:
        yield f"`{path}` is a {type(value).__name__}, which is not a JSON type; put a string in quotes"


#: Additional keys of a request, as JSON values.
ExtraBody = Annotated[dict[str, Any], AfterValidator(_json_only)]


class Sampling(Settings):
    """Sampling parameters of a teacher. Every field is part of the ledger's key; `null` leaves a field to the server.

    Args:
        temperature (`float` or `None`, defaults to 1.0): Sampling temperature; 0 is greedy decoding. `null` is not
            sent, so the server's default applies.
        top_p (`float` or `None`, defaults to 1.0): Nucleus sampling mass, in (0, 1]. `null` is not sent.
        max_tokens (`int`, defaults to 1024): Maximum length of a completion, in tokens.
        stop (`tuple[str, ...]`, defaults to `()`): Strings that end a completion.
        seed (`"per-row"`, `int` or `None`, defaults to `"per-row"`): Seed of a request. `"per-row"` derives it from
            the run's seed and the prompt; an integer is sent with every row; `null` sends none, so that the same
            request may be answered differently the next time.
        extra_body (`dict`, defaults to `{}`): Additional keys of the request's body, as the service names them:
            `top_k`, `min_p`, `repetition_penalty`, `reasoning_effort`, `chat_template_kwargs`, `response_format` …
            Keys that have their own setting are refused.
        max_tokens_field (`str`, defaults to `"max_tokens"`): The service's name for `max_tokens`:
            `max_completion_tokens` for OpenAI's reasoning models.
        seed_field (`str`, defaults to `"seed"`): The service's name for `seed`: `random_seed` for Mistral's.
    """

    added: ClassVar[frozenset[str]] = frozenset({"seed", "extra_body", "max_tokens_field", "seed_field"})

    temperature: float | None = Field(1.0, ge=0.0, le=10.0, allow_inf_nan=False)
    top_p: float | None = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(1024, ge=1)
    stop: tuple[str, ...] = ()
    seed: Literal["per-row"] | Annotated[StrictInt, Field(ge=0, lt=2**53)] | None = "per-row"
    extra_body: ExtraBody = Field(default_factory=dict)
    max_tokens_field: str = Field("max_tokens", pattern=_FIELD)
    seed_field: str = Field("seed", pattern=_FIELD)

    @model_validator(mode="after")
    def _names_differ(self) -> Sampling:
        taken = {"model", "messages", "stream", "stop", "temperature", "top_p", *self.extra_body}
        for setting, name in (("max_tokens_field", self.max_tokens_field), ("seed_field", self.seed_field)):
            if name in taken:
                raise ValueError(f"`{setting}` is `{name}`, which is another key of the request")
        if self.max_tokens_field == self.seed_field:
            raise ValueError(f"`max_tokens_field` and `seed_field` are both `{self.seed_field}`")
        return self

    def __hash__(self) -> int:
        return hash((self.temperature, self.top_p, self.max_tokens, self.stop, self.seed, *sorted(self.extra_body)))

    @property
    def is_greedy(self) -> bool:
        """True for greedy decoding. False if the server chooses the temperature."""
        return self.temperature == 0

    @property
    def is_fixed(self) -> bool:
        """Returns whether another attempt gives the same answer: greedy sampling, or one seed for all rows."""
        return self.is_greedy or isinstance(self.seed, int)

    @cached_property
    def values(self) -> dict[str, Any]:
        """The parameters as plain values, for ledgers and cards. Fields in `added` appear only if they are set."""
        plain = self.model_dump(mode="json", include=set(Sampling.model_fields))
        unset = {
            name
            for name in Sampling.added
            if getattr(self, name) == Sampling.model_fields[name].get_default(call_default_factory=True)
        }
        return {name: value for name, value in plain.items() if name not in unset}

    @cached_property
    def canonical(self) -> str:
        """The parameters as canonical JSON: equal parameters give equal texts."""
        return json.dumps(self.values, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def wrong_locally(sampling: Sampling) -> list[str]:
    """Returns a sentence for each sampling parameter that local generation does not support."""
    extra = sampling.extra_body
    problems = unknown_extras(sampling, LOCAL_EXTRAS, "`backend: local`")
    problems += [
        f"`sampling.{name}: null` uses the server's default, but `backend: local` has no server"
        for name in ("temperature", "top_p")
        if getattr(sampling, name) is None
    ]
    number, top_k = (int, float), extra.get("top_k", 0)
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < -1:
        problems.append("`sampling.extra_body.top_k` must be an integer; 0 and -1 mean no limit")
    for name, lowest, highest in (("min_p", 0.0, 1.0), ("repetition_penalty", 1e-6, 100.0)):
        value = extra.get(name, lowest)
        if isinstance(value, bool) or not isinstance(value, number) or not lowest <= value <= highest:
            problems.append(f"`sampling.extra_body.{name}` must be a number between {lowest:g} and {highest:g}")
    if not isinstance(extra.get("chat_template_kwargs", {}), Mapping):
        problems.append("`sampling.extra_body.chat_template_kwargs` must be a mapping")
    return problems


def unknown_extras(sampling: Sampling, known: frozenset[str], where: str) -> list[str]:
    """Returns a sentence for each key of `extra_body` that is not among the known ones."""
    unknown = sorted(set(sampling.extra_body) - known)
    return [f"`sampling.extra_body.{key}`: {where} supports {', '.join(sorted(known))}" for key in unknown]
