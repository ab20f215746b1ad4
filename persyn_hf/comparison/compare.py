"""`compare`: builds every policy's set, trains students on each with several seeds, and compares them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.comparison.cells import Cell, HeldOut, identify, run_cell, run_cells
from persyn_hf.comparison.presentation import PolicyFacts, comparison_markdown
from persyn_hf.comparison.routes import Known, mean_reward, teachers_of
from persyn_hf.comparison.statistics import Outcome, Summary, summarise
from persyn_hf.config import DRAWN, Compare, ComparedStudent, Policy, RunConfig, Student
from persyn_hf.doctor.cleaning import load_clean_prompts
from persyn_hf.endpoints.keys import require_keys
from persyn_hf.errors import ConfigError, DataError
from persyn_hf.models.identity import resolve_revision
from persyn_hf.packages import require
from persyn_hf.prompts.benchmarks import compared_benchmarks
from persyn_hf.prompts.reading import load_prompts
from persyn_hf.run.folder import RunFolder
from persyn_hf.tables import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.routing.rewards import RewardTable

#: Folder of the trained cells.
CELLS = "cells"


@dataclass(frozen=True)
class ComparisonResult:
    """Results of a comparison.

    Args:
        folder (`Path`): Folder with `comparison.md`, `comparison.png`, `comparison.json` and `results.jsonl`.
        summary (`Summary`): Intervals and paired differences.
        facts (`tuple[PolicyFacts, ...]`): Contents of each policy's set.
        outcomes (`tuple[Outcome, ...]`): Raw scores.
    """

    folder: Path
    summary: Summary
    facts: tuple[PolicyFacts, ...]
    outcomes: tuple[Outcome, ...]


def compare(
    config: RunConfig,
    progress: bool = True,
    source: str = "configuration",
    share: str | os.PathLike[str] | None = None,
) -> ComparisonResult:
    """Builds a training set with every policy on the same prompts, and trains and evaluates students on each.

    All trainings use the same recipe and seeds. All policies and students share one ledger, so each answer is
    generated once. If a policy's teacher failed on a prompt or its answer was cut off, the prompt is left out of every
    set, so all sets have the same prompts. An interrupted call resumes where it stopped.

    Args:
        config (`RunConfig`): Configuration with the section `compare`.
        progress (`bool`, defaults to `True`): Whether to show the progress of the trainings.
        source (`str`): Name of the configuration in errors.
        share (`str` or `PathLike`, *optional*): Folder of another comparison, whose answers and finished students are
            reused and extended.

    Returns:
        `ComparisonResult`: Results, also written to `output_dir`.

    Raises:
        ConfigError: If the section is missing or does not fit the rest.
        DataError: If held-out prompts are among the training prompts, or no prompt has an answer under every policy.

    Example:
        >>> result = compare(RunConfig.from_yaml("examples/small_world/world.yaml"))  # doctest: +SKIP
    """
    settings = _settings(config, source)
    asked = (("teachers", config.teachers), ("quality", config.quality), ("compare.students", settings.students))
    require_keys(asked, source)
    require("compare students", "trl", "torch", "transformers", "scipy", "matplotlib")
    shared = Path(config.output_dir if share is None else share)
    folder = RunFolder(config.output_dir, shared / "ledger.sqlite", config.rows_per_shard)
    with folder.locked():
        prompts = load_clean_prompts(config, source).prompts
        held_out = _held_out(config, settings, folder, prompts, source, progress)
        worlds = [_world(config, settings, student, prompts, folder, progress) for student in settings.students]
        outcomes = tuple(_outcomes(config, settings, worlds, held_out, shared / CELLS, progress))
        facts = tuple(fact for world in worlds for fact in world.facts)
        summary = summarise(outcomes, seed=config.seed)
        result = ComparisonResult(folder.path, summary, facts, outcomes)
        _write(result)
    return result


@dataclass(frozen=True)
class _World:
    """One student's part of a comparison: the sets of every policy and seed."""

    student: ComparedStudent
    sets: dict[tuple[Policy, int], Dataset]
    digests: dict[tuple[Policy, int], str]
    facts: list[PolicyFacts] = field(default_factory=list)


def _settings(config: RunConfig, source: str) -> Compare:
    settings = config.compare
    if settings is None:
        raise ConfigError(f"{source}: the section `compare` is required.")
    if config.router.backbone is None:
        raise ConfigError(
            f"{source}: `router.backbone` is required, because `compare` trains its own routers; replace "
            "`router.pretrained` by it."
        )
    if config.quality is None:
        raise ConfigError(f"{source}: `quality` is required.")
    known = {teacher.name for teacher in config.teachers}
    unknown = [name for name in settings.nll_teachers or () if name not in known]
    if unknown:
        raise ConfigError(
            f"{source}: `compare.nll_teachers` must name teachers ({', '.join(sorted(known))}), got "
            f"{', '.join(unknown)}."
        )
    return settings


def _held_out(
    config: RunConfig, settings: Compare, folder: RunFolder, prompts: Dataset, source: str, progress: bool
) -> HeldOut:
    from persyn_hf.run.stages import probe_stage

    held_out = load_prompts(settings.held_out, where=f"{source}: compare.held_out")
    shared = set(held_out[columns.PROMPT_ID]) & set(prompts[columns.PROMPT_ID])
    if shared:
        raise DataError(
            f"{source}: {len(shared)} held-out prompts are also training prompts, first {min(shared)}. Students would "
            "be evaluated on data they were trained on; remove them from one of the two."
        )
    _require_uncontaminated(settings, config.hygiene.ngram_size, prompts, source)
    wanted = settings.nll_teachers
    judges = [teacher for teacher in config.teachers if wanted is None or teacher.name in wanted]
    answers = None
    if judges:
        judging = config.model_copy(update={"teachers": tuple(judges)})
        folder.keep("held-out-prompts", held_out)
        stage = probe_stage(judging, folder.ledger, progress, name="held-out", source="held-out-prompts")
        answers = folder.table(stage)
    quality = settings.quality or config.quality
    assert quality is not None, "checked with the settings"
    digest = identify(
        [
            held_out[columns.PROMPT_ID][:],
            held_out[columns.ANSWER][:] if columns.ANSWER in held_out.column_names else None,
            folder.digest("held-out") if judges else None,
            quality,
        ]
    )
    return HeldOut(held_out, answers, quality, digest)


def _require_uncontaminated(settings: Compare, size: int, prompts: Dataset, source: str) -> None:
    """Refuses training prompts that share words with the students' evaluation data."""
    benchmarks = compared_benchmarks(settings, size)
    texts = map(columns.prompt_text, prompts[columns.PROMPT])
    found = [one for one, text in zip(prompts[columns.PROMPT_ID], texts, strict=True) if benchmarks.holds(text)]
    if found:
        raise DataError(
            f"{source}: {len(found)} training prompts share {size} words in a row, or a whole question, with the "
            f"held-out prompts or tasks of `compare`, first {', '.join(found[:5])}. Students would be evaluated on "
            "data they were trained on: set `hygiene.decontaminate: [compare]`, which leaves these prompts out."
        )


def _world(
    config: RunConfig, settings: Compare, student: ComparedStudent, prompts: Dataset, whole: RunFolder, progress: bool
) -> _World:
    from persyn_hf.routing.rewards import read_rewards
    from persyn_hf.run.pipeline import run

    scorer = Student.model_validate(student.model_dump(exclude={"name", "family"}))
    path = whole.path / "students" / student.name
    own = config.model_copy(update={"student": scorer, "output_dir": str(path), "compare": None})
    run(own, until="route", progress=progress, ledger=whole.ledger)
    folder = RunFolder(path, whole.ledger, config.rows_per_shard)
    routed = folder.read("route")
    known = Known(
        probe=read_rewards(folder.read("score"), "compare", config.router.min_answered),
        routes=routed[columns.ROUTE][:],
        ids=routed[columns.PROMPT_ID][:],
        families={teacher.name: teacher.family for teacher in config.teachers},
        family=student.family,
        parallel=_parallel(own, folder, progress) if "oracle" in settings.policies else None,
        strong_share=settings.strong_share,
        beta=settings.beta,
    )
    chosen = {
        (policy, seed): teachers_of(policy, known, seed if policy in DRAWN else 0)
        for policy in settings.policies
        for seed in settings.seeds
    }
    return _build_sets(own, settings, student, prompts, folder, known, chosen, progress)


def _parallel(config: RunConfig, folder: RunFolder, progress: bool) -> RewardTable:
    """Every teacher's answer to every training prompt, scored."""
    from persyn_hf.routing.rewards import read_rewards
    from persyn_hf.run.stages import PROMPTS, probe_stage, score_stage

    folder.table(probe_stage(config, folder.ledger, progress, name="parallel", source=PROMPTS))
    scored = folder.table(
        score_stage(config, progress, name="parallel-score", source="parallel", ledger=folder.ledger)
    )
    return read_rewards(scored, "compare")


def _build_sets(
    config: RunConfig,
    settings: Compare,
    student: ComparedStudent,
    prompts: Dataset,
    folder: RunFolder,
    known: Known,
    chosen: dict[tuple[Policy, int], list[str]],
    progress: bool,
) -> _World:
    """Generates the answers of every policy and keeps the prompts that have a usable answer under all policies."""
    from persyn_hf.personalize import personalize
    from persyn_hf.run.stages import generate_stage

    made: dict[str, Dataset] = {}
    names = {key: identify(teachers) for key, teachers in chosen.items()}
    for key, teachers in chosen.items():
        name = names[key]
        if name in made:
            continue
        folder.keep(f"route-{name}", _with_routes(prompts, teachers))
        stage = generate_stage(config, folder.ledger, progress, name=f"answers-{name}", source=f"route-{name}")
        answers = folder.table(stage)
        made[name] = personalize(answers, config.publish.keep_truncated)
    usable = set.intersection(*(set(data[columns.PROMPT_ID]) for data in made.values()))
    kept = [identity for identity in known.ids if identity in usable]
    if not kept:
        raise DataError(
            f"{student.name}: no prompt has a usable answer under every policy. The tables `answers-*.parquet` in "
            f"{folder.stages} show which teachers fail or are cut off; raise their `max_tokens` or remove them."
        )
    same = {name: _only(data, kept) for name, data in made.items()}
    facts = [
        _facts(student.name, policy, settings.seeds, chosen, same, names, known, kept) for policy in settings.policies
    ]
    return _World(
        student,
        {key: same[name] for key, name in names.items()},
        {key: identify([name, kept, folder.digest(f"answers-{name}")]) for key, name in names.items()},
        facts,
    )


def _with_routes(prompts: Dataset, teachers: Sequence[str]) -> Dataset:
    return prompts.add_column(columns.ROUTE, list(teachers))


def _only(data: Dataset, kept: Sequence[str]) -> Dataset:
    place = {identity: row for row, identity in enumerate(data[columns.PROMPT_ID])}
    return data.select([place[identity] for identity in kept])


def _facts(
    student: str,
    policy: Policy,
    seeds: Sequence[int],
    chosen: dict[tuple[Policy, int], list[str]],
    sets: dict[str, Dataset],
    names: dict[tuple[Policy, int], str],
    known: Known,
    kept: Sequence[str],
) -> PolicyFacts:
    keep = set(kept)
    counts: Counter[str] = Counter()
    rewards: list[float] = []
    for seed in seeds:
        teachers = [name for identity, name in zip(known.ids, chosen[policy, seed], strict=True) if identity in keep]
        counts.update(teachers)
        if known.parallel is not None:
            reward = mean_reward(known.parallel, kept, teachers)
            rewards += [] if reward is None else [reward]
    own = [names[policy, seed] for seed in seeds]
    tokens = [count for name in set(own) for count in sets[name][columns.COMPLETION_TOKENS] if count is not None]
    policies = list(dict.fromkeys(other for other, _ in names))
    earlier = policies[: policies.index(policy)]
    return PolicyFacts(
        student=student,
        policy=policy,
        rows=len(kept),
        left_out=len(known.ids) - len(kept),
        tokens=sum(tokens) / len(tokens) if tokens else None,
        reward=sum(rewards) / len(rewards) if rewards else None,
        shares={name: count / counts.total() for name, count in counts.most_common()},
        same_as=next((other for other in earlier if [names[other, seed] for seed in seeds] == own), None),
    )


def _outcomes(
    config: RunConfig, settings: Compare, worlds: Sequence[_World], held_out: HeldOut, folder: Path, progress: bool
) -> Iterator[Outcome]:
    """Runs all cells seed by seed, so that an interrupted comparison has results for every policy."""
    from tqdm.auto import tqdm

    cells: list[tuple[Policy, Cell]] = []
    for seed in settings.seeds:
        for world in worlds:
            student = world.student
            revision = resolve_revision(student.model, student.revision)
            for policy in settings.policies:
                name = identify([world.digests[policy, seed], revision, config.training])
                path = folder / student.name / f"{name}-{seed}"
                data = world.sets[policy, seed]
                cells.append((policy, Cell(path, data, student, config.training, seed, held_out, settings)))
    todo = {cell.results for _, cell in cells if not cell.results.exists()}
    with tqdm(total=len(todo), desc="students", unit="student", disable=not progress) as bar:
        if settings.processes > 1 and len(todo) > 1:
            for cell in run_cells([cell for _, cell in cells], min(settings.processes, len(todo))):
                bar.set_postfix_str(f"{cell.student.name}, seed {cell.seed}")
                bar.update()
        for policy, cell in cells:
            new = not cell.results.exists()
            if new:
                bar.set_postfix_str(f"{cell.student.name}, {policy}, seed {cell.seed}")
            for judged in run_cell(cell):
                yield Outcome(
                    cell.student.name,
                    policy,
                    cell.seed,
                    judged.evaluation,
                    judged.scores,
                    judged.ids,
                    judged.higher_is_better,
                )
            bar.update(new)


def _write(result: ComparisonResult) -> None:
    from persyn_hf.comparison.presentation import plot_comparison

    lines = [
        json.dumps(
            {
                "student": one.student,
                "policy": one.policy,
                "seed": one.seed,
                "evaluation": one.evaluation,
                "id": identity,
                "score": score,
            },
            ensure_ascii=False,
        )
        for one in result.outcomes
        for identity, score in zip(one.ids, one.scores, strict=True)
    ]
    write_atomically(result.folder / "results.jsonl", "\n".join(lines) + "\n")
    numbers = {"summary": asdict(result.summary), "facts": [asdict(fact) for fact in result.facts]}
    write_atomically(result.folder / "comparison.json", json.dumps(numbers, indent=2) + "\n")
    write_atomically(result.folder / "comparison.md", comparison_markdown(result.summary, result.facts))
    plot_comparison(result.summary, result.folder / "comparison.png")
