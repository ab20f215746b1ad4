"""Provenance of a personalised dataset: facts for the cards, from the router's `persyn` block and the tables."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.config import priced
from persyn_hf.errors import PublishError
from persyn_hf.publishing.leaks import find_in_text
from persyn_hf.publishing.local_paths import without_local_paths
from persyn_hf.publishing.markdown import one_line
from persyn_hf.scoring.reward import normalize

if TYPE_CHECKING:
    from datasets import Dataset


#: Per teacher, USD for a million tokens as [`priced`] takes them: of prompts and of completions, or all that
#: `Teacher.prices` has.
Prices = Mapping[str, Sequence[float]]

_LIBRARIES = ("persyn-hf", "transformers", "datasets", "huggingface_hub", "torch")
_DESCRIBED = ("model", "revision", "license", "system_prompt", "family")


@dataclass(frozen=True)
class TeacherShare:
    """One teacher's part in a personalised dataset.

    Args:
        name (`str`), model, revision, license, family, system_prompt (`str`, *optional*): The teacher's description.
        rows (`int`): Training rows from this teacher.
        share (`float`): Share of all training rows, 0 to 1.
        prompt_tokens, completion_tokens (`int`): Tokens of these rows.
        cost (`float`, *optional*): USD for these rows; `None` without a price.
        sampling (`Mapping[str, Any]`): Sampling parameters.
        strength (`Strength`, *optional*): Mean scores on the probe.
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
    """Facts about the origin of a dataset, as its card states them.

    Args:
        teachers (`Sequence[TeacherShare]`): Teachers, in the router's order.
        rows (`int`): Training rows of all splits.
        splits (`Mapping[str, int]`): Rows per split.
        router (`Mapping[str, Any]`): The router's `persyn` block; empty where no router is named.
        router_repo_id, router_revision (`str`, *optional*): Where that router is.
        dropped (`Mapping[str, int]`): Answers left out, by reason.
        hygiene (`Mapping[str, int]`): Prompts left out before anything was asked, by reason.
        accept (`Mapping[str, Any]`): Outcome of the attempts, where answers were requested until one was good:
            `min_quality`, `attempts`, `prompts`, `answers`, `accepted`, `given_up`, `answers_of` and `accepted_of`.
        failed (`int`, *optional*): Requests of the whole run that got no answer.
        judges (`Sequence[str]`): The language models that judged the answers.
        sample (`Mapping[str, str]`): One row, shortened: `prompt`, `completion` and `teacher`.
        generations (`int`, *optional*): Number of answers of the whole run.
        generations_all (`int`, *optional*): Number of answers that generate-then-select would have needed.
        cost, cost_all (`float`, *optional*): USD for these answers and, estimated, for generate-then-select.
        scores (`Sequence[Mapping[str, Any]]`): Paid scores of judges and of a student behind a server: `kind` (`judge`
            or `student`), `model` of a judge, `replies`, `unread` (replies without a score), `prompt_tokens`,
            `completion_tokens` and `cost` in USD, which is not included in `cost` above.
        prompts_source, prompts_revision (`str`, *optional*): Source of the prompts.
        versions (`Mapping[str, str]`): Versions of the libraries that wrote the data.
    """

    teachers: Sequence[TeacherShare]
    rows: int
    splits: Mapping[str, int] = field(default_factory=dict)
    router: Mapping[str, Any] = field(default_factory=dict)
    router_repo_id: str | None = None
    router_revision: str | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    hygiene: Mapping[str, int] = field(default_factory=dict)
    accept: Mapping[str, Any] = field(default_factory=dict)
    failed: int | None = None
    judges: Sequence[str] = field(default_factory=list)
    sample: Mapping[str, str] = field(default_factory=dict)
    generations: int | None = None
    generations_all: int | None = None
    cost: float | None = None
    cost_all: float | None = None
    scores: Sequence[Mapping[str, Any]] = field(default_factory=list)
    prompts_source: str | None = None
    prompts_revision: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def saved(self) -> float | None:
        """Generations of generate-then-select divided by those of the run; `None` if the run's are unknown."""
        if not self.generations or self.generations_all is None:
            return None
        return self.generations_all / self.generations

    @property
    def student(self) -> str | None:
        """The student that the router was trained for."""
        return self.router.get("student")

    @property
    def only_teacher(self) -> str | None:
        """The teacher of all rows, if there is only one."""
        used = [teacher.name for teacher in self.teachers if teacher.rows]
        return used[0] if len(used) == 1 else None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON, with `None` for numbers that are not finite."""
        plain: dict[str, Any] = without_nan(asdict(self))
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Reads the values of [`to_dict`]; unknown keys of later versions are ignored.

        Raises:
            PublishError: If the values are not a provenance.
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
            raise PublishError(f"Expected a provenance that persyn-hf wrote, got other values: {error}.") from error


def gather(
    splits: Mapping[str, Dataset],
    router: Mapping[str, Any] | None = None,
    *,
    scored: Dataset | None = None,
    prices: Prices | None = None,
    finer: Mapping[str, Sequence[int]] | None = None,
    **run: Any,
) -> Provenance:
    """Gathers a personalised dataset's provenance.

    Args:
        splits (`Mapping[str, Dataset]`): Personalised tables.
        router (`Mapping[str, Any]`, *optional*): The router's `persyn` block.
        scored (`Dataset`, *optional*): The scored probe; gives every teacher's strength.
        prices (`Prices`, *optional*): Teachers that are not named have no price.
        finer (`Mapping[str, Sequence[int]]`, *optional*): Per teacher, the cached tokens of the prompts and the
            reasoning tokens of the completions, which personalised tables do not have.
        run (`Any`): `dropped`, `hygiene`, `accept`, `generations`, `generations_all`, `cost`, `cost_all`, `scores`,
            `failed`, `judges`, `prompts_source`, `prompts_revision`, `router_repo_id`, `router_revision`.
    """
    block: dict[str, Any] = without_local_paths(router or {})
    run = without_local_paths(run) | {key: run[key] for key in ("router_repo_id",) if key in run}
    counts = _count(splits)
    total = sum(rows for rows, _, _ in counts.values())
    described = {teacher["name"]: teacher for teacher in block.get("teachers", [])}
    reward = block.get("reward") or {}
    strengths = teacher_strengths(scored, reward.get("normalization", "minmax")) if scored is not None else {}
    shares = []
    for name in [*described, *sorted(name for name in counts if name not in described)]:
        rows, prompt_tokens, completion_tokens = counts.get(name, (0, 0, 0))
        price = (prices or {}).get(name)
        tokens = (prompt_tokens, completion_tokens, *(finer or {}).get(name, ()))
        about = described.get(name, {})
        shares.append(
            TeacherShare(
                name=name,
                rows=rows,
                share=rows / total if total else 0.0,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                cost=None if price is None else priced(price, tokens),
                sampling=about.get("sampling") or {},
                strength=strengths.get(name),
                **{key: about.get(key) for key in _DESCRIBED},
            )
        )
    sizes = {name: len(data) for name, data in splits.items()}
    run.setdefault("sample", _sample(splits))
    return Provenance(teachers=shares, rows=total, splits=sizes, router=block, versions=_versions(), **run)


def _count(splits: Mapping[str, Dataset]) -> dict[str, tuple[int, int, int]]:
    """Returns rows, prompt tokens and completion tokens by teacher. Arrow counts them, without Python objects."""
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


def without_nan(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by `None` in plain nested values."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(part) for key, part in value.items()}
    return [without_nan(part) for part in value] if isinstance(value, list | tuple) else value


_SAMPLE = 400  # characters of a text in the sample row


def _sample(splits: Mapping[str, Dataset]) -> dict[str, str]:
    """Returns the first of the first five rows of a split whose texts do not look like secrets."""
    for data in splits.values():
        for row in data.select(range(min(5, len(data)))):
            texts = {name: one_line(_spoken(row[name]), _SAMPLE) for name in (columns.PROMPT, columns.COMPLETION)}
            if all(texts.values()) and not any(find_in_text(_spoken(row[name]), "") for name in texts):
                return texts | {columns.TEACHER: str(row[columns.TEACHER])}
    return {}


def _spoken(turns: object) -> str:
    """Returns the last text of a conversation."""
    content = turns[-1].get("content") if isinstance(turns, list) and turns else turns
    if isinstance(content, list):
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _LIBRARIES}


def _known(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {entry.name for entry in fields(kind)}
    return {key: value for key, value in data.items() if key in names}


#: Learnability metrics for which lower is better.
_LESS_IS_BETTER = frozenset(("rsr", "perplexity"))


@dataclass(frozen=True)
class Strength:
    """One teacher's means over the probe answers that have both scores.

    Args:
        answers (`int`): Number of these answers.
        quality (`float`), learnability (`float`): Raw means; learnability in the unit of its metric.
        normalized_quality, normalized_learnability (`float`): Means after normalisation within the prompt; for both,
            higher is better. The reward is linear in these two.
        reward (`float`, *optional*): Mean reward.
    """

    answers: int
    quality: float
    learnability: float
    normalized_quality: float
    normalized_learnability: float
    reward: float | None


def teacher_strengths(scored: Dataset, normalization: str = "minmax") -> dict[str, Strength]:
    """Computes the strength of every teacher in a scored probe.

    Args:
        scored (`Dataset`): Table with `prompt_id`, `teacher`, `quality`, `learnability`, and optionally `reward`.
        normalization (`str`, defaults to `"minmax"`): Normalisation of the reward.

    Raises:
        MissingColumnError: If a column is absent.
    """
    needed = (columns.PROMPT_ID, columns.TEACHER, columns.QUALITY, columns.LEARNABILITY)
    columns.require_columns(scored.column_names, needed, "the figure of the teachers")
    metrics = set(scored[columns.LEARNABILITY_METRIC]) if columns.LEARNABILITY_METRIC in scored.column_names else set()
    sign = -1.0 if metrics & _LESS_IS_BETTER else 1.0
    rewards = scored[columns.REWARD] if columns.REWARD in scored.column_names else [None] * len(scored)
    prompts: dict[str, list[tuple[str, float, float, float | None]]] = {}
    for prompt, teacher, quality, learnability, reward in zip(
        *(scored[name] for name in needed), rewards, strict=True
    ):
        if quality is not None and learnability is not None:
            prompts.setdefault(prompt, []).append((teacher, quality, learnability, reward))
    values: dict[str, list[tuple[float, ...]]] = {}
    for answers in prompts.values():
        qualities = normalize([answer[1] for answer in answers], normalization)
        learnabilities = normalize([sign * answer[2] for answer in answers], normalization)
        for (teacher, quality, learnability, reward), n_q, n_l in zip(answers, qualities, learnabilities, strict=True):
            row = (quality, learnability, float(n_q), float(n_l), np.nan if reward is None else reward)
            values.setdefault(teacher, []).append(row)
    return {teacher: _strength(np.array(rows)) for teacher, rows in sorted(values.items())}


def _strength(rows: NDArray[np.float64]) -> Strength:
    quality, learnability, normalized_quality, normalized_learnability = (float(v) for v in rows[:, :4].mean(axis=0))
    known = rows[~np.isnan(rows[:, 4]), 4]
    return Strength(
        answers=len(rows),
        quality=quality,
        learnability=learnability,
        normalized_quality=normalized_quality,
        normalized_learnability=normalized_learnability,
        reward=float(known.mean()) if known.size else None,
    )


def run_costs(tables: Sequence[Dataset | None], prices: Prices, prompts: int) -> tuple[float | None, float | None]:
    """Sums the cost of the run, and estimates the cost of every teacher's answer to every prompt.

    Args:
        tables (`Sequence[Dataset]`): Answers of the stages; a row key in several tables is counted once.
        prices (`Prices`): Prices; teachers without one are free.
        prompts (`int`): Number of prompts of the run.

    Returns:
        `tuple[float, float]`: Both in USD. The second is each teacher's mean cost per answer times the prompts, or
            `None` if a priced teacher gave no answer. Both are `None` without any price.
    """
    if not prices:
        return None, None
    paid: dict[columns.RowKey, float] = {}
    for table in tables:
        if table is None:
            continue
        counted = [table[name][:] for name in columns.TOKENS if name in table.column_names]
        for key, tokens in zip(columns.row_keys(table), zip(*counted, strict=True), strict=True):
            if tokens[0] is not None and tokens[1] is not None:
                paid[key] = priced(prices.get(key[1], (0.0, 0.0)), tokens)
    means = []
    for teacher in prices:
        own = [cost for (_, name, *_), cost in paid.items() if name == teacher]
        means.append(sum(own) / len(own) if own else None)
    everything = None if None in means else prompts * sum(mean for mean in means if mean is not None)
    return sum(paid.values()), everything
