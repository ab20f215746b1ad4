"""The plan of a run: generations, tokens, cost and time for every stage, teacher and policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import RunConfig, Teacher
from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.doctor.cleaning import load_clean_prompts
from persyn_hf.errors import ConfigError
from persyn_hf.packages import absent, pip_command
from persyn_hf.planning.costs import JudgeCost, PolicyCost, answer_price, compare_policies, judge_costs
from persyn_hf.planning.lengths import Lengths, measure_lengths
from persyn_hf.planning.models import Scorer, describe_scorer
from persyn_hf.planning.retries import Retries, expect_retries, find_scored_probe, retry_notes
from persyn_hf.planning.speed import local_seconds, timed_scorer
from persyn_hf.run.stages import scores_answers

if TYPE_CHECKING:
    from datasets import Dataset

#: Default speed of one request, in tokens per second.
TOKENS_PER_SECOND = 50.0

#: Requests in flight to an endpoint whose limit is not configured.
UNKNOWN_CONCURRENCY = 32


@dataclass(frozen=True)
class Line:
    """Requests of one stage to one teacher.

    Args:
        stage (`str`): `probe`, `generate`, or `score` for a judge.
        teacher (`str`): Name of the teacher or the judge.
        generations (`float`): Number of answers; fractional for routed answers, which are expected values.
        prompt_tokens, completion_tokens (`float`): Total tokens.
        cost (`float`): Total cost, in USD.
        seconds (`float`): Time at the configured concurrency, in seconds.
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
    """Prediction of a run.

    Args:
        prompts (`int`), probe (`int`): Number of prompts `N` and of probe prompts `S`, which is 0 with a pretrained
            router.
        lines (`Sequence[Line]`): Requests by stage and teacher.
        seconds (`Mapping[str, float]`): Time by stage, in seconds: endpoints run in parallel, local teachers in turn.
        scorers (`Sequence[Scorer]`): Student and reward model.
        policies (`Sequence[PolicyCost]`): PerSyn and the others, for the same prompts.
        notes (`Sequence[str]`): Assumptions.
        retries (`Retries`, *optional*): Expected attempts of `accept`.
    """

    prompts: int
    probe: int
    lines: Sequence[Line]
    seconds: Mapping[str, float]
    scorers: Sequence[Scorer]
    policies: Sequence[PolicyCost]
    notes: Sequence[str]
    retries: Retries | None = None

    @property
    def generations(self) -> float:
        """`S·M + (N − S)` answers in all, and those that `accept` asks for beside them."""
        return sum(line.generations for line in self.lines if line.stage != "score")

    @property
    def cost(self) -> float:
        """Total cost of teachers and judges, in USD."""
        return sum(line.cost for line in self.lines)

    def to_dict(self) -> dict[str, object]:
        """Returns the plan as plain values."""
        return asdict(self) | {"generations": self.generations, "cost": self.cost}


def plan(
    config: RunConfig,
    completion_tokens: float | Mapping[str, float] | None = None,
    sample: Dataset | None = None,
    shares: Mapping[str, float] | None = None,
    tokens_per_second: float | None = None,
) -> RunPlan:
    """Predicts generations, tokens, cost and time of a run without sending a request.

    Args:
        config (`RunConfig`): Configuration of the run.
        completion_tokens (`float` or mapping by teacher, *optional*): Mean tokens of an answer. Default: the sample's,
            or `max_tokens`, an upper bound.
        sample (`Dataset`, *optional*): Some answers of every teacher (`teacher`, `completion_tokens` and, optionally,
            `quality`), such as the probe of an earlier run.
        shares (mapping by teacher, *optional*): Shares of the prompts that are routed to the teachers, which sum to 1.
            Default: equal shares.
        tokens_per_second (`float`, *optional*): Speed of one request. Default: 50 for an endpoint; for a teacher in
            this process, an estimate from its size and this machine's measured speed.

    Returns:
        `RunPlan`: Prediction, for `print_plan`.

    Raises:
        ConfigError: If prompts or models cannot be read, or a number is out of range.

    Example:
        >>> plan(RunConfig.from_yaml("run.yaml"), completion_tokens=400).cost  # doctest: +SKIP
        12.4
    """
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise ConfigError(f"`tokens_per_second` must be above 0, got {tokens_per_second}.")
    prompts = load_clean_prompts(config).prompts
    probe = 0 if config.router.pretrained is not None else config.probe.size
    if probe > len(prompts):
        raise ConfigError(f"`probe.size` must be at most the number of prompts, {len(prompts)}, got {probe}.")
    lengths = measure_lengths(config, prompts, completion_tokens, sample)
    routed = _shares(config.teachers, shares)
    answers = {name: share * (len(prompts) - probe) for name, share in routed.items()}
    notes, retries = list(lengths.notes), None
    if config.accept is not None:
        scored = sample if sample is not None and columns.QUALITY in sample.column_names else None
        known = scored if scored is not None else find_scored_probe(config)
        retries = expect_retries(config, config.accept, routed, len(prompts), probe, known)
        answers = dict(retries.answers)
        notes += retry_notes(retries, config.accept, scored is not None)
        notes.append("The other ways to answer the prompts are counted with one answer to a prompt, without `accept`.")
    counts = [("probe", teacher, float(probe)) for teacher in config.teachers] if probe else []
    counts += [("generate", teacher, answers[teacher.name]) for teacher in config.teachers]
    lines = [_line(stage, teacher, count, lengths, tokens_per_second) for stage, teacher, count in counts]
    judged_answers = _scored_answers(config, answers, len(prompts))
    scorers = _scorers(config, lengths, probe, judged_answers)
    judged = judge_costs(config, lengths, probe, tokens_per_second or TOKENS_PER_SECOND, judged_answers)
    if shares is None:
        notes.append("No router is trained yet, so all teachers are assumed to get the same share of the prompts.")
    notes += _speed_notes(config.teachers, tokens_per_second)
    notes += [f"The judge {one.model} has no price, so its cost is not included." for one in judged if not one.cost]
    missing = absent("torch", "transformers")
    if missing and (probe or judged_answers):
        notes.append(f"Scoring is not included: this needs {' and '.join(missing)} ({pip_command(*missing)}).")
    policies, said = compare_policies(config.teachers, lengths, routed, len(prompts), probe)
    return RunPlan(
        prompts=len(prompts),
        probe=probe,
        lines=tuple(lines + [_judge_line(one) for one in judged]),
        seconds=_stage_seconds(lines, config.teachers, _scoring_seconds(scorers, judged)),
        scorers=tuple(scorers),
        policies=policies,
        notes=(*notes, *said),
        retries=retries,
    )


def _scored_answers(config: RunConfig, answers: Mapping[str, float], prompts: int) -> dict[str, float]:
    """Routed answers that are scored beside the probe, by teacher; the scores of the probe are known."""
    if config.allocation.top_k > 1:
        return {name: prompts * config.allocation.top_k / len(answers) for name in answers}
    if config.accept is not None or scores_answers(config):
        return dict(answers)
    return {}


def _shares(teachers: Sequence[Teacher], shares: Mapping[str, float] | None) -> dict[str, float]:
    if shares is None:
        return {teacher.name: 1 / len(teachers) for teacher in teachers}
    names = {teacher.name for teacher in teachers}
    if set(shares) != names or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(
            f"`shares` must give shares to {', '.join(sorted(names))} that sum to 1, got {dict(shares)}."
        )
    return dict(shares)


def _line(stage: str, teacher: Teacher, count: float, lengths: Lengths, tokens_per_second: float | None) -> Line:
    at_once = teacher.batch_size if teacher.backend == "local" else (teacher.max_concurrency or UNKNOWN_CONCURRENCY)
    completion = lengths.completion[teacher.name]
    return Line(
        stage=stage,
        teacher=teacher.name,
        generations=count,
        prompt_tokens=count * lengths.prompt[teacher.name],
        completion_tokens=count * completion,
        cost=count * answer_price(teacher, lengths),
        seconds=_seconds(teacher, count, lengths, tokens_per_second, at_once),
    )


def _seconds(teacher: Teacher, count: float, lengths: Lengths, tokens_per_second: float | None, at_once: int) -> float:
    """Predicts the time of answers, at the given speed or, for a teacher in this process, the measured speed."""
    if tokens_per_second is None and teacher.backend == "local":
        seconds = local_seconds(teacher, count, lengths)
        if seconds is not None:
            return seconds
    speed = (tokens_per_second or TOKENS_PER_SECOND) * min(at_once, max(count, 1))
    return count * lengths.completion[teacher.name] / speed


def _speed_notes(teachers: Sequence[Teacher], tokens_per_second: float | None) -> list[str]:
    if tokens_per_second is not None:
        return [f"A request is assumed to generate {tokens_per_second:g} tokens per second."]
    notes = []
    if any(teacher.backend == "endpoint" for teacher in teachers):
        notes.append(f"A request to an endpoint is assumed to generate {TOKENS_PER_SECOND:g} tokens per second.")
    if any(teacher.backend == "local" for teacher in teachers):
        notes.append(
            "Times of models in this process follow from their size and this machine's speed just now; other work "
            "on it makes them longer."
        )
    return notes


def _judge_line(judged: JudgeCost) -> Line:
    return Line(
        stage="score",
        teacher=f"{judged.role} {judged.model}",
        generations=judged.answers,
        prompt_tokens=judged.prompt_tokens,
        completion_tokens=judged.completion_tokens,
        cost=judged.cost,
        seconds=judged.seconds,
    )


def _scoring_seconds(scorers: Sequence[Scorer], judged: Sequence[JudgeCost]) -> float | None:
    """Returns the time of the stage `score`, in seconds; `None` if it is unknown."""
    known = [one.seconds for one in scorers if one.seconds is not None] + [one.seconds for one in judged]
    return sum(known) if known else None


def _stage_seconds(lines: Sequence[Line], teachers: Sequence[Teacher], scoring: float | None) -> dict[str, float]:
    local = {teacher.name for teacher in teachers if teacher.backend == "local"}
    found = {}
    for stage in dict.fromkeys(line.stage for line in lines):
        own = [line for line in lines if line.stage == stage]
        served = [line.seconds for line in own if line.teacher not in local]
        here = sum(line.seconds for line in own if line.teacher in local)
        found[stage] = max([*served, here])
        if stage == "probe" and scoring is not None:
            found["score"] = scoring
    return found if scoring is None else found | {"score": scoring}


def _budget(options: ScorerOptions) -> int:
    return options.token_budget or options.cpu_tokens


def _scorers(config: RunConfig, lengths: Lengths, probe: int, routed: Mapping[str, float]) -> list[Scorer]:
    """Student and reward model, with the tokens that they read: the probe's, and those of routed answers."""
    if (probe == 0 and not routed) or absent("torch", "transformers"):
        return []
    answers = probe * sum(lengths.completion.values())
    more = sum(count * (lengths.completion[name] + lengths.student_prompt) for name, count in routed.items())
    scorers = []
    student = config.student
    if student is not None and (probe or scores_answers(config)):
        tokens = probe * lengths.student_prompt + answers  # the answers of a prompt share it
        tokens += more if scores_answers(config) else 0.0  # `accept` looks at the quality only
        made = describe_scorer("student", student.model, student.revision, student.dtype, tokens, _budget(student))
        scorers.append(made if student.endpoint is not None else timed_scorer(made, student.device))
    quality = config.quality
    if quality is not None and quality.reward_model is not None:
        tokens = probe * lengths.student_prompt * len(config.teachers) + answers + more
        budget = _budget(config.student or ScorerOptions())  # `score` gives it the student's
        made = describe_scorer("reward model", quality.reward_model, quality.revision, "auto", tokens, budget)
        scorers.append(timed_scorer(made, student.device if student is not None else None))
    return scorers
