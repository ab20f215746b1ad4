"""The stages of a run: each from its inputs to its table, kept in the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import RunConfig, Settings, Teacher
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.models.identity import resolve_revision
from persyn_hf.prompts.reading import sample_probe
from persyn_hf.run.folder import RunFolder
from persyn_hf.run.report import build_report

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.publishing.push import Published
    from persyn_hf.routing.router import PersynRouter


@dataclass
class Tables:
    """What the stages so far have made."""

    probe: Dataset | None = None
    scored: Dataset | None = None
    routed: Dataset | None = None
    generated: Dataset | None = None
    selected: Dataset | None = None
    block: dict[str, Any] | None = None
    published: Published | None = None


def choose_probe(config: RunConfig, prompts: Dataset, where: str = "probe") -> Dataset:
    """The prompts that every teacher answers."""
    if config.probe.method == "random":
        return sample_probe(prompts, config.probe.size, config.seed, where=where)
    from persyn_hf.routing import probe

    router = config.router
    return probe.sample_probe(
        prompts,
        config.probe.size,
        config.probe.method,
        config.seed,
        backbone=router.backbone,
        revision=router.revision,
        max_length=router.max_length,
        where=where,
    )


def probe_stage(config: RunConfig, folder: RunFolder, probe: Dataset, progress: bool, name: str = "probe") -> Dataset:
    """Lets every teacher answer every prompt; the stage's table is called `name`."""
    from persyn_hf.generation.generate import generate_parallel

    inputs = {
        "prompts": [_column(probe, columns.PROMPT_ID), _column(probe, columns.ANSWER)],
        "teachers": [_identity(teacher) for teacher in config.teachers],
        "seed": config.seed,
    }
    make = partial(
        generate_parallel,
        probe,
        config.teachers,
        ledger=folder.ledger,
        seed=config.seed,
        progress=progress,
        max_cost=config.max_cost,
    )
    return folder.table(name, inputs, make)


def score_stage(
    config: RunConfig,
    folder: RunFolder,
    answers: Dataset,
    progress: bool,
    name: str = "score",
    answers_name: str = "probe",
) -> Dataset:
    """Scores the answers of the stage `answers_name` with the run's student, quality and reward."""
    from persyn_hf.scoring.score import score

    assert config.student is not None and config.quality is not None, "the configuration requires both to train"
    student, quality, reward = config.student, config.quality, config.reward
    system_prompts = None
    if student.teacher_system_prompts:
        system_prompts = {one.name: one.system_prompt for one in config.teachers if one.system_prompt is not None}
    inputs = {
        "answers": folder.digest(answers_name),
        "student": _with_revision(student, student.model),
        "system_prompts": system_prompts,
        "quality": [_with_revision(part, part.reward_model) for part in quality.parts],
        "normalize": quality.normalize,
        "reward": reward.model_dump(),
    }
    make = partial(
        score,
        answers,
        student,
        quality,
        alpha=reward.alpha,
        normalization=reward.normalization,
        learnability_metric=reward.learnability_metric,
        system_prompts=system_prompts,
        progress=progress,
    )
    return folder.table(name, inputs, make)


def router_stage(config: RunConfig, folder: RunFolder, scored: Dataset, progress: bool) -> Path:
    """Trains the router on the scored probe; the folder of its checkpoint."""
    from persyn_hf.routing.training import train_router

    settings, student, quality = config.router, config.student, config.quality
    assert settings.backbone is not None and student is not None and quality is not None
    backbone = settings.backbone
    usable = scored.filter(lambda reward: reward is not None, input_columns=columns.REWARD, desc="usable rewards")
    answering = set(usable[columns.TEACHER])
    if len(answering) < 2:
        raise DataError(
            f"A router needs answers of at least two teachers; on the probe only {', '.join(answering) or 'none'} "
            f"answered. The `error` column of {folder.stages}/probe.parquet says why."
        )
    teachers = [_described(teacher) for teacher in config.teachers if teacher.name in answering]
    inputs = {
        "scored": folder.digest("score"),
        "router": _with_revision(settings, backbone),
        "teachers": teachers,
        "seed": config.seed,
        "reward": config.reward.model_dump(),
    }

    def make(target: Path) -> None:
        train_router(
            usable,
            backbone,
            student.model,
            output_dir=target,
            **settings.model_dump(exclude={"backbone", "pretrained"}),
            seed=config.seed,
            progress=progress,
            teachers=teachers,
            reward_settings=config.reward.model_dump(),
            metadata={
                "quality": quality.label,
                "prompts": {"source": config.prompts.source, "revision": config.prompts.revision},
            },
        )

    return folder.model("router", inputs, make)


def load_router(config: RunConfig, path: str) -> PersynRouter:
    """Loads the router of a run, and holds its teachers against the configuration."""
    from persyn_hf.routing.router import PersynRouter

    revision = config.router.revision if config.router.pretrained is not None else None
    router = PersynRouter.from_pretrained(path, revision=revision)
    known = {teacher.name for teacher in config.teachers}
    unknown = [name for name in router.teachers if name not in known]
    if unknown:
        raise RouterMismatchError(
            f"The router {path} was trained for the teachers {', '.join(router.teachers)}; the configuration has "
            f"{', '.join(sorted(known))}. Add {', '.join(unknown)} under `teachers`, or train a router for yours."
        )
    return router


def route_stage(folder: RunFolder, prompts: Dataset, router: PersynRouter, path: str, config: RunConfig) -> Dataset:
    """Routes every prompt by the scores of the router."""
    revision = config.router.revision if config.router.pretrained is not None else None
    inputs = {"router": resolve_revision(path, revision), "prompts": _column(prompts, columns.PROMPT_ID)}
    return folder.table("route", inputs, lambda: prompts.map(router, batched=True, batch_size=1000, desc="route"))


def select_stage(config: RunConfig, folder: RunFolder, answers: Dataset, progress: bool) -> Dataset:
    """The best of each prompt's answers, by the run's reward."""
    from persyn_hf.routing.allocation.result import keep_best

    scored = score_stage(config, folder, answers, progress, name="score-answers", answers_name="generate")
    return folder.table("select", {"scored": folder.digest("score-answers")}, lambda: keep_best(scored))


def generate_stage(
    config: RunConfig,
    folder: RunFolder,
    routed: Dataset,
    progress: bool,
    name: str = "generate",
    routed_name: str = "route",
    score_names: Sequence[str] | None = None,
) -> Dataset:
    """Lets each prompt of the stage `routed_name` be answered by the teacher that its `route` names, or by several.

    `score_names` are the teachers in the order of `route_scores`, for those that hand their rows on when down.
    """
    from datasets import concatenate_datasets

    from persyn_hf.generation.generate import generate_routed
    from persyn_hf.routing.allocation.result import split_rounds

    inputs = {
        "routed": folder.digest(routed_name),
        "teachers": [_identity(teacher) for teacher in config.teachers],
        "seed": config.seed,
    }
    ask = partial(
        generate_routed,
        teachers=config.teachers,
        ledger=folder.ledger,
        seed=config.seed,
        progress=progress,
        max_cost=config.max_cost,
        score_names=score_names,
    )
    return folder.table(name, inputs, lambda: concatenate_datasets([ask(each) for each in split_rounds(routed)]))


def publish_stage(
    config: RunConfig, folder: RunFolder, prompts: Dataset, tables: Tables, router: PersynRouter
) -> Published | None:
    """Writes dataset and router into the folder, and pushes them where the configuration names repositories."""
    from persyn_hf.publishing.personalized import push_personalized, save_personalized

    settings = config.publish
    assert tables.generated is not None and tables.routed is not None
    facts = _facts(config, prompts, tables, router)
    common: dict[str, Any] = {
        "router": router,
        "config_name": settings.config_name,
        "license": settings.license,
        "language": settings.language,
        "keep_truncated": settings.keep_truncated,
        "scored": tables.scored,
        "run": facts,
    }
    assert tables.selected is not None
    save_personalized(
        tables.selected,
        folder.path,
        location=settings.dataset_repo_id,
        router_location=settings.router_repo_id,
        **common,
    )
    if settings.dataset_repo_id is None:
        return None
    return push_personalized(
        tables.selected,
        settings.dataset_repo_id,
        router_repo_id=settings.router_repo_id,
        saved=folder.path,
        private=settings.private,
        revision=settings.revision,
        create_pr=settings.create_pr,
        commit_message=settings.commit_message,
        tags=settings.tags,
        collection=settings.collection,
        allow_secrets=settings.allow_secrets,
        dry_run=settings.dry_run,
        **common,
    )


def _facts(config: RunConfig, prompts: Dataset, tables: Tables, router: PersynRouter) -> dict[str, Any]:
    """What cards say of a run beside its tables."""
    from persyn_hf.publishing.provenance import run_costs

    report = build_report(config, prompts, tables.probe, tables.scored, tables.routed, tables.generated, tables.block)
    prices = {
        t.name: (t.price_per_million_prompt_tokens, t.price_per_million_completion_tokens)
        for t in config.teachers
        if t.has_price
    }
    cost, cost_all = run_costs((tables.probe, tables.generated), prices, len(prompts))
    facts: dict[str, Any] = {
        "generations": report.generations,
        "generations_all": report.generations_all,
        "cost": cost,
        "cost_all": cost_all,
        "prices": prices,
        "prompts_source": config.prompts.source,
        "prompts_revision": config.prompts.revision,
    }
    if config.router.pretrained is not None and not Path(config.router.pretrained).exists():
        facts |= {"router_repo_id": config.router.pretrained, "router_revision": router.digest}
    return facts


def _column(data: Dataset, name: str) -> list[Any] | None:
    return list(data[name]) if name in data.column_names else None


def _identity(teacher: Teacher) -> dict[str, Any]:
    """What decides a teacher's answers, and its name in the table."""
    return {
        "name": teacher.name,
        "model": resolve_revision(teacher.model) if teacher.backend == "local" else [teacher.model, teacher.revision],
        "system_prompt": teacher.system_prompt,
        "sampling": teacher.sampling.model_dump(mode="json"),
        "dtype": teacher.dtype,
    }


def _described(teacher: Teacher) -> dict[str, Any]:
    """What a published router says of a teacher; no endpoint, no key."""
    return {
        "name": teacher.name,
        "model": teacher.model,
        "revision": resolve_revision(teacher.model, teacher.revision)
        if teacher.backend == "local"
        else teacher.revision,
        "family": teacher.family,
        "license": teacher.license,
        "system_prompt": teacher.system_prompt,
        "sampling": teacher.sampling.model_dump(mode="json"),
    }


def _with_revision(settings: Settings, model: str | None) -> dict[str, Any]:
    dump = settings.model_dump(mode="json")
    return dump | {"resolved": resolve_revision(model, dump.get("revision")) if model else None}
