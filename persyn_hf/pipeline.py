"""One run, stage after stage: probe, score, router, route, generate, publish. The only file that knows them all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from persyn_hf import columns
from persyn_hf.allocation_stage import allocate_stage
from persyn_hf.checkpoints import resolve_revision
from persyn_hf.config import STAGES, RunConfig, Settings, Teacher
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.prompts import load_prompts, sample_probe
from persyn_hf.report import RunReport, build_report
from persyn_hf.runfolder import RunFolder, StageRecord, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.publishing.push import Published
    from persyn_hf.routing.router import PersynRouter


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Args:
        folder (`Path`): The run folder.
        stages (`Sequence[StageRecord]`): The stages that this run finished or found finished, in order.
        report (`RunReport`): What is printed at the end.
        published (`Published`, *optional*): What was pushed, where the configuration names repositories.
    """

    folder: Path
    stages: Sequence[StageRecord]
    report: RunReport
    published: Published | None = None

    @property
    def answers(self) -> str:
        """The last stage of answers that was run: `generate`, or `probe`."""
        return next((stage.name for stage in self.stages if stage.name == "generate"), "probe")

    @property
    def missing(self) -> int:
        """Rows of that stage that got no answer: those with `error` set."""
        return sum(stage.errors for stage in self.stages if stage.name == self.answers)


def run(
    config: RunConfig,
    until: str = "publish",
    progress: bool = True,
    source: str = "configuration",
    ledger: str | os.PathLike[str] | None = None,
) -> RunResult:
    """Runs the stages up to `until`, skipping those that are finished.

    Args:
        config (`RunConfig`): The run.
        until (`str`, defaults to `"publish"`): The last stage, one of `probe`, `score`, `router`, `route`, `generate`,
            `publish`.
        progress (`bool`, defaults to `True`): Show progress bars.
        source (`str`): Names the configuration in errors.
        ledger (`str` or `PathLike`, *optional*): Where answers are kept. Default: in the run folder. Runs of several
            students share one, so that no teacher is asked twice.

    Returns:
        `RunResult`: The folder, the stages' records and the report.

    Raises:
        ConfigError: If the configuration does not fit its prompts, or the folder is in use.
        DataError: If prompts are empty or repeated, or too few teachers answer.
        RouterMismatchError: If a pretrained router knows other teachers than the configuration.

    Example:
        >>> result = run(RunConfig.from_yaml("run.yaml"), until="score")  # doctest: +SKIP
    """
    if until not in STAGES:
        raise ConfigError(f"`until` must be one of {', '.join(STAGES)}, got {until!r}.")
    folder = RunFolder(config.output_dir, ledger)
    with folder.locked():
        prompts = load_prompts(config.prompts, where=f"{source}: prompts")
        probe = None
        if config.router.pretrained is None:
            probe = choose_probe(config, prompts, where=f"{source}: probe")
        write_atomically(folder.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        tables = _stages(config, folder, prompts, probe, STAGES[: STAGES.index(until) + 1], progress)
        report = build_report(
            config, prompts, tables.probe, tables.scored, tables.routed, tables.generated, tables.block
        )
        write_atomically(folder.path / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")
    return RunResult(folder.path, tuple(folder.records), report, tables.published)


@dataclass
class _Tables:
    """What the stages so far have made."""

    probe: Dataset | None = None
    scored: Dataset | None = None
    routed: Dataset | None = None
    generated: Dataset | None = None
    selected: Dataset | None = None
    block: dict[str, Any] | None = None
    published: Published | None = None


def _stages(
    config: RunConfig,
    folder: RunFolder,
    prompts: Dataset,
    probe: Dataset | None,
    wanted: Sequence[str],
    progress: bool,
) -> _Tables:
    tables = _Tables()
    router_path = config.router.pretrained
    if probe is not None:
        tables.probe = probe_stage(config, folder, probe, progress)
        if "score" in wanted:
            tables.scored = score_stage(config, folder, tables.probe, progress)
        if "router" in wanted and tables.scored is not None:
            router_path = str(_router(config, folder, tables.scored, progress))
    if router_path is None or "router" not in wanted:
        return tables
    router = _load_router(config, router_path)
    tables.block = dict(router.metadata)
    if "route" in wanted:
        tables.routed = _route(folder, prompts, router, router_path, config)
        if config.allocation.active:
            tables.routed = allocate_stage(config, folder, tables.routed, router.teachers, tables.probe, tables.scored)
    if "generate" in wanted and tables.routed is not None:
        tables.generated = tables.selected = generate_stage(
            config, folder, tables.routed, progress, routed_name="allocate" if config.allocation.active else "route",
            score_names=router.teachers,
        )  # fmt: skip
        if config.allocation.top_k > 1:
            tables.selected = _select(config, folder, tables.generated, progress)
    if "publish" in wanted and tables.generated is not None:
        tables.published = _publish(config, folder, prompts, tables, router)
    return tables


def choose_probe(config: RunConfig, prompts: Dataset, where: str = "probe") -> Dataset:
    """The prompts that every teacher answers."""
    if config.probe.method == "random":
        return sample_probe(prompts, config.probe.size, config.seed, where=where)
    from persyn_hf.routing import probe

    router = config.router
    return probe.sample_probe(
        prompts, config.probe.size, config.probe.method, config.seed, backbone=router.backbone,
        revision=router.revision, max_length=router.max_length, where=where,
    )  # fmt: skip


def probe_stage(config: RunConfig, folder: RunFolder, probe: Dataset, progress: bool, name: str = "probe") -> Dataset:
    """Lets every teacher answer every prompt; the stage's table is called `name`."""
    from persyn_hf.generation.generate import generate_parallel

    inputs = {
        "prompts": [_column(probe, columns.PROMPT_ID), _column(probe, columns.ANSWER)],
        "teachers": [_identity(teacher) for teacher in config.teachers],
        "seed": config.seed,
    }
    make = partial(
        generate_parallel, probe, config.teachers, ledger=folder.ledger, seed=config.seed, progress=progress,
        max_cost=config.max_cost,
    )  # fmt: skip
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
        score, answers, student, quality, alpha=reward.alpha, normalization=reward.normalization,
        learnability_metric=reward.learnability_metric, system_prompts=system_prompts, progress=progress,
    )  # fmt: skip
    return folder.table(name, inputs, make)


def _router(config: RunConfig, folder: RunFolder, scored: Dataset, progress: bool) -> Path:
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


def _load_router(config: RunConfig, path: str) -> PersynRouter:
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


def _route(folder: RunFolder, prompts: Dataset, router: PersynRouter, path: str, config: RunConfig) -> Dataset:
    revision = config.router.revision if config.router.pretrained is not None else None
    inputs = {"router": resolve_revision(path, revision), "prompts": _column(prompts, columns.PROMPT_ID)}
    return folder.table("route", inputs, lambda: prompts.map(router, batched=True, batch_size=1000, desc="route"))


def _select(config: RunConfig, folder: RunFolder, answers: Dataset, progress: bool) -> Dataset:
    """The best of each prompt's answers, by the run's reward."""
    from persyn_hf.routing.allocation.select import keep_best

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
        generate_routed, teachers=config.teachers, ledger=folder.ledger, seed=config.seed, progress=progress,
        max_cost=config.max_cost, score_names=score_names,
    )  # fmt: skip
    return folder.table(name, inputs, lambda: concatenate_datasets([ask(each) for each in split_rounds(routed)]))


def _publish(
    config: RunConfig, folder: RunFolder, prompts: Dataset, tables: _Tables, router: PersynRouter
) -> Published | None:
    from persyn_hf.publishing.costs import run_costs
    from persyn_hf.publishing.hub import push_personalized, save_personalized

    settings = config.publish
    assert tables.generated is not None and tables.routed is not None
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
    common: dict[str, Any] = {
        "router": router, "config_name": settings.config_name, "license": settings.license,
        "language": settings.language, "keep_truncated": settings.keep_truncated, "scored": tables.scored,
        "run": facts,
    }  # fmt: skip
    assert tables.selected is not None
    save_personalized(
        tables.selected, folder.path, location=settings.dataset_repo_id, router_location=settings.router_repo_id,
        **common,
    )  # fmt: skip
    if settings.dataset_repo_id is None:
        return None
    return push_personalized(
        tables.selected, settings.dataset_repo_id, router_repo_id=settings.router_repo_id, saved=folder.path,
        private=settings.private, revision=settings.revision, create_pr=settings.create_pr,
        commit_message=settings.commit_message, tags=settings.tags, collection=settings.collection,
        allow_secrets=settings.allow_secrets, dry_run=settings.dry_run, **common,
    )  # fmt: skip


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
