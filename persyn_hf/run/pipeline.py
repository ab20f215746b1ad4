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
from persyn_hf.errors import ConfigError
from persyn_hf.prompts.reading import load_prompts
from persyn_hf.run.allocation import allocate_stage
from persyn_hf.run.folder import RunFolder, StageRecord
from persyn_hf.run.needs import require_packages
from persyn_hf.run.report import RunReport, build_report
from persyn_hf.run.stages import (
    Tables,
    choose_probe,
    generate_stage,
    load_router,
    probe_stage,
    publish_stage,
    route_stage,
    router_stage,
    score_stage,
    select_stage,
)
from persyn_hf.tables import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.publishing.push import Published


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
    require_packages(config, until)
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


def _stages(
    config: RunConfig,
    folder: RunFolder,
    prompts: Dataset,
    probe: Dataset | None,
    wanted: Sequence[str],
    progress: bool,
) -> Tables:
    tables = Tables()
    router_path = config.router.pretrained
    if probe is not None:
        tables.probe = probe_stage(config, folder, probe, progress)
        if "score" in wanted:
            tables.scored = score_stage(config, folder, tables.probe, progress)
        if "router" in wanted and tables.scored is not None:
            router_path = str(router_stage(config, folder, tables.scored, progress))
    if router_path is None or "router" not in wanted:
        return tables
    router = load_router(config, router_path)
    tables.block = dict(router.metadata)
    if "route" in wanted:
        tables.routed = route_stage(folder, prompts, router, router_path, config)
        if config.allocation.active:
            tables.routed = allocate_stage(config, folder, tables.routed, router.teachers, tables.probe, tables.scored)
    if "generate" in wanted and tables.routed is not None:
        tables.generated = tables.selected = generate_stage(
            config,
            folder,
            tables.routed,
            progress,
            routed_name="allocate" if config.allocation.active else "route",
            score_names=router.teachers,
        )
        if config.allocation.top_k > 1:
            tables.selected = select_stage(config, folder, tables.generated, progress)
    if "publish" in wanted and tables.generated is not None:
        tables.published = publish_stage(config, folder, prompts, tables, router)
    return tables
