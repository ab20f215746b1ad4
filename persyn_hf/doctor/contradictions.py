"""Checks for settings that contradict each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from persyn_hf.config import STAGES, Allocation, RunConfig, Teacher
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.errors import PersynError

#: Disk space per token of an answer, in bytes: an upper estimate over ledger and tables.
BYTES_PER_TOKEN = 24
_ROUNDING = 1e-9


def check_settings(config: RunConfig, stages: Sequence[str] = STAGES) -> Findings:
    """Checks the settings of a run against each other, without reading prompts or sending requests.

    Args:
        config (`RunConfig`): Configuration of the run.
        stages (`Sequence[str]`): Names of the stages to run.
    """
    found = Findings(_twins(config))
    found += _money(config)
    found += _unused(config)
    if "route" in stages:
        found += _shares(config.allocation, config.teachers)
    if "score" in stages:
        found += _ranks(config)
    if "publish" in stages:
        found += _repositories(config)
    return found


def check_probe_size(config: RunConfig, prompts: int, source: str) -> Iterator[Finding]:
    """Checks that the probe is not larger than the set it is drawn from."""
    if config.router.pretrained is None and config.probe.size > prompts:
        size = config.probe.size
        yield _failure(
            "probe.size", f"{source}: probe.size: must be at most the number of prompts, {prompts}, got {size}."
        )


def check_disk(config: RunConfig, prompts: int) -> Finding:
    """Checks that the run folder is writable and has space for the longest possible answers."""
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", "fail", f"{folder} is not writable; set another `output_dir`", "output_dir")
    free = shutil.disk_usage(folder).free
    probe = config.probe.size if config.router.pretrained is None else 0
    longest = max(teacher.sampling.max_tokens or 0 for teacher in config.teachers)
    of_each = config.accept.attempts if config.accept is not None else config.allocation.top_k
    needed = (probe * len(config.teachers) + prompts * of_each) * longest * BYTES_PER_TOKEN
    message = f"{free / 1e9:.1f} GB free for {config.output_dir}; the run writes at most about {needed / 1e9:.2g} GB"
    return Finding("disk", "ok" if free > needed else "fail", message, "output_dir")


def _failure(key: str, message: str) -> Finding:
    return Finding("settings", "fail", message, key)


def _twins(config: RunConfig) -> Iterator[Finding]:
    from persyn_hf.generation.jobs import resolved
    from persyn_hf.generation.twins import find_twins

    asked = []
    for teacher in config.teachers:
        with suppress(PersynError):  # the model checks report a missing model
            asked.append(resolved(teacher))
    places = {teacher.name: place for place, teacher in enumerate(config.teachers)}
    for twins in find_twins(asked):
        yield _failure(f"teachers[{places[twins.names[-1]]}]", str(twins))


def _money(config: RunConfig) -> Iterator[Finding]:
    priced = any(teacher.has_price for teacher in config.teachers) or _a_scorer_has_price(config)
    if config.max_cost is not None and not priced:
        yield _failure(
            "max_cost",
            "`max_cost` needs prices: set `price_per_million_prompt_tokens` and `price_per_million_completion_tokens` "
            "of the teachers that cost money.",
        )
    if config.allocation.budget is not None and not any(teacher.has_price for teacher in config.teachers):
        yield _failure(
            "allocation.budget",
            "`allocation.budget` needs prices: set `price_per_million_prompt_tokens` and "
            "`price_per_million_completion_tokens` of the teachers that cost money.",
        )


def _a_scorer_has_price(config: RunConfig) -> bool:
    parts = config.quality.parts if config.quality is not None else ()
    student = config.student.endpoint if config.student is not None else None
    return any(service is not None and service.has_price for service in (student, *[part.judge for part in parts]))


def _unused(config: RunConfig) -> Iterator[Finding]:
    """Notes scores that are paid for but not used."""
    alpha, student, quality = config.reward.alpha, config.student, config.quality
    if alpha == 0 and student is not None and student.endpoint is not None:
        yield Finding(
            "settings",
            "note",
            "with `reward.alpha: 0` learnability is not used, but the student's server scores every answer; leave out "
            "`student.endpoint` to save these requests, or raise `reward.alpha`",
            "reward.alpha",
        )
    if alpha == 1 and quality is not None and any(part.judge is not None for part in quality.parts):
        yield Finding(
            "settings",
            "note",
            "with `reward.alpha: 1` quality is not used, but the judge scores every answer; use a verifier to save "
            "these requests, or lower `reward.alpha`",
            "reward.alpha",
        )


def _ranks(config: RunConfig) -> Iterator[Finding]:
    student = config.student
    if student is None or student.endpoint is None or student.endpoint.api == "prompt_logprobs":
        return
    if "rsr" in (*student.metrics, config.reward.learnability_metric):
        yield _failure(
            "student.endpoint.api",
            f'`rsr` needs ranks, which `api: {student.endpoint.api}` does not report; use "prompt_logprobs", or leave '
            "out `student.endpoint` to run the student in this process.",
        )


def _shares(allocation: Allocation, teachers: Sequence[Teacher]) -> Iterator[Finding]:
    least, most = (_by_teacher(given, teachers) for given in (allocation.min_share, allocation.max_share))
    whole = allocation.top_k
    if sum(least.values()) > whole + _ROUNDING:
        yield _failure(
            "allocation.min_share",
            f"`allocation.min_share`: the teachers' shares sum to {sum(least.values()):g}, above {whole}; lower them.",
        )
    if len(most) == len(teachers) and sum(most.values()) < whole - _ROUNDING:
        yield _failure(
            "allocation.max_share",
            f"`allocation.max_share`: the shares sum to {sum(most.values()):g}, below {whole}, so prompts would "
            "have no teacher; raise them.",
        )
    for name in least.keys() & most.keys():
        if least[name] > most[name]:
            yield _failure(
                "allocation.min_share",
                f"`allocation.min_share` of {name} is {least[name]:g}, above its `max_share` {most[name]:g}.",
            )
    if allocation.policy == "family-strong" and allocation.student_family not in {one.family for one in teachers}:
        known = ", ".join(sorted({one.family for one in teachers if one.family})) or "none"
        yield _failure(
            "allocation.student_family",
            f"`allocation.student_family` is {allocation.student_family}, but no teacher has that `family`; the "
            f"teachers' families are {known}.",
        )


def _by_teacher(given: float | Mapping[str, float] | None, teachers: Sequence[Teacher]) -> dict[str, float]:
    if given is None:
        return {}
    return dict(given) if isinstance(given, Mapping) else {teacher.name: given for teacher in teachers}


def _repositories(config: RunConfig) -> Iterator[Finding]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id  # `huggingface_hub.utils` re-exports it untyped

    publish = config.publish
    for key, name in (("dataset_repo_id", publish.dataset_repo_id), ("router_repo_id", publish.router_repo_id)):
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            yield _failure(f"publish.{key}", f"`publish.{key}`: {error}")
            continue
        if "/" not in name:
            yield _failure(
                f"publish.{key}", f"`publish.{key}` must include the owner, such as `me/{name}`; got `{name}`."
            )
    if publish.dataset_repo_id is not None and publish.dataset_repo_id == publish.router_repo_id:
        yield Finding(
            "settings", "note", f"dataset and router are both pushed to `{publish.router_repo_id}`", "publish"
        )
