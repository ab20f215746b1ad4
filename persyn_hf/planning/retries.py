"""Expected number of attempts of `accept`: from the pass rates of a scored probe, or a range without one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import Accept, RunConfig, Teacher
from persyn_hf.run.accept import Try, order_of_tries

if TYPE_CHECKING:
    from datasets import Dataset

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Retries:
    """Expected attempts of `accept`.

    Args:
        answers (`Mapping[str, float]`): New answers by teacher, those of the probe left out; without pass rates, the
            most.
        fewest, most (`float`): New answers in all, if each first answer is good, and if none is.
        accepted (`float`, *optional*): Prompts that get a good answer; `None` without pass rates.
        rates (`Mapping[str, float]`): By teacher, the share of its probe answers that are good enough.
    """

    answers: Mapping[str, float]
    fewest: float
    most: float
    accepted: float | None
    rates: Mapping[str, float]

    @property
    def total(self) -> float:
        """New answers in all."""
        return sum(self.answers.values())


def expect_retries(
    config: RunConfig, accept: Accept, shares: Mapping[str, float], prompts: int, probe: int, sample: Dataset | None
) -> Retries:
    """Predicts how many answers each teacher is asked for.

    A prompt's k-th try is made with the probability that those before it failed, `Π (1 − p)` over their teachers'
    pass rates, as if one answer's success said nothing of another's. Its first teacher is drawn from the shares; the
    others follow by their pass rates, best first.

    Args:
        config (`RunConfig`), accept (`Accept`): The run.
        shares (`Mapping[str, float]`): Share of the prompts by first teacher.
        prompts (`int`), probe (`int`): `N` and `S`.
        sample (`Dataset`, *optional*): The scored probe; see [`pass_rates`].
    """
    rates = pass_rates(sample, accept.min_quality, config.teachers) if sample is not None else {}
    fewest = _answers(config, accept, shares, prompts, probe, dict.fromkeys(shares, 1.0))[0]
    most = _answers(config, accept, shares, prompts, probe, dict.fromkeys(shares, 0.0))[0]
    answers, accepted = _answers(config, accept, shares, prompts, probe, rates) if rates else (most, None)
    return Retries(answers, sum(fewest.values()), sum(most.values()), accepted, rates)


def _answers(
    config: RunConfig,
    accept: Accept,
    shares: Mapping[str, float],
    prompts: int,
    probe: int,
    rates: Mapping[str, float],
) -> tuple[dict[str, float], float]:
    """New answers by teacher, and prompts that get a good one."""
    new, again, good = dict.fromkeys(shares, 0.0), dict.fromkeys(shares, 0.0), 0.0
    for first, share in shares.items():
        left = share
        for name, attempt in _order(config.teachers, accept, first, rates):
            new[name] += left
            again[name] += left if attempt == 0 else 0.0  # of a prompt of the probe, the ledger has it
            left *= 1 - rates[name]
        good += share - left
    begun = prompts
    if accept.target_rows is not None and good:
        begun = min(prompts, math.ceil(accept.target_rows / good - _ROUNDING))
    known = probe * begun / prompts if prompts else 0.0
    return {name: begun * count - known * again[name] for name, count in new.items()}, begun * good


def _order(teachers: Sequence[Teacher], accept: Accept, first: str, rates: Mapping[str, float]) -> list[Try]:
    others = [teacher.name for teacher in teachers if teacher.name != first] if accept.retry == "next" else []
    ranked = [first, *sorted(others, key=lambda name: -rates[name])]
    fixed = {teacher.name for teacher in teachers if teacher.sampling.is_fixed}
    return order_of_tries(ranked, fixed, accept.attempts)


def pass_rates(sample: Dataset, min_quality: float, teachers: Sequence[Teacher]) -> dict[str, float]:
    """The share of each teacher's answers that are whole and good enough; a failed one is not.

    Args:
        sample (`Dataset`): `teacher`, `quality`, `completion_tokens` and, where it is there, `finish_reason`.
        min_quality (`float`): As in `accept`.
        teachers (`Sequence[Teacher]`): The run's.

    Returns:
        `dict[str, float]`: By teacher; empty where one has no scored answer, since then too little is known.
    """
    names = (columns.TEACHER, columns.QUALITY, columns.COMPLETION_TOKENS, columns.FINISH_REASON)
    rows = sample.select_columns([name for name in names if name in sample.column_names])[:]
    if columns.QUALITY not in rows:
        return {}
    reasons = rows.get(columns.FINISH_REASON) or [None] * len(sample)
    found: dict[str, list[bool]] = {teacher.name: [] for teacher in teachers}
    for name, quality, tokens, reason in zip(*(rows[name] for name in names[:3]), reasons, strict=True):
        if name in found and (quality is not None or tokens is None):
            found[name].append(quality is not None and quality >= min_quality and not columns.is_cut(reason))
    return {name: sum(own) / len(own) for name, own in found.items()} if all(found.values()) else {}


def find_scored_probe(config: RunConfig) -> Dataset | None:
    """The scored probe of the run's folder, if it is there."""
    from persyn_hf.planning.lengths import read_sample

    path = Path(config.output_dir) / "stages" / "score.parquet"
    there = path.is_file() or (path.is_dir() and any(path.glob("*.parquet")))
    return read_sample(path) if there else None


def retry_notes(retries: Retries, accept: Accept, sampled: bool) -> list[str]:
    """Returns the plan's notes on the attempts.

    Args:
        retries (`Retries`): The prediction.
        accept (`Accept`): The run's.
        sampled (`bool`): Whether the pass rates are of a sample that was given, and not of the run's own probe.
    """
    count = "1 answer" if accept.attempts == 1 else f"1 to {accept.attempts} answers"
    between = f"`accept` asks for {count} to a prompt: {retries.fewest:,.0f} to {retries.most:,.0f} new answers"
    if retries.accepted is None:
        return [
            f"{between}; the table has the most. How many it will be depends on how often answers pass: run "
            "`--until score` first, or pass a scored `--sample`."
        ]
    rates = ", ".join(f"{name} {rate:.0%}" for name, rate in retries.rates.items())
    where = "the sample" if sampled else "the run's scored probe"
    notes = [
        f"{between}, about {retries.total:,.0f} by the shares of good answers in {where} ({rates}). Answers are taken "
        "to pass independently; prompts that are hard for all teachers make it more.",
        f"About {retries.accepted:,.0f} prompts get a good answer.",
    ]
    if accept.target_rows is not None and retries.accepted < accept.target_rows - 0.5:
        notes.append(
            f"That is fewer than `accept.target_rows` ({accept.target_rows:,}): give more prompts or attempts, or a "
            "lower `accept.min_quality`."
        )
    return notes
