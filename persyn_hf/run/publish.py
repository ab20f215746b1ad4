"""Last step of a run: saves the dataset, the router and their cards, and pushes them to the Hub."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import RunConfig
from persyn_hf.errors import DataError
from persyn_hf.run.report import DROPPED_WORDS, LEFT_OUT_WORDS, PaidScores, RunReport

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.publishing.push import Published
    from persyn_hf.routing.router import PersynRouter


#: A prompt that no answer of was accepted, and one that nobody answered or scored yet.
NOT_ACCEPTED, OPEN = "not_accepted", "open"


@dataclass
class Tables:
    """Tables of the finished stages; `None` for stages that have not run.

    Args:
        probe, scored, routed, generated (`Dataset`, *optional*): Tables of the stages.
        selected (`Dataset`, *optional*): Answers to publish: all, or one per prompt.
        left_out (`dict[str, int]`): Counts of the other answers, by reason.
        block (`dict`, *optional*): `persyn` block of the router.
    """

    probe: Dataset | None = None
    scored: Dataset | None = None
    routed: Dataset | None = None
    generated: Dataset | None = None
    selected: Dataset | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    block: dict[str, Any] | None = None

    def put(self, stage: str, table: Dataset) -> None:
        """Stores the table of a stage. Tables of other stages are ignored."""
        if stage == "probe":
            self.probe = table
        elif stage == "score":
            self.scored = table
        elif stage in ("route", "allocate"):
            self.routed = table
        elif stage == "generate":
            self.generated = self.selected = table
        elif stage == "select":
            self.selected = table
            if self.generated is not None and columns.ACCEPTED in self.generated.column_names:
                prompts = len(set(self.generated[columns.PROMPT_ID]))
                still = sum(reason is not None for reason in self.generated[columns.ACCEPT_ERROR])
                self.left_out |= {NOT_ACCEPTED: prompts - len(table) - still} | ({OPEN: still} if still else {})
        elif stage == "clean":
            reasons = table[columns.LEFT_OUT][:]
            self.left_out |= Counter(reason for reason in reasons if reason is not None)
            self.selected = table.select([row for row, reason in enumerate(reasons) if reason is None])


def publish(
    config: RunConfig, folder: Path, prompts: int, tables: Tables, router: PersynRouter, report: RunReport
) -> Published | None:
    """Saves dataset and router in the folder, and pushes them if the configuration names repositories.

    Args:
        config (`RunConfig`), folder (`Path`): The run and its folder.
        prompts (`int`): Prompts of the run.
        tables (`Tables`), router (`PersynRouter`), report (`RunReport`): Results of the stages.

    Raises:
        DataError: If no answer is left to publish.
    """
    from persyn_hf.publishing.personalized import push_personalized, save_personalized

    settings = config.publish
    assert tables.selected is not None
    if not len(tables.selected):
        gone = ", ".join(f"{count:,} {LEFT_OUT_WORDS[name]}" for name, count in tables.left_out.items() if count)
        said = f" {report.accept}" if report.accept is not None else ""
        raise DataError(
            f"No answer is left to publish ({gone or 'no prompt was answered'}).{said} Look at the tables in "
            f"{folder / 'stages'}; lower `accept.min_quality` or what `hygiene` asks for."
        )
    common: dict[str, Any] = {
        "router": router,
        "settings": settings,
        "scored": tables.scored,
        "run": _facts(config, prompts, tables, router, report),
    }
    pushed = settings.dataset_repo_id is not None  # the push searches for secrets itself
    save_personalized(tables.selected, folder, **common, allow_secrets=pushed or settings.allow_secrets)
    if settings.dataset_repo_id is None:
        return None
    return push_personalized(tables.selected, saved=folder, **common)


def _published(scores: PaidScores) -> dict[str, object]:
    """Returns the facts about paid scores for a card, without the student's name, which may be a local path."""
    facts = asdict(scores)
    return facts if scores.kind == "judge" else {name: value for name, value in facts.items() if name != "model"}


def _accepted(config: RunConfig, report: RunReport) -> dict[str, Any]:
    """Returns the facts of the attempts for a card."""
    if config.accept is None or report.accept is None:
        return {}
    return {"min_quality": config.accept.min_quality, "attempts": config.accept.attempts} | asdict(report.accept)


def _facts(config: RunConfig, prompts: int, tables: Tables, router: PersynRouter, report: RunReport) -> dict[str, Any]:
    """Returns the facts of a run for its cards, beside its tables."""
    from persyn_hf.publishing.provenance import run_costs

    prices = {teacher.name: teacher.prices for teacher in config.teachers if teacher.has_price}
    cost, cost_all = run_costs((tables.probe, tables.generated), prices, prompts)
    facts: dict[str, object] = {
        "generations": report.generations,
        "failed": sum(line.failed for line in report.teachers),
        "dropped": {LEFT_OUT_WORDS[reason]: count for reason, count in tables.left_out.items() if count},
        "hygiene": {DROPPED_WORDS.get(name, name): count for name, count in report.dropped.items()},
        "judges": [part.judge.model for part in config.quality.parts if part.judge] if config.quality else [],
        "accept": _accepted(config, report),
        "generations_all": report.generations_all,
        "cost": cost,
        "cost_all": cost_all,
        "prices": prices,
        "scores": [_published(scores) for scores in report.scores],
        "prompts_source": config.prompts.location,
        "prompts_revision": config.prompts.revision,
    }
    if config.router.pretrained is not None and not Path(config.router.pretrained).exists():
        facts |= {"router_repo_id": config.router.pretrained, "router_revision": router.digest}
    return facts
