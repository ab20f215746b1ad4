"""Answers that a run will pay for: those missing from its ledger, and those stored under other settings."""

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

#: Maximum length of an excerpt of a changed value.
_EXCERPT = 60


@dataclass(frozen=True)
class Repurchase:
    """Answers of one teacher that are requested again because a setting has changed.

    Args:
        teacher (`str`): Name of the teacher.
        changes (`Sequence[str]`): Changed settings: "teachers[0].sampling.max_tokens: 64 → 65".
        answers (`int`): Number of prompts with an answer under the former settings and none under the current ones.
        begun (`bool`): True if the ledger has answers under the current settings, so that the cost was confirmed
            before.
        cost (`float`, *optional*): Cost in USD, estimated from the former answers' tokens; `None` without a price.
        paid (`bool`): True if the teacher is behind an endpoint and may cost money.
    """

    teacher: str
    changes: Sequence[str]
    answers: int
    begun: bool
    cost: float | None
    paid: bool

    def __str__(self) -> str:
        """Returns one line with the changes, the number of answers and their cost."""
        if self.cost is not None:
            cost = f"about {self.cost:.2f} USD" if self.cost >= 0.005 else f"about {self.cost:.2g} USD"
        else:
            cost = "no price is configured" if self.paid else "generated in this process"
        return f"{', '.join(self.changes)}: {self.answers:,} answers of `{self.teacher}` are requested again ({cost})"


def teachers_to_ask(config: RunConfig, prompts: Dataset, ledger: Path) -> list[Teacher]:
    """Returns the teachers that have not answered all prompts.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompts (`Dataset`): Prompts with `prompt_id` and `prompt`.
        ledger (`Path`): Path of the ledger, which may be missing.
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
    """Finds answers that the ledger has under former settings and that a run will request again.

    An answer in the ledger that matches no teacher of the configuration was generated under former settings.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompts (`Dataset`): Prompts of the run.
        ledger (`Path`): Path of the ledger, which may be missing.
        former (`Path`): Path of the previous run's configuration, for settings that the ledger does not store.
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
    """Teachers with the same model, and the ledger's answers of that model."""

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
        """Returns the answers that one teacher must give again, or `None`."""
        answered = self._answered[asked.name]
        kinds: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in self._former:
            if row["prompt_id"] not in answered:
                kinds.setdefault(tuple(self._changes(asked, where, row, seed, before)), []).append(row)
        if not kinds:
            return None
        changes, rows = min(kinds.items(), key=lambda kind: len(kind[0]))  # the fewest changes
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
            changes.append(_change("seed", before.get("seed", "another seed"), seed))
        if "system_prompt" in own and own["system_prompt"] != teacher.system_prompt:
            changes.append(_change(f"{where}.system_prompt", own["system_prompt"], teacher.system_prompt))
        return changes or [f"{where}: its request has changed"]


def _flat(values: Mapping[str, object], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
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
    """Reads the configuration of an earlier run in the folder; empty if there is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}
