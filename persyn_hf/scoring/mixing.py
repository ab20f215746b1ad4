"""Sources of quality: one, or several with weights and a chosen way to bring their scales together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persyn_hf.columns import QUALITY, QUALITY_ERROR
from persyn_hf.config import Judge, Quality, QualitySource, read_settings
from persyn_hf.errors import ConfigError
from persyn_hf.scoring.verdicts import RANGE
from persyn_hf.scoring.verifiers import Verifier

#: Ranges of the built-in verifiers.
_RANGES = {"math": (0.0, 1.0), "exact": (0.0, 1.0), "reasoning-gym": (0.0, 1.0), "json-schema": (0.0, 1.0)}

#: Normalisations that need all rows of a prompt, which only `score` has.
WITHIN_PROMPT = ("minmax", "zscore", "rank")


@dataclass(frozen=True)
class Source:
    """One source of quality: a `QualitySource` with its defaults filled in."""

    name: str
    weight: float = 1.0
    range: tuple[float, float] | None = None
    verifier: str | Verifier | None = None
    trust_verifier: bool = False
    reward_model: str | None = None
    revision: str | None = None
    judge: Judge | None = None

    @property
    def column(self) -> str:
        """Name of the source's own column, used if there are several sources."""
        return f"{QUALITY}_{self.name}"


@dataclass(frozen=True)
class Sources:
    """The sources of quality and their normalisation.

    Args:
        parts (`tuple[Source, ...]`): The sources, at least one.
        several (`bool`): Whether to write a column per source.
        normalize (`str`, *optional*): Normalisation that brings different scales together.
    """

    parts: tuple[Source, ...]
    several: bool = False
    normalize: str | None = None

    @property
    def judged(self) -> bool:
        """Tells whether a model gives scores, so that a column of errors is needed."""
        return any(part.verifier is None for part in self.parts)


def read_sources(quality: Quality | Mapping[str, Any]) -> Sources:
    """Reads the configuration's section or its keys.

    Raises:
        ConfigError: If a key is wrong, two sources have one name, or their scales differ and `normalize` is not set.

    Example:
        >>> read_sources({"verifier": "math"}).parts[0].range
        (0.0, 1.0)
    """
    settings = quality if isinstance(quality, Quality) else read_settings(Quality, quality, "quality")
    sources = Sources(tuple(map(_source, settings.parts)), settings.sources is not None, settings.normalize)
    names = [part.name for part in sources.parts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"Sources of quality must have different names; got more than once: {', '.join(repeated)}.")
    if QUALITY_ERROR in [part.column for part in sources.parts]:
        raise ConfigError(f"A source of quality cannot be named `error`: the column `{QUALITY_ERROR}` is reserved.")
    _require_one_scale(sources)
    return sources


def function_source(verifier: Verifier) -> Sources:
    """A single source: the user's own verifier function."""
    return Sources((Source(getattr(verifier, "__name__", "verifier"), verifier=verifier),))


def weighted_mean(sources: Sources, values: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """The weighted mean of the sources, row by row.

    Args:
        sources (`Sources`): The sources; `normalize` is `"range"` or `None`.
        values (`Mapping`): Source name → column of values.

    Returns:
        `list`: One number per row; null if a source has no value.
    """
    columns = [
        [None if value is None else _placed(part, value) for value in values[part.name]]
        if sources.normalize == "range"
        else list(values[part.name])
        for part in sources.parts
    ]
    return mean_of_columns([part.weight for part in sources.parts], columns)


def mean_of_columns(weights: Sequence[float], columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The weighted mean of every row; null if a column is null."""
    means: list[float | None] = []
    for row in zip(*columns, strict=True):
        known = [value for value in row if value is not None]
        total = sum(weight * value for weight, value in zip(weights, known, strict=False))
        means.append(total / sum(weights) if len(known) == len(row) else None)
    return means


def _placed(part: Source, value: float) -> float:
    assert part.range is not None, "checked when the sources were read"
    low, high = part.range
    return (value - low) / (high - low)


def _source(part: QualitySource) -> Source:
    if part.judge is not None:
        name, known = "judge", RANGE
    elif part.reward_model is not None:
        name, known = "reward_model", None
    else:
        assert part.verifier is not None, "the configuration has exactly one"
        name = part.verifier.rpartition(":")[2].replace(".", "_").replace("-", "_")
        known = _RANGES.get(part.verifier)
    return Source(
        part.name or name,
        part.weight,
        part.range or known,
        part.verifier,
        part.trust_verifier,
        part.reward_model,
        part.revision,
        part.judge,
    )


def _require_one_scale(sources: Sources) -> None:
    """Requires several sources to share one known scale, or `normalize` to be set."""
    ranges = {part.name: part.range for part in sources.parts}
    if sources.normalize == "range":
        unknown = [name for name, known in ranges.items() if known is None]
        if unknown:
            raise ConfigError(
                f"`normalize: range` needs the lowest and the highest value of {', '.join(unknown)}: set `range`, or "
                "normalise within the prompt with `minmax`, `zscore` or `rank`."
            )
        return
    alike = len(ranges) == 1 or (None not in ranges.values() and len(set(ranges.values())) == 1)
    if sources.normalize is None and not alike:
        shown = ", ".join(f"{name} {known or 'unknown'}" for name, known in ranges.items())
        raise ConfigError(
            f"The sources of quality have different scales ({shown}), so they cannot be averaged. Set `normalize`: "
            "`range` maps each source's range to 0 to 1; `minmax`, `zscore` and `rank` normalise each source within "
            "the prompt."
        )
