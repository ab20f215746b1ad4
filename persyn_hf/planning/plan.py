"""The plan of a run: generations, tokens, money and time for every stage and teacher, and for the other policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf.config import RunConfig, Teacher
from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.errors import ConfigError
from persyn_hf.packages import absent, pip_command
from persyn_hf.planning.costs import PolicyCost, answer_price, compare_policies
from persyn_hf.planning.lengths import Lengths, measure_lengths
from persyn_hf.planning.models import Scorer, describe_scorer
from persyn_hf.prompts.reading import load_prompts

if TYPE_CHECKING:
    from datasets import Dataset

#: Tokens per second of one request, where nothing better is known.
TOKENS_PER_SECOND = 50.0

#: Requests in flight to an endpoint whose limit is not configured.
UNKNOWN_CONCURRENCY = 32


@dataclass(frozen=True)
class Line:
    """What one stage asks of one teacher.

    Args:
        stage (`str`): `probe` or `generate`.
        teacher (`str`): The teacher.
        generations (`float`): Answers. Routed ones are a mean over the shares, so not whole.
        prompt_tokens, completion_tokens (`float`): In all.
        cost (`float`): USD.
        seconds (`float`): At the configured concurrency.
    """

    stage: str
    teacher: str
    generations: float
    prompt_tokens: float
    completion_tokens: float
    cost: float
    seconds: float


@dataclass(frozen=True)
class RunPlan:
    """A run before it begins.

    Args:
        prompts (`int`), probe (`int`): `N` and `S`; the probe is 0 with a finished router.
        lines (`Sequence[Line]`): By stage and teacher.
        seconds (`Mapping[str, float]`): By stage: endpoints answer side by side, local teachers one after the other.
        scorers (`Sequence[Scorer]`): Student and reward model.
        policies (`Sequence[PolicyCost]`): PerSyn and the others, for the same prompts.
        notes (`Sequence[str]`): What was assumed.
    """

    prompts: int
    probe: int
    lines: Sequence[Line]
    seconds: Mapping[str, float]
    scorers: Sequence[Scorer]
    policies: Sequence[PolicyCost]
    notes: Sequence[str]

    @property
    def generations(self) -> float:
        """`S·M + (N − S)` answers in all."""
        return sum(line.generations for line in self.lines)

    @property
    def cost(self) -> float:
        """USD for the teachers in all."""
        return sum(line.cost for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"generations": self.generations, "cost": self.cost}


def plan(
    config: RunConfig,
    completion_tokens: float | Mapping[str, float] | None = None,
    sample: Dataset | None = None,
    shares: Mapping[str, float] | None = None,
    tokens_per_second: float = TOKENS_PER_SECOND,
) -> RunPlan:
    """Predicts a run before a single request is sent.

    Args:
        config (`RunConfig`): The run.
        completion_tokens (`float` or mapping by teacher, *optional*): Mean tokens of an answer. With neither this nor
            a sample, `max_tokens` is taken: an upper bound.
        sample (`Dataset`, *optional*): Some answers of every teacher (`teacher`, `completion_tokens`, and `quality`
            where it is known), such as the probe of an earlier run.
        shares (mapping by teacher, *optional*): Share of the prompts that each teacher will be routed, summing to 1.
            Equal shares without it: no router is trained yet.
        tokens_per_second (`float`, defaults to 50): Of one request.

    Returns:
        `RunPlan`: Print it with `print_plan`.

    Raises:
        ConfigError: If prompts or models cannot be read, or a number is out of range.

    Example:
        >>> plan(RunConfig.from_yaml("run.yaml"), completion_tokens=400).cost  # doctest: +SKIP
        12.4
    """
    if not tokens_per_second > 0:
        raise ConfigError(f"`tokens_per_second` must be above 0, got {tokens_per_second}.")
    prompts = load_prompts(config.prompts)
    probe = 0 if config.router.pretrained is not None else config.probe.size
    if probe > len(prompts):
        raise ConfigError(f"`probe.size` must be at most the number of prompts, {len(prompts)}, got {probe}.")
    lengths = measure_lengths(config, prompts, completion_tokens, sample)
    routed = _shares(config.teachers, shares)
    counts = [("probe", teacher, float(probe)) for teacher in config.teachers] if probe else []
    counts += [("generate", teacher, routed[teacher.name] * (len(prompts) - probe)) for teacher in config.teachers]
    lines = [_line(stage, teacher, count, lengths, tokens_per_second) for stage, teacher, count in counts]
    notes = list(lengths.notes)
    if shares is None:
        notes.append("No router is trained yet: every teacher is taken to get the same share of the prompts.")
    notes.append(f"A request writes {tokens_per_second:g} tokens per second.")
    missing = absent("torch", "transformers")
    if missing and probe:
        notes.append(f"What scoring takes is left out: it needs {' and '.join(missing)} ({pip_command(*missing)}).")
    policies, said = compare_policies(config.teachers, lengths, routed, len(prompts), probe)
    return RunPlan(
        prompts=len(prompts),
        probe=probe,
        lines=tuple(lines),
        seconds=_stage_seconds(lines, config.teachers),
        scorers=() if missing else tuple(_scorers(config, lengths, probe)),
        policies=policies,
        notes=(*notes, *said),
    )


def _shares(teachers: Sequence[Teacher], shares: Mapping[str, float] | None) -> dict[str, float]:
    if shares is None:
        return {teacher.name: 1 / len(teachers) for teacher in teachers}
    names = {teacher.name for teacher in teachers}
    if set(shares) != names or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"`shares` must give {', '.join(sorted(names))} shares that sum to 1, got {dict(shares)}.")
    return dict(shares)


def _line(stage: str, teacher: Teacher, count: float, lengths: Lengths, tokens_per_second: float) -> Line:
    at_once = teacher.batch_size if teacher.backend == "local" else (teacher.max_concurrency or UNKNOWN_CONCURRENCY)
    completion = lengths.completion[teacher.name]
    return Line(
        stage=stage,
        teacher=teacher.name,
        generations=count,
        prompt_tokens=count * lengths.prompt[teacher.name],
        completion_tokens=count * completion,
        cost=count * answer_price(teacher, lengths),
        seconds=count * completion / (tokens_per_second * min(at_once, max(count, 1))),
    )


def _stage_seconds(lines: Sequence[Line], teachers: Sequence[Teacher]) -> dict[str, float]:
    local = {teacher.name for teacher in teachers if teacher.backend == "local"}
    found = {}
    for stage in dict.fromkeys(line.stage for line in lines):
        own = [line for line in lines if line.stage == stage]
        served = [line.seconds for line in own if line.teacher not in local]
        here = sum(line.seconds for line in own if line.teacher in local)
        found[stage] = max([*served, here])
    return found


def _scorers(config: RunConfig, lengths: Lengths, probe: int) -> list[Scorer]:
    if probe == 0:
        return []
    answers = sum(lengths.completion.values())
    scorers = []
    student = config.student
    if student is not None:
        tokens = probe * (lengths.student_prompt + answers)  # the answers of a prompt share it
        scorers.append(
            describe_scorer("student", student.model, student.revision, student.dtype, tokens, student.token_budget)
        )
    quality = config.quality
    if quality is not None and quality.reward_model is not None:
        tokens = probe * (lengths.student_prompt * len(config.teachers) + answers)
        budget = (config.student or ScorerOptions()).token_budget  # `score` gives it the student's
        scorers.append(describe_scorer("reward model", quality.reward_model, quality.revision, "auto", tokens, budget))
    return scorers
