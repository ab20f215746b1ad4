"""What the cards say about a run, gathered once from the router's `persyn` block and the personalised tables."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import PublishError
from persyn_hf.publishing.strengths import Strength, teacher_strengths

if TYPE_CHECKING:
    from datasets import Dataset

_LIBRARIES = ("persyn-hf", "transformers", "datasets", "huggingface_hub", "torch")
_DESCRIBED = ("model", "revision", "license", "system_prompt", "family")


@dataclass(frozen=True)
class TeacherShare:
    """One teacher's part in a personalised dataset.

    Args:
        name (`str`), model, revision, license, family, system_prompt (`str`, *optional*): Who answered.
        rows (`int`): Training rows from this teacher.
        share (`float`): Of all training rows, 0 to 1.
        prompt_tokens, completion_tokens (`int`): Of the rows that are trained on.
        cost (`float`, *optional*): USD for those rows; `None` where no price is known.
        sampling (`Mapping[str, Any]`): How it was asked.
        strength (`Strength`, *optional*): Its mean scores on the probe.
    """

    name: str
    rows: int
    share: float
    completion_tokens: int
    prompt_tokens: int = 0
    cost: float | None = None
    model: str | None = None
    revision: str | None = None
    license: str | None = None
    family: str | None = None
    system_prompt: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    strength: Strength | None = None


@dataclass(frozen=True)
class Provenance:
    """Everything that a dataset card states about how its data came to be.

    Args:
        teachers (`Sequence[TeacherShare]`): In the router's order.
        rows (`int`): Training rows, all splits together.
        splits (`Mapping[str, int]`): Rows per split.
        router (`Mapping[str, Any]`): The router's `persyn` block; empty where no router is named.
        router_repo_id, router_revision (`str`, *optional*): Where that router is.
        dropped (`Mapping[str, int]`): Answers left out, by reason.
        generations (`int`, *optional*): Answers asked for in the whole run.
        generations_all (`int`, *optional*): What generate-then-select would have asked for.
        cost, cost_all (`float`, *optional*): USD for the one and, estimated, for the other.
        prompts_source, prompts_revision (`str`, *optional*): Where the prompts come from.
        versions (`Mapping[str, str]`): Of the libraries that wrote the data.
    """

    teachers: Sequence[TeacherShare]
    rows: int
    splits: Mapping[str, int] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    router_repo_id: str | None = None
    router_revision: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    generations: int | None = None
    generations_all: int | None = None
    cost: float | None = None
    cost_all: float | None = None
    prompts_source: str | None = None
    prompts_revision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def saved(self) -> float | None:
        """How many times fewer generations than generate-then-select; `None` where the run is not known."""
        if not self.generations or self.generations_all is None:
            return None
        return self.generations_all / self.generations

    @property
    def student(self) -> str | None:
        """The student that the router was trained for."""
        return self.router.get("student")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Reads what [`to_dict`] wrote; keys of a later version are left out.

        Raises:
            PublishError: If it is no provenance.
        """
        try:
            teachers = [
                TeacherShare(
                    **_known(TeacherShare, teacher)
                    | {"strength": Strength(**teacher["strength"]) if teacher.get("strength") else None}
                )
                for teacher in data["teachers"]
            ]
            return cls(**_known(cls, data) | {"teachers": teachers})
        except (KeyError, TypeError, AttributeError) as error:
            raise PublishError(f"This is no provenance that persyn-hf wrote: {error}.") from error


def gather(
    splits: Mapping[str, Dataset],
    router: Mapping[str, Any] | None = None,
    *,
    scored: Dataset | None = None,
    prices: Mapping[str, tuple[float, float]] | None = None,
    **run: Any,
) -> Provenance:
    """Gathers a personalised dataset's provenance.

    Args:
        splits (`Mapping[str, Dataset]`): The personalised tables.
        router (`Mapping[str, Any]`, *optional*): The router's `persyn` block.
        scored (`Dataset`, *optional*): The scored probe; gives every teacher's strength.
        prices (`Mapping`, *optional*): Per teacher, USD per million prompt and completion tokens.
        run (`Any`): `dropped`, `generations`, `generations_all`, `cost`, `cost_all`, `prompts_source`,
            `prompts_revision`, `router_repo_id`, `router_revision`.
    """
    block = dict(router or {})
    counts = _count(splits)
    total = sum(rows for rows, _, _ in counts.values())
    described = {teacher["name"]: teacher for teacher in block.get("teachers", [])}
    reward = block.get("reward") or {}
    strengths = teacher_strengths(scored, reward.get("normalization", "minmax")) if scored is not None else {}
    shares = []
    for name in [*described, *sorted(name for name in counts if name not in described)]:
        rows, prompt_tokens, completion_tokens = counts.get(name, (0, 0, 0))
        price = (prices or {}).get(name)
        about = described.get(name, {})
        shares.append(
            TeacherShare(
                name=name, rows=rows, share=rows / total if total else 0.0,
                prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
                cost=None if price is None else (prompt_tokens * price[0] + completion_tokens * price[1]) / 1e6,
                sampling=about.get("sampling") or {}, strength=strengths.get(name),
                **{key: about.get(key) for key in _DESCRIBED},
            )
        )  # fmt: skip
    sizes = {name: len(data) for name, data in splits.items()}
    return Provenance(teachers=shares, rows=total, splits=sizes, router=block, versions=_versions(), **run)


def _count(splits: Mapping[str, Dataset]) -> dict[str, tuple[int, int, int]]:
    """Per teacher: rows, prompt tokens, completion tokens. Arrow counts; no row becomes a Python object."""
    import pyarrow as pa

    counts: dict[str, tuple[int, int, int]] = {}
    for data in splits.values():
        tokens = [n for n in (columns.PROMPT_TOKENS, columns.COMPLETION_TOKENS) if n in data.column_names]
        table: pa.Table = data.select_columns([columns.TEACHER, *tokens]).with_format("arrow")[:]
        sums = table.group_by(columns.TEACHER).aggregate([([], "count_all"), *((name, "sum") for name in tokens)])
        for row in sums.to_pylist():
            known = counts.get(row[columns.TEACHER], (0, 0, 0))
            new = (
                row["count_all"],
                row.get(f"{columns.PROMPT_TOKENS}_sum") or 0,
                row.get(f"{columns.COMPLETION_TOKENS}_sum") or 0,
            )
            counts[row[columns.TEACHER]] = (known[0] + new[0], known[1] + new[1], known[2] + new[2])
    return counts


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {key: value for key, value in data.items() if key in names}
