"""Checks of `accept` and `hygiene`: the scale of the quality, the teachers' sampling, and the number of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from persyn_hf.config import COMPARED, STAGES, Hygiene, Quality, RunConfig
from persyn_hf.config.scoring import Normalization
from persyn_hf.doctor.findings import Finding, Findings
from persyn_hf.errors import PersynError
from persyn_hf.packages import require


def check_acceptance(config: RunConfig, stages: Sequence[str] = STAGES) -> Findings:
    """Holds what answers must be against what grades them, and retries against what they can change.

    Args:
        config (`RunConfig`): The run.
        stages (`Sequence[str]`): The stages that are to run.
    """
    found = Findings()
    if "generate" in stages:
        found += _graded(config)
        found += _retries(config)
        found += _limits(config)
    return found


def check_target(config: RunConfig, prompts: int, source: str) -> Iterator[Finding]:
    """A prompt has one accepted answer at most.

    Args:
        config (`RunConfig`): The run.
        prompts (`int`): Number of prompts.
        source (`str`): Names the configuration in errors.
    """
    wanted = config.accept.target_rows if config.accept is not None else None
    if wanted is not None and wanted > prompts:
        yield _failure(
            "accept.target_rows",
            f"{source}: accept.target_rows: must be at most the number of prompts, {prompts}, since each has one "
            f"accepted answer; got {wanted}.",
        )


def check_cleaning(config: RunConfig) -> Findings:
    """Looks for what `hygiene` needs to clean the prompts: packages, a student that counts, the section `compare`."""
    hygiene, found = config.hygiene, Findings()
    if hygiene.dedup == "near":
        package = "datasketch" if hygiene.dedup_model is None else "semhash"
        with found.failing("packages", "hygiene.dedup"):
            require("find near-duplicates", package)
    if COMPARED in hygiene.decontaminate:
        if config.compare is None:
            found.append(_failure("hygiene.decontaminate", f"`hygiene.decontaminate: [{COMPARED}]` needs `compare`."))
        elif config.compare.lm_eval is not None:
            with found.failing("packages", "hygiene.decontaminate"):
                require("read the questions of benchmarks", "lm-eval")
    if (hygiene.min_tokens or hygiene.max_tokens) and config.student is None:
        found.append(
            _failure(
                "hygiene.min_tokens" if hygiene.min_tokens else "hygiene.max_tokens",
                "`hygiene.min_tokens` and `hygiene.max_tokens` count the student's tokens; give `student`.",
            )
        )
    return found


def possible_cleaning(config: RunConfig, failures: Sequence[Finding]) -> RunConfig:
    """The run without what `hygiene` cannot do, so that its prompts can be looked at all the same."""
    if not failures:
        return config
    exact = "exact" if config.hygiene.dedup is not None else None
    return config.model_copy(update={"hygiene": Hygiene(dedup=exact)})


def _failure(key: str, message: str) -> Finding:
    return Finding("settings", "fail", message, key)


def _graded(config: RunConfig) -> Iterator[Finding]:
    """A smallest quality needs something that grades, on a scale that has such a number."""
    key = "hygiene.min_quality"
    wanted = {key: config.hygiene.min_quality}
    if config.accept is not None:
        wanted["accept.min_quality"] = config.accept.min_quality
    quality = config.quality
    if wanted[key] is not None:
        if quality is None:
            yield _failure(key, f"`{key}` needs `quality`, which says how good an answer is.")
        elif config.accept is None and config.student is None:
            yield _failure(
                key, f"`{key}` scores the routed answers as the probe's are, which needs `student`; give it."
            )
        elif quality.normalize in get_args(Normalization):
            yield _failure(key, f"`quality.normalize: {quality.normalize}` leaves no scale for `{key}`.")
            wanted[key] = None
    scale = _scale(quality) if quality is not None else None
    for name, value in wanted.items():
        if scale is not None and value is not None and not scale[0] <= value <= scale[1]:
            outcome = "no answer passes" if value > scale[1] else "every answer passes"
            assert quality is not None
            yield _failure(
                name,
                f"`{name}` is {value:g}, but {quality.label} gives {scale[0]:g} to {scale[1]:g}, so {outcome}; set it "
                "within that range.",
            )


def _scale(quality: Quality) -> tuple[float, float] | None:
    """The least and the greatest quality of an answer, where they are known."""
    from persyn_hf.scoring.mixing import read_sources

    try:
        sources = read_sources(quality)
    except PersynError:  # told by its own check
        return None
    if sources.normalize == "range" and sources.several:
        return (0.0, 1.0)
    ranges = {part.range for part in sources.parts}
    return ranges.pop() if sources.normalize is None and len(ranges) == 1 else None


def _retries(config: RunConfig) -> Iterator[Finding]:
    """A retry must be able to bring another answer."""
    accept = config.accept
    if accept is None or accept.attempts == 1:
        return
    fixed = [teacher.name for teacher in config.teachers if teacher.sampling.is_fixed]
    names = ", ".join(fixed)
    why = "`sampling.temperature` 0 or one `sampling.seed` for all requests"
    if accept.retry == "same" and len(fixed) == len(config.teachers):
        yield _failure(
            "accept.retry",
            f"`accept.retry: same` asks the same teacher again, but {names} would give the same answer again ({why}). "
            "Set `retry: next`, or a temperature above 0 with `seed: per-row`.",
        )
    elif accept.retry == "same" and fixed:
        yield Finding(
            "settings",
            "note",
            f"`accept.retry: same` asks {names} once only: it would give the same answer again ({why})",
            "accept.retry",
        )
    elif len(fixed) == len(config.teachers) < accept.attempts:
        yield Finding(
            "settings",
            "note",
            f"`accept.attempts` is {accept.attempts}, but a prompt has at most {len(fixed)} different answers, one of "
            f"each teacher ({why})",
            "accept.attempts",
        )


def _limits(config: RunConfig) -> Iterator[Finding]:
    """Retries go beyond what the routes were allotted."""
    allocation, accept = config.allocation, config.accept
    if accept is None or accept.attempts == 1:
        return
    limits = [name for name in ("max_share", "budget", "makespan") if getattr(allocation, name) is not None]
    if limits:
        told = " and ".join(f"`allocation.{name}`" for name in limits)
        yield Finding(
            "settings",
            "note",
            f"{told}: of the routes, which are the first attempts; retries come on top (`max_cost` bounds all, and a "
            "teacher whose `max_share` is 0 is asked by none)",
            f"allocation.{limits[0]}",
        )
