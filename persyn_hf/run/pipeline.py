"""One run: the checks, the stages, the report and the publication."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from persyn_hf.config import STAGES, RunConfig
from persyn_hf.endpoints.event_loop import say
from persyn_hf.errors import ConfigError, RouterMismatchError
from persyn_hf.personalize import count_kept
from persyn_hf.run.folder import RunFolder, StageRecord
from persyn_hf.run.publish import Tables, publish
from persyn_hf.run.readiness import Confirm, Readiness
from persyn_hf.run.report import RunReport, build_report, read_paid_scores
from persyn_hf.run.stages import ROUTER, SCORES, part_of, run_stages
from persyn_hf.tables import write_atomically, write_json

if TYPE_CHECKING:
    from persyn_hf.publishing.push import Published
    from persyn_hf.routing.router import PersynRouter


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Args:
        folder (`Path`): Path of the run folder.
        stages (`Sequence[StageRecord]`): Finished stages in order, including those of earlier runs.
        report (`RunReport`): Report that is printed at the end.
        published (`Published`, *optional*): Record of the push, if the configuration names repositories.
    """

    folder: Path
    stages: Sequence[StageRecord]
    report: RunReport
    published: Published | None = None

    @property
    def answers(self) -> str:
        """The last stage that generated answers: `generate`, or `probe`."""
        return next((stage.name for stage in self.stages if stage.name == "generate"), "probe")

    @property
    def missing(self) -> int:
        """Rows of that stage that got no answer: those with `error` set.

        With `accept`, prompts that nobody answered, or whose answer has no score yet: those with `accept_error` set.
        """
        return sum(stage.errors for stage in self.stages if stage.name == self.answers)

    @property
    def unscored(self) -> dict[str, int]:
        """Number of rows without a score, by scoring stage: those with `quality_error` set."""
        return {stage.name: stage.errors for stage in self.stages if stage.name in SCORES and stage.errors}


def run(
    config: RunConfig,
    until: str = "publish",
    progress: bool = True,
    source: str = "configuration",
    ledger: str | os.PathLike[str] | None = None,
    yes: bool = False,
    confirm: Confirm | None = None,
) -> RunResult:
    """Runs the stages up to `until` and skips those that are finished.

    The run checks the configuration, the prompts and the servers first and reports all problems in one error. It then
    generates and scores one answer per teacher before it sends the other requests.

    Args:
        config (`RunConfig`): Configuration of the run.
        until (`str`, defaults to `"publish"`): Last stage to run: `probe`, `score`, `router`, `route`, `generate` or
            `publish`.
        progress (`bool`, defaults to `True`): Whether to show progress bars.
        source (`str`): Name of the configuration in errors.
        ledger (`str` or `PathLike`, *optional*): Path of the ledger. Default: in the run folder. Runs for several
            students can share a ledger, so that each answer is generated once.
        yes (`bool`, defaults to `False`): Whether to pay again, without confirmation, for answers whose settings have
            changed.
        confirm (`Callable[[str], bool]`, *optional*): Function that asks a person for confirmation. Without it, a
            repeated cost above `confirm_above` is an error.

    Returns:
        `RunResult`: Folder, stage records and report.

    Raises:
        ConfigError: If the configuration has problems, does not fit its prompts or names a missing key; if the folder
            is in use; or if a changed setting would repeat paid requests and nobody confirms.
        DataError: If prompts are empty or repeated, or too few teachers answer.
        RouterMismatchError: If a pretrained router has teachers that are not in the configuration.

    Example:
        >>> result = run(RunConfig.from_yaml("run.yaml"), until="score")  # doctest: +SKIP
    """
    if until not in STAGES:
        raise ConfigError(f"`until` must be one of {', '.join(STAGES)}, got {until!r}.")
    wanted = STAGES[: STAGES.index(until) + 1]
    ready = Readiness(config, wanted, source)
    if not ready.has_ground:
        ready.require_all()
    folder = RunFolder(config.output_dir, ledger, config.rows_per_shard)
    with folder.locked():
        prompts = ready.prepare(folder)
        ready.confirm(folder, prompts, yes, confirm)
        write_atomically(folder.path / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        ready.try_first(folder)
        tables = Tables()
        router = _stages(config, folder, tables, wanted, progress)
        report = build_report(
            config, prompts, tables.probe, tables.scored, tables.routed, tables.generated, tables.block
        )
        report = replace(report, dropped=ready.examined.dropped_counts, kept=_kept(config, tables))
        report = replace(report, scores=read_paid_scores(config, folder.ledger))
        write_json(folder.path / "report.json", report.to_dict())
        published = None
        if until == "publish" and router is not None:
            published = publish(config, folder.path, len(prompts), tables, router, report)
    return RunResult(folder.path, tuple(folder.records), report, published)


def _stages(
    config: RunConfig, folder: RunFolder, tables: Tables, wanted: Sequence[str], progress: bool
) -> PersynRouter | None:
    """Runs the requested stages and returns the router, if one of them loads or trains it."""
    router: PersynRouter | None = None

    def load(path: str) -> PersynRouter:
        found = load_router(config, path)
        tables.block = dict(found.metadata)
        return found

    def names() -> Sequence[str]:
        assert router is not None, "a router is trained or loaded before anything is routed"
        return router.teachers

    if config.router.pretrained is not None and "router" in wanted:
        router = load(config.router.pretrained)
    for stage in run_stages(config, folder.ledger, folder.path, progress, names):
        if part_of(stage) not in wanted:
            break
        if progress and stage.name in _HEADLINES:
            say(f"{stage.name}: {_HEADLINES[stage.name]}")
        if stage.checkpoint:
            router = load(str(folder.model(stage)))
        else:
            tables.put(stage.name, folder.table(stage))
    return router


def _kept(config: RunConfig, tables: Tables) -> dict[str, int]:
    """Counts the published answers, and those left out by reason."""
    if tables.selected is None:
        return {}
    return asdict(count_kept(tables.selected, config.publish.keep_truncated)) | tables.left_out


#: Headlines of the stages.
_HEADLINES = {
    "probe": "every teacher answers the prompts of the probe",
    "score": "the student and the quality score the answers",
    ROUTER: "the router is trained on the scores",
    "route": "the router chooses a teacher for every prompt",
    "allocate": "teachers are assigned within the limits of `allocation`",
    "generate": "every teacher answers the prompts that are routed to it",
    "score-answers": "the student and the quality score the routed answers",
    "select": "one answer to every prompt is kept",
    "clean": "answers are filtered by `hygiene`",
}


def load_router(config: RunConfig, path: str) -> PersynRouter:
    """Loads the router of a run and checks that the configuration has its teachers.

    Raises:
        RouterMismatchError: If the router has teachers that the configuration does not have.
    """
    from persyn_hf.routing.router import PersynRouter

    revision = config.router.revision if config.router.pretrained is not None else None
    router = PersynRouter.from_pretrained(path, revision=revision, device=config.router.device)
    known = {teacher.name for teacher in config.teachers}
    unknown = [name for name in router.teachers if name not in known]
    if unknown:
        raise RouterMismatchError(
            f"The router {path} was trained for the teachers {', '.join(router.teachers)}; the configuration has "
            f"{', '.join(sorted(known))}. Add {', '.join(unknown)} to `teachers`, or train a router for your teachers."
        )
    return router
