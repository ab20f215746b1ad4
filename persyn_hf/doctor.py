"""A configuration against this installation: prompts, models, memory, disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from persyn_hf.config import RunConfig, Teacher
from persyn_hf.errors import PersynError
from persyn_hf.packages import HEAVY, absent, dependencies, extras, pip_command
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
    return [*findings, *_keys(config), *_models(config), _disk(config, len(prompts))]


def _keys(config: RunConfig) -> Iterator[Finding]:
    """The keys of a judge and of a student behind a server; those of teachers are looked up with their endpoints."""
    from persyn_hf.endpoints.keys import require_keys

    try:
        require_keys([("student", config.student), ("quality", config.quality)], "keys")
    except PersynError as error:
        yield Finding("keys", "fail", str(error))


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
    missing = absent("torch", "transformers")
    if missing:
        return Finding(topic, "fail", f"{model}: needs {' and '.join(missing)}: {pip_command(*missing)}")
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


def check_installation() -> list[Finding]:
    """Looks at this process's Python, packages, devices and token. Sends nothing."""
    python = ".".join(map(str, sys.version_info[:3]))
    findings = [Finding("persyn_hf", "ok", f"{__version__} on Python {python}")]
    return findings + check_packages() + check_extras() + check_devices() + [check_token()]


def check_packages() -> list[Finding]:
    """Holds every required package against the range in the installed metadata.

    What a light installation leaves out is a note where it is absent: much runs without.
    """
    if not dependencies():
        mend = "is not installed, so what it requires is not known: pip install --no-deps --editable . in its checkout"
        return [Finding("persyn-hf", "fail", mend)]
    findings = []
    for name, wanted in dependencies().items():
        try:
            found = version(name)
        except PackageNotFoundError:
            light = name in HEAVY
            what = "is not installed, as in a light installation" if light else "is not installed"
            findings.append(Finding(name, "note" if light else "fail", f"{what}: {pip_command(name)}"))
            continue
        if wanted.specifier.contains(found, prereleases=True):
            findings.append(Finding(name, "ok", found))
        else:
            findings.append(Finding(name, "fail", f"is {found}, must be {wanted.specifier}: {pip_command(name)}"))
    return findings


def check_extras() -> list[Finding]:
    """Says which extras are there; an absent one is a note."""
    findings = []
    for extra, packages in extras().items():
        try:
            found = ", ".join(f"{package} {version(package)}" for package in packages)
            findings.append(Finding(f"extra {extra}", "ok", found))
        except PackageNotFoundError:
            findings.append(Finding(f"extra {extra}", "note", f"not installed: pip install 'persyn-hf[{extra}]'"))
    return findings


def check_devices() -> list[Finding]:
    """Names every accelerator with its memory and whether it computes in bfloat16."""
    if absent("torch"):
        cores = Finding("CPU", "ok", f"{os.cpu_count()} cores")
        return [cores, Finding("GPU", "note", f"cannot be looked for without torch: {pip_command('torch')}")]
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
