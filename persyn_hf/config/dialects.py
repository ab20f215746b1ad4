"""Services' forms of the chat protocol, by name: a table of facts, from the services' own references.

| dialect | facts |
|---|---|
| `openai` | the limit of an answer is called `max_completion_tokens`; 4 stop strings |
| `openai-reasoning` | the o-series and gpt-5: as `openai`, and no `temperature`, `top_p` or `stop`; no seed is sent |
| `azure` | Azure OpenAI: the key goes in the header `api-key`; 4 stop strings |
| `azure-reasoning` | `azure` with a model of `openai-reasoning` |
| `mistral` | the seed is called `random_seed`; a key that it does not know is a 422, `stream_options` too |
| `gemini` | the OpenAI form of the Gemini API refuses `seed` by name; 5 stop strings |
| `anthropic` | the OpenAI form of the Claude API ignores seeds, cuts temperatures to 1, and its newer models refuse
`temperature` beside `top_p`: `top_p` is left out |
| `tgi` | Text Generation Inference takes a `top_p` below 1 only; left out it is 1 |

A dialect is named in the configuration and never guessed from an address. It sets defaults of other settings; what is
set explicitly wins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DialectName = Literal[
    "openai", "openai-reasoning", "azure", "azure-reasoning", "mistral", "gemini", "anthropic", "tgi"
]


@dataclass(frozen=True)
class Dialect:
    """Facts about one service.

    Args:
        sampling (`Mapping[str, Any]`): Defaults of the sampling settings, instead of the general ones.
        refused (`frozenset[str]`): Sampling settings that the service refuses.
        settings (`Mapping[str, Any]`): Defaults of the settings beside `sampling`.
        max_stop (`int`, *optional*): Stop strings that it takes at most.
        max_temperature (`float`, *optional*): The highest temperature that it takes.
    """

    sampling: Mapping[str, Any] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    settings: Mapping[str, Any] = field(default_factory=dict)
    max_stop: int | None = None
    max_temperature: float | None = None


_REASONING = {"temperature": None, "top_p": None, "seed": None, "max_tokens_field": "max_completion_tokens"}
_REFUSED = frozenset({"temperature", "top_p", "stop"})
_AZURE = {"api_key_header": "api-key"}

#: What is known of each service.
DIALECTS: Mapping[str, Dialect] = {
    "openai": Dialect({"max_tokens_field": "max_completion_tokens"}, max_stop=4),
    "openai-reasoning": Dialect(_REASONING, _REFUSED),
    "azure": Dialect(settings=_AZURE, max_stop=4),
    "azure-reasoning": Dialect(_REASONING, _REFUSED, _AZURE),
    "mistral": Dialect({"seed_field": "random_seed"}, settings={"stream_usage": False}, max_temperature=1.5),
    "gemini": Dialect({"seed": None}, max_stop=5, max_temperature=2.0),
    "anthropic": Dialect({"seed": None, "top_p": None}, max_temperature=1.0),
    "tgi": Dialect({"top_p": None}),
}


def with_dialect(data: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A section's plain values with a dialect's defaults where nothing is set.

    Args:
        data (`Mapping[str, Any]`): The values as they were given, `sampling` and a known `dialect` among them.
        given (`Mapping[str, Any]`): What `sampling` sets explicitly.

    Raises:
        ValueError: If an explicit setting contradicts the dialect.
    """
    dialect = DIALECTS[data["dialect"]]
    problems = list(_contradictions(data["dialect"], dialect, given))
    if problems:
        raise ValueError("; ".join(problems))
    return {**dialect.settings, **data, "sampling": {**dialect.sampling, **given}}


def _contradictions(name: str, dialect: Dialect, given: Mapping[str, Any]) -> Iterator[str]:
    """What is set though the service does not take it."""
    for setting in sorted(dialect.refused):
        if given.get(setting) not in (None, (), []):
            yield f"`sampling.{setting}` is set, but `dialect: {name}` takes none; leave it out"
    stop, temperature = given.get("stop"), given.get("temperature")
    if dialect.max_stop is not None and isinstance(stop, list | tuple) and len(stop) > dialect.max_stop:
        yield f"`sampling.stop` has {len(stop)} strings, but `dialect: {name}` takes at most {dialect.max_stop}"
    highest = dialect.max_temperature
    if highest is not None and isinstance(temperature, int | float) and temperature > highest:
        yield f"`sampling.temperature` is {temperature:g}, but `dialect: {name}` takes at most {highest:g}"
