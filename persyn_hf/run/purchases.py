"""Answers that a run will buy: those that its ledger lacks, and those that it has under other settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher, priced

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.generation.jobs import Asked

#: Longest excerpt of a value that has changed.
_EXCERPT = 60


@dataclass(frozen=True)
class Repurchase:
    """Answers of one teacher that are bought again, since a setting has changed.

    Args:
        teacher (`str`): Its name.
        changes (`Sequence[str]`): What has changed: "teachers[0].sampling.max_tokens: 64 → 65".
        answers (`int`): Prompts that it has answered under the former settings and not under the present ones.
        begun (`bool`): Whether the ledger has answers under the present settings: somebody has agreed before.
        cost (`float`, *optional*): USD, by the former answers' tokens; `None` where it has no price.
        paid (`bool`): Whether it is behind an endpoint, and may cost money.
    """

    teacher: str
    changes: Sequence[str]
    answers: int
    begun: bool
    cost: float | None
    paid: bool

    def __str__(self) -> str:
        """One line: what has changed, how much is bought again, and what that costs."""
        if self.cost is not None:
            cost = f"about {self.cost:.2f} USD" if self.cost >= 0.005 else f"about {self.cost:.2g} USD"
        else:
            cost = "no price is configured" if self.paid else "made in this process"
        return f"{', '.join(self.changes)}: {self.answers:,} answers of `{self.teacher}` are asked for again ({cost})"


def teachers_to_ask(config: RunConfig, prompts: Dataset, ledger: Path) -> list[Teacher]:
    """The teachers that have not answered all of some prompts.

    Args:
        config (`RunConfig`): The run.
        prompts (`Dataset`): With `prompt_id` and `prompt`.
        ledger (`Path`): Where answers are kept; it need not be there.
    """
    from persyn_hf.generation.jobs import CHUNK, Plan, resolved
    from persyn_hf.ledger.ledger import Ledger

    if not ledger.is_file():
        return list(config.teachers)
    plan = Plan(prompts, [resolved(teacher) for teacher in config.teachers], config.seed, False)
    lacking = []
    with Ledger(ledger) as book:
        for asked in plan.asked:
            keys = [job.key for job in plan.jobs(asked)]
            parts = (keys[start : start + CHUNK] for start in range(0, len(keys), CHUNK))
            if any(len(book.get_many(part)) < len(set(part)) for part in parts):
                lacking.append(asked.teacher)
    return lacking


def find_repurchases(config: RunConfig, prompts: Dataset, ledger: Path, former: Path) -> list[Repurchase]:
    """Finds answers that the ledger has under former settings, and that a run will buy again under its own.

    An answer in the ledger that no teacher of the configuration would find belongs to one whose settings were others.

    Args:
        config (`RunConfig`): The run.
        prompts (`Dataset`): The prompts that it asks.
        ledger (`Path`): Where answers are kept; it need not be there.
        former (`Path`): The configuration of the run before, which names what the ledger does not keep.
    """
    from persyn_hf.generation.jobs import resolved
    from persyn_hf.ledger.ledger import Ledger

    if not ledger.is_file():
        return []
    before = _read_former(former)
    groups: dict[str, list[tuple[int, Asked]]] = {}
    for place, teacher in enumerate(config.teachers):
        groups.setdefault(teacher.model, []).append((place, resolved(teacher)))
    found = []
    with Ledger(ledger) as book:
        for model, own in groups.items():
            asked = _Asking([one for _, one in own], prompts, config.seed, list(book.origins(model)))
            found += [
                repurchase
                for place, one in own
                if (repurchase := asked.repurchase(one, f"teachers[{place}]", config.seed, before)) is not None
            ]
    return found


class _Asking:
    """Teachers of one model, and what the ledger has of it."""

    def __init__(self, asked: Sequence[Asked], prompts: Dataset, seed: int, rows: Iterable[Mapping[str, Any]]) -> None:
        from persyn_hf.generation.jobs import Plan

        rows = list(rows)
        known = {row["prompt_id"] for row in rows}
        ids = prompts[columns.PROMPT_ID][:]
        plan = Plan(prompts.select([row for row, one in enumerate(ids) if one in known]), asked, seed, False)
        jobs = {one.name: list(plan.jobs(one)) for one in asked}
        self._keys = {name: {job.request.prompt_id: job.key for job in own} for name, own in jobs.items()}
        self._seeds = {name: {job.request.prompt_id: job.request.seed for job in own} for name, own in jobs.items()}
        here = set(ids)
        self._rows = [row for row in rows if row["prompt_id"] in here]
        have = {row["key"] for row in self._rows}
        self._answered = {name: {pid for pid, key in own.items() if key in have} for name, own in self._keys.items()}
        claimed = {key for own in self._keys.values() for key in own.values()}
        self._former = [row for row in self._rows if row["key"] not in claimed]

    def repurchase(self, asked: Asked, where: str, seed: int, before: Mapping[str, Any]) -> Repurchase | None:
        """What one teacher is asked for again; `None` where it is nothing."""
        answered = self._answered[asked.name]
        kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in self._former:
            if row["prompt_id"] not in answered:
                kinds.setdefault(tuple(self._changes(asked, where, row, seed, before)), []).append(row)
        if not kinds:
            return None
        changes, rows = min(kinds.items(), key=lambda kind: len(kind[0]))  # the nearest of former settings
        last = {row["prompt_id"]: row for row in rows}
        teacher = asked.teacher
        cost = None
        if teacher.has_price:
            cost = sum(priced(teacher.prices, [row[name] for name in columns.TOKENS]) for row in last.values())
        return Repurchase(teacher.name, changes, len(last), bool(answered), cost, teacher.backend == "endpoint")

    def _changes(
        self, asked: Asked, where: str, row: Mapping[str, Any], seed: int, before: Mapping[str, Any]
    ) -> list[str]:
        teacher, changes = asked.teacher, []
        was = _flat(json.loads(row["sampling"] or "{}"), f"{where}.sampling")
        now = _flat(json.loads(json.dumps(teacher.sampling.values)), f"{where}.sampling")
        changes += [_change(key, was.get(key), now.get(key)) for key in {**was, **now} if was.get(key) != now.get(key)]
        if (row["revision"] or "") != asked.revision:
            changes.append(_change(f"{where}.revision", row["revision"] or None, asked.revision or None))
        own: dict[str, Any] = next((one for one in before.get("teachers", ()) if one.get("name") == teacher.name), {})
        if row["seed"] != self._seeds[teacher.name][row["prompt_id"]]:
            changes.append(_change("seed", before.get("seed", "another one"), seed))
        if "system_prompt" in own and own["system_prompt"] != teacher.system_prompt:
            changes.append(_change(f"{where}.system_prompt", own["system_prompt"], teacher.system_prompt))
        return changes or [f"{where}: what it is asked with has changed"]


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        flat |= _flat(value, key) if isinstance(value, Mapping) and value else {key: value or None}
    return flat


def _change(key: str, was: object, now: object) -> str:
    return f"{key}: {_shown(was)} → {_shown(now)}"


def _shown(value: object) -> str:
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _EXCERPT else text[:_EXCERPT] + "…"


def _read_former(path: Path) -> dict[str, Any]:
    """The configuration of an earlier run in the folder; nothing where there is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
