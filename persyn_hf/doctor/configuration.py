"""A configuration against this installation: prompts, models, memory, disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from persyn_hf.config import RunConfig
from persyn_hf.doctor.finding import Finding
from persyn_hf.errors import PersynError

#: Bytes that a run keeps for every token of an answer: ledger and tables, text and numbers, generously.
BYTES_PER_TOKEN = 24


def check_configuration(config: RunConfig) -> list[Finding]:
    """Loads prompts and model configurations, and looks for room on the disk. Loads no weight."""
    from persyn_hf.prompts import load_prompts

    try:
        prompts = load_prompts(config.prompts)
    except PersynError as error:
        return [Finding("prompts", "fail", str(error)), *_models(config)]
    findings = [Finding("prompts", "ok", f"{len(prompts)} in {config.prompts.source}")]
    if config.router.pretrained is None and config.probe.size > len(prompts):
        findings.append(Finding("probe", "fail", f"size {config.probe.size} is above the {len(prompts)} prompts"))
    return [*findings, *_models(config), _disk(config, len(prompts))]


def _models(config: RunConfig) -> Iterator[Finding]:
    wanted = [(f"teacher {teacher.name}", teacher.model, teacher.revision, True)
              for teacher in config.teachers if teacher.backend == "local"]  # fmt: skip
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
    from transformers import AutoConfig, AutoTokenizer

    try:
        loaded = AutoConfig.from_pretrained(model, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(topic, "fail", f"{model}: {reason}")
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
