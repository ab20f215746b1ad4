"""The stages of a run: their inputs, functions and arguments, derived from the configuration alone.

```
prompts ─> probe-prompts ─> probe ─> score ─> router
        ─> route ─> allocate ─> generate ─> score-answers ─> select ─> clean
```

`allocate` runs if the `allocation` section changes a default, `score-answers` if published answers are chosen by their
scores, `select` if a prompt may have several answers, and `clean` if `hygiene` filters answers. With a pretrained
router the run starts at `route`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from persyn_hf import columns
from persyn_hf.config import RunConfig, Service, Student, Teacher
from persyn_hf.run import functions
from persyn_hf.run.accept import accepted_answers, answer_until_accepted
from persyn_hf.run.fingerprints import Checkpoint, Keyed
from persyn_hf.run.shards import Stage

#: Names of the input tables.
PROMPTS, PROBE_PROMPTS = "prompts", "probe-prompts"
ROUTER = "router"
#: The stages that score answers.
SCORES = ("score", "score-answers")
#: Stages that are part of a stage in `config.STAGES` with another name.
_PART_OF = {PROBE_PROMPTS: "probe", "allocate": "route"} | dict.fromkeys(
    ("score-answers", "select", "clean"), "generate"
)


def run_stages(
    config: RunConfig,
    ledger: str | os.PathLike[str],
    folder: str | os.PathLike[str] = "",
    progress: bool = False,
    names: Callable[[], Sequence[str]] | None = None,
) -> Iterator[Stage]:
    """Yields the stages of a run, in order. Each is created when the iterator reaches it.

    Args:
        config (`RunConfig`): Configuration of the run.
        ledger (`str` or `PathLike`): Path of the ledger.
        folder (`str` or `PathLike`): Path of the run folder.
        progress (`bool`, defaults to `False`): Whether to show progress bars.
        names (`Callable`, *optional*): Function that returns the router's teachers in the order of its scores, called
            once the router exists. Default: all teachers.
    """
    allocated = config.allocation.active
    if config.router.pretrained is None:
        yield probe_prompts_stage(config)
        yield probe_stage(config, ledger, progress)
        yield score_stage(config, progress, ledger=ledger)
        yield router_stage(config, folder, progress)
    yield route_stage(config)
    known = names() if names is not None else None
    if allocated:
        yield allocate_stage(config, folder, known)
    generate = accept_stage if config.accept is not None else generate_stage
    yield generate(config, ledger, progress, source="allocate" if allocated else "route", names=known)
    last = "generate"
    if scores_answers(config):
        yield score_stage(config, progress, name="score-answers", source=last, ledger=ledger)
        last = "score-answers"
    if config.accept is not None or config.allocation.top_k > 1:
        yield select_stage(last, accepted=config.accept is not None)
        last = "select"
    if config.hygiene.cleans_answers:
        yield clean_stage(config, last)


def scores_answers(config: RunConfig) -> bool:
    """Returns True if the routed answers are scored, in addition to the probe's."""
    return config.allocation.top_k > 1 or (config.hygiene.min_quality is not None and config.accept is None)


def part_of(stage: Stage) -> str:
    """Returns the stage of `config.STAGES` (a value of `until`) that a stage belongs to."""
    return _PART_OF.get(stage.name, stage.name)


def probe_prompts_stage(config: RunConfig, where: str = "probe") -> Stage:
    """Draws the probe."""
    router = config.router
    backbone = None
    if config.probe.method == "cover" and router.backbone is not None:
        backbone = Checkpoint(router.backbone, router.revision)
    return Stage(
        PROBE_PROMPTS,
        functions.draw_probe,
        PROMPTS,
        keyed={
            "probe": config.probe,
            "seed": config.seed,
            "backbone": backbone,
            "max_length": router.max_length if backbone is not None else None,
        },
        unkeyed={"where": where, "device": router.device},
        whole=True,
        listed=False,
    )


def probe_stage(
    config: RunConfig,
    ledger: str | os.PathLike[str],
    progress: bool = False,
    name: str = "probe",
    source: str = PROBE_PROMPTS,
) -> Stage:
    """Generates every teacher's answer to every prompt of a table."""
    return Stage(
        name,
        functions.answer_all,
        source,
        keyed={"teachers": _answering(config.teachers), "seed": config.seed},
        unkeyed={"ledger": ledger, "progress": progress, "max_cost": _of_teachers(config)},
        errors=columns.ERROR,
    )


def score_stage(
    config: RunConfig,
    progress: bool = False,
    name: str = "score",
    source: str = "probe",
    ledger: str | os.PathLike[str] | None = None,
) -> Stage:
    """Scores the answers of a table with the run's student, quality and reward.

    Args:
        config (`RunConfig`), progress (`bool`): Configuration of the run, and whether to show progress bars.
        name (`str`, defaults to `"score"`), source (`str`, defaults to `"probe"`): Names of the stage and its input.
        ledger (`str` or `PathLike`, *optional*): Path of the ledger, which stores the scores of a judge and of a
            student behind a server.
    """
    system_prompts = None
    if config.student is not None and config.student.teacher_system_prompts:
        system_prompts = {one.name: one.system_prompt for one in config.teachers if one.system_prompt is not None}
    return Stage(
        name,
        functions.score_answers,
        source,
        keyed={
            "student": config.student,
            "quality": config.quality,
            "reward": config.reward,
            "system_prompts": system_prompts,
        },
        unkeyed={
            "progress": progress,
            "ledger": ledger,
            "max_cost": config.max_cost if any(scorer.has_price for scorer in paid_scorers(config)) else None,
        },
        errors=columns.QUALITY_ERROR,
    )


def paid_scorers(config: RunConfig) -> list[Service]:
    """Returns the servers that score the answers of a run: the judges and the student's server."""
    parts = config.quality.parts if config.quality is not None else ()
    judges: list[Service] = [part.judge for part in parts if part.judge is not None]
    student = config.student.endpoint if config.student is not None else None
    return [*judges, student] if student is not None else judges


def router_stage(config: RunConfig, folder: str | os.PathLike[str] = "", progress: bool = False) -> Stage:
    """Trains the router on the scored probe."""
    quality, prompts = config.quality, config.prompts
    metadata = {
        "quality": quality.label if quality is not None else None,
        "prompts": {"source": prompts.location, "revision": prompts.revision},
    }
    return Stage(
        ROUTER,
        functions.train_on_probe,
        "score",
        keyed={
            "router": config.router,
            "student": Keyed(config.student, _ALL_BUT_THE_MODEL),
            "reward": config.reward,
            "teachers": Keyed(config.teachers, Teacher.unkeyed | _PRICES),
            "seed": config.seed,
            "metadata": metadata,
        },
        unkeyed={"answers": os.path.join(folder, "stages", "score.parquet"), "progress": progress},
        checkpoint=True,
    )


def route_stage(config: RunConfig) -> Stage:
    """Routes every prompt by the scores of the router."""
    reached = {"device": config.router.device}
    if config.router.pretrained is None:
        return Stage("route", functions.route_prompts, PROMPTS, inputs={"router": ROUTER}, unkeyed=reached)
    router = Checkpoint(config.router.pretrained, config.router.revision)
    return Stage("route", functions.route_prompts, PROMPTS, keyed={"router": router}, unkeyed=reached)


def allocate_stage(
    config: RunConfig, folder: str | os.PathLike[str] = "", names: Sequence[str] | None = None
) -> Stage:
    """Assigns a teacher to every prompt within the limits of the section `allocation`.

    Args:
        config (`RunConfig`), folder (`str` or `PathLike`): Configuration of the run, and its folder.
        names (`Sequence[str]`, *optional*): Teachers of the router in the order of its scores. Default: all.
    """
    by_name = {teacher.name: teacher for teacher in config.teachers}
    teachers = [by_name[name] for name in names if name in by_name] if names is not None else config.teachers
    return Stage(
        "allocate",
        functions.allocate_routes,
        "route",
        inputs={"probe": "probe", "scored": "score"} if config.router.pretrained is None else {},
        keyed={"teachers": Keyed(teachers, _REACHED), "allocation": config.allocation, "seed": config.seed},
        unkeyed={"summary": Path(folder) / "allocation.json"},
        whole=True,
    )


def generate_stage(
    config: RunConfig,
    ledger: str | os.PathLike[str],
    progress: bool = False,
    name: str = "generate",
    source: str = "route",
    names: Sequence[str] | None = None,
) -> Stage:
    """Generates the answers of the teachers that each prompt is routed to.

    Args:
        config (`RunConfig`), ledger (`str` or `PathLike`), progress (`bool`): Configuration of the run, path of the
            ledger, and whether to show progress bars.
        name (`str`, defaults to `"generate"`), source (`str`, defaults to `"route"`): Names of the stage and of its
            input.
        names (`Sequence[str]`, *optional*): Teachers of the router in the order of `route_scores`.
    """
    return Stage(
        name,
        functions.answer_routed,
        source,
        keyed={"teachers": _answering(config.teachers), "seed": config.seed, "score_names": names},
        unkeyed={"ledger": ledger, "progress": progress, "max_cost": _of_teachers(config)},
        errors=columns.ERROR,
    )


def accept_stage(
    config: RunConfig,
    ledger: str | os.PathLike[str],
    progress: bool = False,
    source: str = "route",
    names: Sequence[str] | None = None,
) -> Stage:
    """Lets each prompt be answered until an answer is accepted; arguments as of [`generate_stage`].

    The limits of `allocation` are those of the routes, which are the first attempts; a teacher whose `max_share` is 0
    is asked by no retry either.
    """
    assert config.accept is not None
    shares = config.allocation.max_share
    never = sorted(name for name, share in shares.items() if share == 0) if isinstance(shares, dict) else []
    return Stage(
        "generate",
        answer_until_accepted,
        source,
        keyed={
            "teachers": _answering(config.teachers),
            "seed": config.seed,
            "accept": config.accept,
            "quality": config.quality,
            "score_names": names,
        }
        | ({"never": never} if never else {}),
        unkeyed={"ledger": ledger, "progress": progress, "max_cost": config.max_cost},
        errors=columns.ACCEPT_ERROR,
        whole=config.accept.target_rows is not None,
    )


def select_stage(source: str, accepted: bool = False) -> Stage:
    """Keeps one answer per prompt: the accepted one, or the best."""
    return Stage("select", accepted_answers if accepted else functions.best_answers, source, errors=columns.ERROR)


def clean_stage(config: RunConfig, source: str) -> Stage:
    """Adds the reason why `hygiene` drops an answer to every row."""
    return Stage("clean", functions.judge_cleanliness, source, keyed={"hygiene": config.hygiene})


_PRICES = frozenset(name for name in Teacher.model_fields if name.startswith("price_per_million_"))
#: Fields that do not affect the allocation. `max_concurrency` and the number of endpoints do.
_REACHED = Teacher.unkeyed - {"max_concurrency", "endpoint"}
#: Fields of the student that the router's block does not show; the scored table's fingerprint covers them.
_ALL_BUT_THE_MODEL = frozenset(Student.model_fields) - {"model", "revision"}


def _of_teachers(config: RunConfig) -> float | None:
    """Returns `max_cost` if a teacher has a price."""
    return config.max_cost if any(teacher.has_price for teacher in config.teachers) else None


def _answering(teachers: Sequence[Teacher]) -> Keyed:
    """Keys teachers by the fields that affect their answers."""
    return Keyed(teachers, Teacher.unkeyed | Teacher.facts)
