"""What a run's answers cost, and what generate-then-select would have cost, in USD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from persyn_hf import columns

if TYPE_CHECKING:
    from datasets import Dataset

#: Per teacher, USD per million prompt tokens and per million completion tokens.
Prices = Mapping[str, tuple[float, float]]

_COLUMNS = (columns.PROMPT_ID, columns.TEACHER, columns.PROMPT_TOKENS, columns.COMPLETION_TOKENS)


def run_costs(tables: Sequence[Dataset | None], prices: Prices, prompts: int) -> tuple[float | None, float | None]:
    """Adds up what was paid, and estimates what every teacher's answer to every prompt would have cost.

    Args:
        tables (`Sequence[Dataset]`): Answers of the stages; one that stands in two of them was paid for once.
        prices (`Prices`): Teachers that are not named are free.
        prompts (`int`): Prompts of the run.

    Returns:
        `tuple[float, float]`: Both in USD; the second is each teacher's mean cost per answer times the prompts, and
        `None` where a priced teacher gave no answer. Both are `None` without any price.
    """
    if not prices:
        return None, None
    paid: dict[tuple[str, str], float] = {}
    for table in tables:
        if table is None:
            continue
        for identity, teacher, asked, answered in zip(*(table[name] for name in _COLUMNS), strict=True):
            if asked is not None and answered is not None:
                price = prices.get(teacher, (0.0, 0.0))
                paid[identity, teacher] = (asked * price[0] + answered * price[1]) / 1e6
    means = []
    for teacher in prices:
        own = [cost for (_, name), cost in paid.items() if name == teacher]
        means.append(sum(own) / len(own) if own else None)
    everything = None if None in means else prompts * sum(mean for mean in means if mean is not None)
    return sum(paid.values()), everything
