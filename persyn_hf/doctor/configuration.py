"""Checks of a configuration that send no request to a model: settings, packages, prompts, keys, models and disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import STAGES, RunConfig
from persyn_hf.doctor.acceptability import check_acceptance, check_cleaning, check_target, possible_cleaning
from persyn_hf.doctor.cleaning import read_clean_prompts
from persyn_hf.doctor.contradictions import check_disk, check_probe_size, check_settings
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.doctor.grading import check_quality, quality_parts, unreadable_references
from persyn_hf.doctor.readers import list_readers, unreadable_prompts
from persyn_hf.errors import DataError, MissingPackageError, PersynError
from persyn_hf.packages import absent, pip_command, require

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.generation.describe import EndpointLimits

#: Maximum number of rows listed in an error.
_NAMED = 10


@dataclass
class Examined:
    """Results of the checks of a configuration.

    Args:
        findings (`Findings`): Findings of the checks.
        prompts (`Dataset`, *optional*): Prompts of the run, without those that were dropped.
        dropped (`dict[str, str]`): Reason of every dropped prompt, by prompt id.
        unread (`Mapping[str, int]`): Counts of rows that were dropped because they hold no prompt or repeat one, by
            reason.
        cleaned (`dict[str, int]`): Counts of prompts that `hygiene` dropped, by reason.
    """

    findings: Findings
    prompts: Dataset | None = None
    dropped: dict[str, str] = field(default_factory=dict)
    unread: Mapping[str, int] = field(default_factory=dict)
    cleaned: dict[str, int] = field(default_factory=dict)

    @property
    def dropped_counts(self) -> dict[str, int]:
        """Counts of dropped rows by reason, the most common first."""
        return self.cleaned | dict((Counter(self.unread) + Counter(self.dropped.values())).most_common())


def check_configuration(config: RunConfig, source: str = "configuration") -> list[Finding]:
    """Runs every check that sends no request to a model. No weights are loaded.

    Args:
        config (`RunConfig`): Configuration of the run.
        source (`str`): Name of the configuration in errors.
    """
    examined = examine(config, source)
    if examined.prompts is not None:
        sift_prompts(config, examined)
    return list(examined.findings)


def examine(config: RunConfig, source: str = "configuration", stages: Sequence[str] = STAGES) -> Examined:
    """Checks the settings, the packages, the prompts, the keys, the models and the disk.

    Args:
        config (`RunConfig`): Configuration of the run.
        source (`str`): Name of the configuration in errors.
        stages (`Sequence[str]`): Names of the stages to run.
    """
    found = Findings()
    examined = Examined(found)
    found += check_cleaning(config)
    cleanable = possible_cleaning(config, found.failures)
    with found.failing("prompts", "prompts.source"):
        cleaned, examined.unread = read_clean_prompts(cleanable, source)
        examined.prompts, examined.cleaned = cleaned.prompts, cleaned.counts
        found.append(Finding("prompts", "ok", f"{len(examined.prompts)} in {config.prompts.location}"))
        if cleaned.drops:
            found.append(Finding("prompts", "note", f"{len(cleaned.drops)} were dropped: {_said(cleaned.counts)}"))
        found += check_probe_size(config, len(examined.prompts), source)
        found += check_target(config, len(examined.prompts), source)
    found += check_settings(config, stages)
    found += check_acceptance(config, stages)
    found += _keys(config, stages, source)
    before = len(found)
    with found.failing("packages"):
        require_run_packages(config, stages)
    if len(found) == before:
        found += _models(config, stages)
    if scores(config, stages) and config.quality is not None:
        found += check_quality(config.quality, examined.prompts)
    found.append(check_disk(config, len(examined.prompts) if examined.prompts is not None else 0))
    return examined


def _said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items())


def scores(config: RunConfig, stages: Sequence[str]) -> bool:
    """Returns True if these stages score answers."""
    trains = config.router.pretrained is None
    chosen = config.allocation.top_k > 1 or config.accept is not None or config.hygiene.min_quality is not None
    return (trains and "score" in stages) or (chosen and "generate" in stages)


def sift_prompts(
    config: RunConfig, examined: Examined, limits: Mapping[tuple[str, str], EndpointLimits] | None = None
) -> None:
    """Finds prompts that a model or a verifier cannot read. They fail, or `prompts.on_bad_prompt: drop` drops them.

    The models of all stages are checked, so that a run has the same prompts for any last stage.

    Args:
        config (`RunConfig`): Configuration of the run.
        examined (`Examined`): Results to update, with the prompts to check.
        limits (`Mapping`, *optional*): Limits of the teachers' endpoints.
    """
    assert examined.prompts is not None
    scoring, found, prompts = scores(config, STAGES), examined.findings, examined.prompts
    readers = list_readers(config, limits, scoring)
    wrong = {row: ("prompts.source", reason) for row, reason in unreadable_prompts(readers, prompts).items()}
    if scoring and config.quality is not None:
        try:
            references = unreadable_references(config.quality, prompts, config.teachers)
        except (PersynError, ImportError):  # likewise
            references = {}
        for row, reason in references.items():
            wrong.setdefault(row, ("prompts.answer_column", reason))
    if not wrong:
        return
    if config.prompts.on_bad_prompt == "drop":
        ids = prompts[columns.PROMPT_ID][:]
        examined.dropped |= {ids[row]: reason for row, (_, reason) in wrong.items()}
        examined.prompts = prompts.select([row for row in range(len(prompts)) if row not in wrong])
        found.append(Finding("prompts", "note", f"{len(wrong)} of {len(prompts)} were dropped: they cannot be read"))
        return
    for key in ("prompts.source", "prompts.answer_column"):
        own = {row: reason for row, (where, reason) in wrong.items() if where == key}
        if own:
            message = _bad_rows(own, len(prompts), key)
            found.append(Finding("prompts", "fail", message, key, DataError(message)))


def _bad_rows(wrong: Mapping[int, str], count: int, key: str) -> str:
    """Describes bad rows with one line per reason, the most common first."""
    what = "prompts cannot be read" if key == "prompts.source" else "references cannot be read by the verifier"
    reasons: dict[str, list[int]] = {}
    for row, reason in wrong.items():
        reasons.setdefault(reason, []).append(row)
    lines = [
        f"  rows {', '.join(map(str, rows[:_NAMED]))}{', …' if len(rows) > _NAMED else ''}: {reason}"
        for reason, rows in sorted(reasons.items(), key=lambda one: -len(one[1]))[:_NAMED]
    ]
    more = len(reasons) - len(lines)
    lines += [f"  and {more} other reasons"] if more > 0 else []
    mend = "Fix these rows (counted from 0), or set `prompts.on_bad_prompt: drop` to drop them."
    return f"`{key}`: {len(wrong)} of {count} {what}. {mend}\n" + "\n".join(lines)


def _keys(config: RunConfig, stages: Sequence[str], source: str) -> Iterator[Finding]:
    """Checks the keys of the servers that these stages use."""
    from persyn_hf.endpoints.keys import require_keys

    for section in asked_sections(config, stages):
        try:
            require_keys([section], source)
        except PersynError as error:
            for line in str(error).splitlines():
                yield Finding("keys", "fail", line, None, type(error)(line))


def asked_sections(config: RunConfig, stages: Sequence[str]) -> list[tuple[str, object]]:
    """Returns the sections whose servers these stages use, each with its path."""
    trains = config.router.pretrained is None
    sections: list[tuple[str, object]] = []
    if trains or "generate" in stages:
        sections.append(("teachers", config.teachers))
    if scores(config, stages):
        sections += [("student", config.student), ("quality", config.quality)]
    return sections


def require_run_packages(config: RunConfig, stages: Sequence[str]) -> None:
    """Raises an error if packages for any stage are missing, as in a light installation.

    Args:
        config (`RunConfig`): Configuration of the run.
        stages (`Sequence[str]`): Names of the stages to run, in order.

    Raises:
        MissingPackageError: If packages are missing. The error lists all of them with the pip command.
    """
    local = [teacher.name for teacher in config.teachers if teacher.backend == "local"]
    if local:
        require(f"ask the teacher {local[0]} in this process", "torch", "transformers")
    if stages[-1] == "probe":
        return
    needed = ["torch", "transformers"]
    if config.router.pretrained is None and "router" in stages:
        needed += ["accelerate", "safetensors", "scipy"]
    if "publish" in stages:
        needed.append("matplotlib")
    require("run the stages after `probe` (`until: probe` runs without)", *needed)


def _models(config: RunConfig, stages: Sequence[str]) -> Iterator[Finding]:
    wanted = [
        (f"teacher {teacher.name}", teacher.model, teacher.revision, f"teachers[{place}].model")
        for place, teacher in enumerate(config.teachers)
        if teacher.backend == "local"
    ]
    scoring = scores(config, stages)
    if config.student is not None and scoring:
        wanted.append(("student", config.student.model, config.student.revision, "student.model"))
    for key, part in quality_parts(config.quality) if config.quality is not None and scoring else ():
        if part.reward_model is not None:
            wanted.append(("reward model", part.reward_model, part.revision, f"{key}.reward_model"))
    router = config.router.pretrained or config.router.backbone
    if router is not None and "router" in stages:
        kind = "backbone" if config.router.pretrained is None else "pretrained"
        wanted.append(("router", router, config.router.revision, f"router.{kind}"))
    for topic, model, revision, key in wanted:
        yield _model(topic, model, revision, topic != "router", key)


def _model(topic: str, model: str, revision: str | None, chats: bool, key: str | None = None) -> Finding:
    missing = absent("torch", "transformers")
    if missing:
        message = f"{model}: needs {' and '.join(missing)}: {pip_command(*missing)}"
        return Finding(topic, "fail", message, key, MissingPackageError(missing, missing, f"load the {topic}"))
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import identity, load_config, load_tokenizer

    try:
        files = ModelFiles(model, identity(model, revision))
        loaded = load_config(files)
        tokenizer = load_tokenizer(files)
    except PersynError as error:
        return Finding(topic, "fail", str(error), key, error)
    if topic == "reward model" and loaded.num_labels != 1:
        return Finding(topic, "fail", f"A reward model must have one label; `{model}` has {loaded.num_labels}.", key)
    if chats and not tokenizer.chat_template:
        return Finding(
            topic, "note", f"{model} ({loaded.model_type}) has no chat template, so it is used as a base model", key
        )
    return Finding(topic, "ok", f"{model} ({loaded.model_type})", key)
