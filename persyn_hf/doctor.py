"""A configuration against this installation: prompts, models, memory, disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from persyn_hf.config import RunConfig, Teacher
from persyn_hf.errors import PersynError
from persyn_hf.version import __version__

#: Bytes that a run keeps for every token of an answer: ledger and tables, text and numbers, generously.
BYTES_PER_TOKEN = 24


def check_configuration(config: RunConfig) -> list[Finding]:
    """Loads prompts and model configurations, and looks for room on the disk. Loads no weight."""
    from persyn_hf.prompts.reading import load_prompts

    try:
        prompts = load_prompts(config.prompts)
    except PersynError as error:
        return [Finding("prompts", "fail", str(error)), *_models(config)]
    findings = [Finding("prompts", "ok", f"{len(prompts)} in {config.prompts.source}")]
    if config.router.pretrained is None and config.probe.size > len(prompts):
        findings.append(Finding("probe", "fail", f"size {config.probe.size} is above the {len(prompts)} prompts"))
    return [*findings, *_models(config), _disk(config, len(prompts))]


def _models(config: RunConfig) -> Iterator[Finding]:
    wanted = [
        (f"teacher {teacher.name}", teacher.model, teacher.revision, True)
        for teacher in config.teachers
        if teacher.backend == "local"
    ]
    if config.student is not None:
        wanted.append(("student", config.student.model, config.student.revision, True))
    if config.quality is not None and config.quality.reward_model is not None:
        wanted.append(("reward model", config.quality.reward_model, config.quality.revision, True))
    router = config.router.pretrained or config.router.backbone
    if router is not None:
        wanted.append(("router", router, config.router.revision, False))
    for topic, model, revision, chats in wanted:
        yield _model(topic, model, revision, chats)


def _model(topic: str, model: str, revision: str | None, chats: bool) -> Finding:
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import identity, load_config, load_tokenizer

    try:
        files = ModelFiles(model, identity(model, revision))
        loaded = load_config(files)
        tokenizer = load_tokenizer(files)
    except PersynError as error:
        return Finding(topic, "fail", str(error))
    if chats and not tokenizer.chat_template:
        return Finding(topic, "note", f"{model} ({loaded.model_type}) has no chat template: read as a base model")
    return Finding(topic, "ok", f"{model} ({loaded.model_type})")


def _disk(config: RunConfig, prompts: int) -> Finding:
    folder = Path(config.output_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding("disk", "fail", f"{folder} cannot be written to; set another `output_dir`")
    free = shutil.disk_usage(folder).free
    probe = config.probe.size if config.router.pretrained is None else 0
    longest = max(teacher.sampling.max_tokens for teacher in config.teachers)
    needed = (probe * len(config.teachers) + prompts) * longest * BYTES_PER_TOKEN
    message = f"{free / 1e9:.1f} GB free for {config.output_dir}; the run writes at most about {needed / 1e9:.2g} GB"
    return Finding("disk", "ok" if free > needed else "fail", message)


def check_endpoints(teachers: Sequence[Teacher], patience: float = 5.0) -> list[Finding]:
    """Asks every endpoint what it serves, teacher by teacher; no answer is generated.

    Args:
        teachers (`Sequence[Teacher]`): Those with `backend: local` are left out.
        patience (`float`, defaults to 5): Seconds to wait for a silent endpoint.
    """
    return [asyncio.run(_check(teacher, patience)) for teacher in teachers if teacher.backend == "endpoint"]


async def _check(teacher: Teacher, patience: float) -> Finding:
    from persyn_hf.generation.preflight import preflight

    topic = f"endpoint {teacher.name}"
    asked = teacher.model_copy(update={"preflight": True, "on_teacher_down": "error"})
    try:
        limits = await preflight([(asked, tuple)], patience)
    except PersynError as error:
        return Finding(topic, "fail", str(error))
    silent = len(teacher.endpoints) - len(limits)
    if silent:
        return Finding(topic, "note", f"{silent} of {len(teacher.endpoints)} addresses do not answer")
    return Finding(topic, "ok", f"{teacher.model} at {', '.join(teacher.endpoints)}")


State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Args:
        topic (`str`): What was looked at.
        state (`"ok"`, `"note"` or `"fail"`): A note is worth knowing and stops nothing; a failure stops a run.
        message (`str`): What was found, and how to mend it.
    """

    topic: str
    state: State
    message: str


#: What each extra brings, by the package that stands for it.
EXTRAS = {"math": "math-verify", "lora": "peft", "students": "trl"}


def check_installation() -> list[Finding]:
    """Looks at this process's Python, packages, devices and token. Sends nothing."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("persyn_hf", "ok", f"{__version__} on Python {python}")]
    return findings + check_packages() + check_extras() + check_devices() + [check_token()]


def check_packages() -> list[Finding]:
    """Holds every required package against the range in the installed metadata."""
    from packaging.requirements import Requirement

    findings = []
    for line in requires("persyn-hf") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            findings.append(
                Finding(wanted.name, "fail", f'is not installed: pip install "{wanted.name}{wanted.specifier}"')
            )
            continue
        if wanted.specifier.contains(found, prereleases=True):
            findings.append(Finding(wanted.name, "ok", found))
        else:
            mend = f'is {found}, must be {wanted.specifier}: pip install "{wanted.name}{wanted.specifier}"'
            findings.append(Finding(wanted.name, "fail", mend))
    return findings


def check_extras() -> list[Finding]:
    """Says which extras are there; an absent one is a note."""
    findings = []
    for extra, package in EXTRAS.items():
        try:
            findings.append(Finding(f"extra {extra}", "ok", f"{package} {version(package)}"))
        except PackageNotFoundError:
            findings.append(Finding(f"extra {extra}", "note", f"not installed: pip install 'persyn-hf[{extra}]'"))
    return findings


def check_devices() -> list[Finding]:
    """Names every accelerator with its memory and whether it computes in bfloat16."""
    from persyn_hf.models.device import list_accelerators, thread_count

    found = [Finding("CPU", "ok", f"{thread_count()} threads")]
    found += [Finding(one.device, "ok", one.description) for one in list_accelerators()]
    if len(found) == 1:
        found.append(Finding("GPU", "note", "none is seen: scoring and training run on the CPU"))
    return found


def check_token() -> Finding:
    """Whether a Hub token is at hand. It is not shown and not sent anywhere."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return Finding("Hub", "note", "HF_HUB_OFFLINE is set: models come from the cache, and nothing can be pushed")
    if get_token() is None:
        return Finding("Hub", "note", "no token: public models load, nothing can be pushed; run `hf auth login`")
    return Finding("Hub", "ok", f"a token is at hand for {constants.ENDPOINT}")
