"""Cleaning of a set of prompts before requests are sent, with the reason for every dropped row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Hygiene
from persyn_hf.hygiene.contamination import Contamination
from persyn_hf.hygiene.duplicates import near_duplicates, same_meaning

if TYPE_CHECKING:
    from datasets import Dataset

#: Reasons for dropping a prompt.
DUPLICATE, NEAR_DUPLICATE, TOO_SHORT, TOO_LONG, CONTAMINATED = (
    "duplicate",
    "near_duplicate",
    "too_short",
    "too_long",
    "contaminated",
)


@dataclass(frozen=True)
class Drop:
    """A dropped prompt.

    Args:
        row (`int`): Row in the source, from 0.
        prompt_id (`str`): Identity of the prompt.
        reason (`str`): `"duplicate"`, `"near_duplicate"`, `"too_short"`, `"too_long"` or `"contaminated"`.
        repeats (`int`, *optional*): Row that a duplicate repeats.
    """

    row: int
    prompt_id: str
    reason: str
    repeats: int | None = None


@dataclass(frozen=True)
class Cleaned:
    """A cleaned set of prompts.

    Args:
        prompts (`Dataset`): Kept prompts, in order.
        drops (`tuple[Drop, ...]`): Dropped prompts, in order.
    """

    prompts: Dataset
    drops: tuple[Drop, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Reason → number of dropped prompts, the most frequent reason first."""
        return dict(Counter(drop.reason for drop in self.drops).most_common())


def clean_prompts(
    prompts: Dataset,
    hygiene: Hygiene,
    benchmarks: Contamination | None = None,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
    encoder: Any = None,
) -> Cleaned:
    """Drops prompts that repeat an earlier one, are too short or too long, or share words with a benchmark.

    Args:
        prompts (`Dataset`): The columns `prompt_id` and `prompt`.
        hygiene (`Hygiene`): Settings of the filters.
        benchmarks (`Contamination`, *optional*): Word runs of benchmarks.
        count_tokens (`Callable`, *optional*): Function that counts the tokens of texts; required for `min_tokens` and
            `max_tokens`.
        encoder (`StaticModel`, *optional*): Model that finds near-duplicates by meaning; required for `dedup_model`.
    """
    if hygiene.dedup_model is not None and encoder is None:
        raise ValueError("`dedup_model` needs `encoder`")
    ids = prompts[columns.PROMPT_ID][:]
    drops: dict[int, Drop] = {}
    if hygiene.dedup is not None:
        for row, earlier in _repeated(ids).items():
            drops[row] = Drop(row, ids[row], DUPLICATE, earlier)
    texts = _texts(prompts) if _reads_texts(hygiene, benchmarks) else []
    for row, reason in enumerate(_row_reasons(texts, hygiene, benchmarks, count_tokens)):
        if reason is not None:
            drops.setdefault(row, Drop(row, ids[row], reason))
    if hygiene.dedup == "near":
        left = [row for row in range(len(ids)) if row not in drops]
        for place, earlier in _near([texts[row] for row in left], hygiene.dedup_threshold, encoder).items():
            row = left[place]
            drops[row] = Drop(row, ids[row], NEAR_DUPLICATE, left[earlier])
    kept = prompts.select([row for row in range(len(ids)) if row not in drops]) if drops else prompts
    return Cleaned(kept, tuple(drops[row] for row in sorted(drops)))


def _reads_texts(hygiene: Hygiene, benchmarks: Contamination | None) -> bool:
    lengths = hygiene.min_tokens is not None or hygiene.max_tokens is not None
    return bool(benchmarks) or lengths or hygiene.dedup == "near"


def _texts(prompts: Dataset) -> list[str]:
    return [columns.prompt_text(prompt) for prompt in prompts[columns.PROMPT]]


def _repeated(ids: Sequence[str]) -> Mapping[int, int]:
    first: dict[str, int] = {}
    return {row: first[own] for row, own in enumerate(ids) if first.setdefault(own, row) != row}


def _near(texts: Sequence[str], threshold: float, encoder: Any) -> Mapping[int, int]:
    if encoder is not None:
        return same_meaning(texts, threshold, encoder)
    return near_duplicates(texts, threshold)


def _row_reasons(
    texts: Sequence[str],
    hygiene: Hygiene,
    benchmarks: Contamination | None,
    count_tokens: Callable[[Sequence[str]], Sequence[int]] | None,
) -> list[str | None]:
    """The reasons that do not depend on other texts, so that shards can be processed separately."""
    lengths: Sequence[int] = []
    if texts and (hygiene.min_tokens is not None or hygiene.max_tokens is not None):
        if count_tokens is None:
            raise ValueError("`min_tokens` and `max_tokens` need `count_tokens`")
        lengths = count_tokens(texts)
    found: list[str | None] = []
    for row, text in enumerate(texts):
        if lengths and hygiene.min_tokens is not None and lengths[row] < hygiene.min_tokens:
            found.append(TOO_SHORT)
        elif lengths and hygiene.max_tokens is not None and lengths[row] > hygiene.max_tokens:
            found.append(TOO_LONG)
        else:
            found.append(CONTAMINATED if benchmarks and benchmarks.holds(text) else None)
    return found
