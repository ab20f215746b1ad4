"""One run, stage after stage: probe, score, router, route, generate, publish. The only file that knows them all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from persyn_hf.config import STAGES, RunConfig
from persyn_hf.endpoints.keys import require_keys
from persyn_hf.errors import ConfigError, RouterMismatchError
from persyn_hf.prompts.reading import load_prompts
from persyn_hf.run.folder import RunFolder, StageRecord
from persyn_hf.run.needs import require_run_packages
from persyn_hf.run.publish import Tables, publish
from persyn_hf.run.report import RunReport, build_report
from persyn_hf.run.stages import (
    PROMPTS,
    SCORES,
    allocate_stage,
    generate_stage,
    probe_prompts_stage,
    probe_stage,
    route_stage,
    router_stage,
    score_stage,
    select_stage,
)
from persyn_hf.tables import write_atomically

if TYPE_CHECKING:
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

    @property
    def unscored(self) -> dict[str, int]:
        """Rows that a judge gave no score, by the stage of scores: those with `quality_error` set."""
        return {stage.name: stage.errors for stage in self.stages if stage.name in SCORES and stage.errors}


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
        ConfigError: If the configuration does not fit its prompts, a key that it names is not there, or the folder is
            in use.
        DataError: If prompts are empty or repeated, or too few teachers answer.
        RouterMismatchError: If a pretrained router knows other teachers than the configuration.

    Example:
        >>> result = run(RunConfig.from_yaml("run.yaml"), until="score")  # doctest: +SKIP
    """
    if until not in STAGES:
        raise ConfigError(f"`until` must be one of {', '.join(STAGES)}, got {until!r}.")
    wanted = STAGES[: STAGES.index(until) + 1]
    require_keys(_asked(config, wanted), source)
    require_run_packages(config, until)
    folder = RunFolder(config.output_dir, ledger, config.rows_per_shard)
    with folder.locked():
        prompts = load_prompts(config.prompts, where=f"{source}: prompts")
        folder.keep(PROMPTS, prompts)
        tables = Tables()
        if config.router.pretrained is None:
            folder.table(probe_prompts_stage(config, where=f"{source}: probe"))
        write_atomically(folder.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        router = _stages(config, folder, tables, wanted, progress)
        report = build_report(
            config, prompts, tables.probe, tables.scored, tables.routed, tables.generated, tables.block
        )
        published = None
        if until == "publish" and router is not None:
            published = publish(config, folder.path, len(prompts), tables, router, report)
        write_atomically(folder.path / "report.json", json.dumps(report.to_dict(), indent=2) + "\n")
    return RunResult(folder.path, tuple(folder.records), report, published)


def _asked(config: RunConfig, wanted: Sequence[str]) -> list[tuple[str, object]]:
    """The sections whose servers these stages ask, by their paths."""
    trains = config.router.pretrained is None
    sections: list[tuple[str, object]] = []
    if trains or "generate" in wanted:
        sections.append(("teachers", config.teachers))
    if (trains and "score" in wanted) or (config.allocation.top_k > 1 and "generate" in wanted):
        sections += [("student", config.student), ("quality", config.quality)]
    return sections


def _stages(
    config: RunConfig, folder: RunFolder, tables: Tables, wanted: Sequence[str], progress: bool
) -> PersynRouter | None:
    """Runs the stages that are wanted; gives the router where they come that far."""
    path = config.router.pretrained
    if path is None:
        tables.probe = folder.table(probe_stage(config, folder.ledger, progress))
        if "score" in wanted:
            tables.scored = folder.table(score_stage(config, progress))
        if "router" in wanted:
            path = str(folder.model(router_stage(config, folder.path, progress)))
    if path is None or "router" not in wanted:
        return None
    router = load_router(config, path)
    tables.block = dict(router.metadata)
    if "route" in wanted:
        tables.routed = folder.table(route_stage(config))
        if config.allocation.active:
            tables.routed = folder.table(allocate_stage(config, folder.path, router.teachers))
    if "generate" in wanted:
        source = "allocate" if config.allocation.active else "route"
        tables.generated = tables.selected = folder.table(
            generate_stage(config, folder.ledger, progress, source=source, names=router.teachers)
        )
        if config.allocation.top_k > 1:
            folder.table(score_stage(config, progress, name="score-answers", source="generate"))
            tables.selected = folder.table(select_stage())
    return router


def load_router(config: RunConfig, path: str) -> PersynRouter:
    """Loads the router of a run, and holds its teachers against the configuration.

    Raises:
        RouterMismatchError: If it knows teachers that the configuration does not name.
    """
    from persyn_hf.routing.router import PersynRouter

    revision = config.router.revision if config.router.pretrained is not None else None
    router = PersynRouter.from_pretrained(path, revision=revision, device=config.router.device)
    known = {teacher.name for teacher in config.teachers}
    unknown = [name for name in router.teachers if name not in known]
    if unknown:
        raise RouterMismatchError(
            f"The router {path} was trained for the teachers {', '.join(router.teachers)}; the configuration has "
            f"{', '.join(sorted(known))}. Add {', '.join(unknown)} under `teachers`, or train a router for yours."
        )
    return router
