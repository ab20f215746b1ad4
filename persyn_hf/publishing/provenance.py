"""What the cards say about a run, gathered once from the router's `persyn` block and the personalised table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persyn_hf import columns

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class TeacherShare:
    """One teacher's part in a personalised dataset.

    Args:
        name (`str`), model, revision, license (`str`, *optional*): Who answered.
        rows (`int`): Training rows from this teacher.
        share (`float`): Of all training rows, 0 to 1.
        completion_tokens (`int`): Tokens of its answers that are trained on.
    """

    name: str
    rows: int
    share: float
    completion_tokens: int
    model: str | None = None
    revision: str | None = None
    license: str | None = None
    system_prompt: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Everything that a dataset card states about how its data came to be.

    Args:
        teachers (`Sequence[TeacherShare]`): In the router's order.
        rows (`int`): Training rows.
        router (`Mapping[str, Any]`): The router's `persyn` block; empty where no router is named.
        dropped (`Mapping[str, int]`): Answers left out, by reason.
        generations (`int`, *optional*): Answers asked for in the whole run.
        generations_all (`int`, *optional*): What generate-then-select would have asked for.
        prompts_source, prompts_revision (`str`, *optional*): Where the prompts come from.
    """

    teachers: Sequence[TeacherShare]
    rows: int
    router: Mapping[str, Any] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    generations: int | None = None
    generations_all: int | None = None
    prompts_source: str | None = None
    prompts_revision: str | None = None

    @property
    def saved(self) -> float | None:
        """How many times fewer generations than generate-then-select; `None` where the run is not known."""
        if not self.generations or self.generations_all is None:
            return None
        return self.generations_all / self.generations


def gather(data: Dataset, router: Mapping[str, Any] | None = None, **run: Any) -> Provenance:
    """Gathers a personalised table's provenance.

    Args:
        data (`Dataset`): The personalised table.
        router (`Mapping[str, Any]`, *optional*): The router's `persyn` block.
        run (`Any`): `dropped`, `generations`, `generations_all`, `prompts_source`, `prompts_revision`.
    """
    block = dict(router or {})
    rows = Counter(data[columns.TEACHER])
    tokens: Counter[str] = Counter()
    if columns.COMPLETION_TOKENS in data.column_names:
        for name, count in zip(data[columns.TEACHER], data[columns.COMPLETION_TOKENS], strict=True):
            tokens[name] += count or 0
    described = {teacher["name"]: teacher for teacher in block.get("teachers", [])}
    names = [*described, *sorted(name for name in rows if name not in described)]
    shares = [
        TeacherShare(
            name=name,
            rows=rows[name],
            share=rows[name] / len(data) if len(data) else 0.0,
            completion_tokens=tokens[name],
            **{key: described.get(name, {}).get(key) for key in ("model", "revision", "license", "system_prompt")},
            sampling=described.get(name, {}).get("sampling") or {},
        )
        for name in names
    ]
    return Provenance(teachers=shares, rows=len(data), router=block, **run)
