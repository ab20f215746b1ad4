"""Dialects of the chat protocol: how each service deviates from it, according to its own reference.

| dialect | facts |
|---|---|
| `openai` | the length limit is called `max_completion_tokens`; at most 4 stop strings |
| `openai-reasoning` | the o-series and gpt-5: `openai` without `temperature`, `top_p`, `stop` and seed |
| `azure` | Azure OpenAI: the key goes in the header `api-key`; at most 4 stop strings |
| `azure-reasoning` | `azure` with a model of `openai-reasoning` |
| `mistral` | the seed is called `random_seed`; unknown keys, `stream_options` included, are answered with 422 |
| `gemini` | the OpenAI-compatible Gemini API rejects `seed`; at most 5 stop strings |
| `anthropic` | the OpenAI-compatible Claude API ignores seeds and clips temperatures to 1; its newer models reject
`temperature` together with `top_p`, so `top_p` is not sent |
| `tgi` | Text Generation Inference accepts only a `top_p` below 1; without it, `top_p` is 1 |

The configuration names the dialect; it is never guessed from an address. A dialect sets defaults of other settings;
explicit settings override them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

DialectName = Literal[
    "openai", "openai-reasoning", "azure", "azure-reasoning", "mistral", "gemini", "anthropic", "tgi"
]


@dataclass(frozen=True)
class Dialect:
    """Facts about one service.

    Args:
        sampling (`Mapping[str, object]`): Defaults of the sampling settings, which replace the general defaults.
        refused (`frozenset[str]`): Sampling settings that the service rejects.
        settings (`Mapping[str, object]`): Defaults of the other settings.
        max_stop (`int`, *optional*): Maximum number of stop strings.
        max_temperature (`float`, *optional*): Maximum temperature.
    """

    sampling: Mapping[str, object] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    settings: Mapping[str, object] = field(default_factory=dict)
    max_stop: int | None = None
    max_temperature: float | None = None


_REASONING = {"temperature": None, "top_p": None, "seed": None, "max_tokens_field": "max_completion_tokens"}
_REFUSED = frozenset({"temperature", "top_p", "stop"})
_AZURE = {"api_key_header": "api-key"}

#: The dialects by name.
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


def with_dialect(name: str, data: Mapping[str, object], given: Mapping[str, object]) -> dict[str, object]:
    """Fills in a dialect's defaults where a section sets nothing.

    Args:
        name (`str`): Name of the dialect, a key of [`DIALECTS`].
        data (`Mapping[str, object]`): Plain values of the section.
        given (`Mapping[str, object]`): Fields that `sampling` sets explicitly.

    Raises:
        ValueError: If an explicit setting contradicts the dialect.
    """
    dialect = DIALECTS[name]
    problems = list(_contradictions(name, dialect, given))
    if problems:
        raise ValueError("; ".join(problems))
    return {**dialect.settings, **data, "sampling": {**dialect.sampling, **given}}


def _contradictions(name: str, dialect: Dialect, given: Mapping[str, object]) -> Iterator[str]:
    """Yields the settings that the service does not accept."""
    for setting in sorted(dialect.refused):
        if given.get(setting) not in (None, (), []):
            yield f"`sampling.{setting}` is set, but `dialect: {name}` does not take it; leave it out"
    stop, temperature = given.get("stop"), given.get("temperature")
    if dialect.max_stop is not None and isinstance(stop, list | tuple) and len(stop) > dialect.max_stop:
        yield f"`sampling.stop` has {len(stop)} strings, but `dialect: {name}` takes at most {dialect.max_stop}"
    highest = dialect.max_temperature
    if highest is not None and isinstance(temperature, int | float) and temperature > highest:
        yield f"`sampling.temperature` is {temperature:g}, but `dialect: {name}` takes at most {highest:g}"
