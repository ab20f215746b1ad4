"""Predicted costs of the policies for the same prompts, and the break-even size of the probe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from persyn_hf.config import MIX_STRONG_SHARE, RunConfig, Service, Teacher
from persyn_hf.planning.lengths import Lengths


@dataclass(frozen=True)
class PolicyCost:
    """Predicted cost of one policy for all prompts.

    Args:
        name (`str`): `persyn`, `generate-then-select`, `strong`, `mix` or `car`.
        generations (`float`): Total number of answers.
        tokens (`float`): Total completion tokens.
        cost (`float`): Total cost of the teachers, in USD.
        scored (`float`): Number of answers to score.
        break_even (`float`, *optional*): Largest probe, in prompts from 0 to `N`, at which PerSyn costs at most as
            much as this policy; `None` for PerSyn itself and for policies that pay for the same probe.
    """

    name: str
    generations: float
    tokens: float
    cost: float
    scored: float
    break_even: float | None = None


#: Tokens of a judge's template without the prompt and the answer.
_JUDGE_TEMPLATE = 120.0
#: Upper estimate of the tokens in a judge's reply.
_JUDGE_REPLY = 64.0


@dataclass(frozen=True)
class JudgeCost:
    """Requests and cost of a judge, or of a student behind a server with a price.

    Args:
        role (`str`): `judge` or `student`.
        model (`str`): Name of the model.
        answers (`float`): Number of answers to score.
        prompt_tokens, completion_tokens (`float`): Total tokens.
        cost (`float`): Total cost, in USD; 0 without a price.
        seconds (`float`): Time at its `max_concurrency`, in seconds.
    """

    role: str
    model: str
    answers: float
    prompt_tokens: float
    completion_tokens: float
    cost: float
    seconds: float


def judge_costs(
    config: RunConfig,
    lengths: Lengths,
    probe: int,
    tokens_per_second: float,
    routed: Mapping[str, float] | None = None,
) -> list[JudgeCost]:
    """Predicts the cost of the servers that score. Each scores every teacher's answer to every probe prompt.

    They score routed answers too where `allocation.top_k` is above 1, where `hygiene.min_quality` asks how good each
    is, and with `accept`, which asks a judge but no student.

    Args:
        config (`RunConfig`): Configuration of the run.
        lengths (`Lengths`): Tokens per prompt and answer.
        probe (`int`): Prompts of the probe.
        tokens_per_second (`float`): Speed of one request.
        routed (`Mapping[str, float]`, *optional*): Routed answers that are scored, by teacher.
    """
    own = probe * len(config.teachers)
    read = probe * sum(lengths.completion.values()) + own * lengths.student_prompt
    more = sum((routed or {}).values())
    read_more = sum(
        count * (lengths.completion[name] + lengths.student_prompt) for name, count in (routed or {}).items()
    )

    def cost(role: str, model: str, server: Service, answers: float, asked: float, written: float) -> JudgeCost:
        at_once = tokens_per_second * max(1.0, min(float(server.max_concurrency), answers))
        return JudgeCost(role, model, answers, asked, written, server.price(asked, written), written / at_once)

    costs, answers = [], own + more
    for judge in (part.judge for part in (config.quality.parts if config.quality else ()) if part.judge is not None):
        asked = read + read_more + answers * _JUDGE_TEMPLATE
        written = answers * min(float(judge.max_tokens), _JUDGE_REPLY)
        costs.append(cost("judge", judge.model, judge, answers, asked, written))
    student = config.student
    if student is not None and student.endpoint is not None and student.endpoint.has_price:
        if config.accept is not None and config.allocation.top_k == 1:
            more, read_more = 0.0, 0.0
        costs.append(cost("student", student.model, student.endpoint, own + more, read + read_more, own + more))
    return [one for one in costs if one.answers]


def answer_price(teacher: Teacher, lengths: Lengths) -> float:
    """USD for one answer of a teacher."""
    name = teacher.name
    cached, reasoning = lengths.cached.get(name, 0.0), lengths.reasoning.get(name, 0.0)
    return teacher.price(lengths.prompt[name], lengths.completion[name], cached, reasoning)


def compare_policies(
    teachers: Sequence[Teacher], lengths: Lengths, shares: Mapping[str, float], prompts: int, probe: int
) -> tuple[tuple[PolicyCost, ...], list[str]]:
    """Compares PerSyn with generate-then-select, Strong, Mix and CAR for the same `N` prompts.

    Let `c_i` be the price of an answer of teacher `i` (one generation without prices) and `p_i` its share. PerSyn
    costs `S Σ c_i + (N − S) Σ p_i c_i`, which equals another policy's cost `C` at the break-even probe
    `S* = (C − N Σ p_i c_i) / (Σ c_i − Σ p_i c_i)`.

    Args:
        teachers (`Sequence[Teacher]`): All teachers.
        lengths (`Lengths`): Tokens per prompt and answer. Its qualities, if known, determine the strongest teacher.
        shares (`Mapping[str, float]`): Shares by teacher, which sum to 1.
        prompts (`int`), probe (`int`): Number of prompts `N` and of probe prompts `S`.

    Returns:
        `tuple[tuple[PolicyCost, ...], list[str]]`: Policies, and assumptions.
    """
    count = len(teachers)
    mean = {teacher.name: 1 / count for teacher in teachers}
    if set(lengths.quality) >= {teacher.name for teacher in teachers}:
        strongest = max(teachers, key=lambda teacher: lengths.quality[teacher.name]).name
        note = f"Strong is {strongest}, the teacher with the best mean quality in the sample."
    else:
        strongest = max(teachers, key=lambda teacher: answer_price(teacher, lengths)).name
        note = f"Strong is assumed to be {strongest}, the most expensive teacher; pass `--sample` to determine it."
    strong = {name: float(name == strongest) for name in mean}
    weak = {name: (name != strongest) / max(count - 1, 1) for name in mean}
    mix = {name: MIX_STRONG_SHARE * strong[name] + (1 - MIX_STRONG_SHARE) * weak[name] for name in mean}
    rest = prompts - probe
    weights = {
        "persyn": {name: probe + rest * shares[name] for name in mean},
        "generate-then-select": dict.fromkeys(mean, float(prompts)),
        "strong": {name: prompts * strong[name] for name in mean},
        "mix": {name: prompts * mix[name] for name in mean},
        "car": {name: probe + rest * mean[name] for name in mean},
    }
    scored = {"persyn": probe * count, "generate-then-select": prompts * count, "car": probe * count}
    priced = any(answer_price(teacher, lengths) for teacher in teachers)
    unit = {teacher.name: answer_price(teacher, lengths) if priced else 1.0 for teacher in teachers}
    policies = [
        PolicyCost(
            name=name,
            generations=sum(own.values()),
            tokens=sum(own[teacher] * lengths.completion[teacher] for teacher in own),
            cost=sum(own[teacher.name] * answer_price(teacher, lengths) for teacher in teachers),
            scored=float(scored.get(name, 0)),
            break_even=None if name in ("persyn", "car") else _break_even(own, unit, shares, prompts),
        )
        for name, own in weights.items()
    ]
    what = "cost" if priced else "generations, since no teacher has a price"
    notes = [
        note,
        "CAR's single teacher is not known yet, so its numbers are the mean over all teachers.",
        f"Break-even probes compare {what}.",
    ]
    return tuple(policies), notes


def _break_even(
    other: Mapping[str, float], unit: Mapping[str, float], shares: Mapping[str, float], prompts: int
) -> float:
    whole = sum(unit.values())
    routed = sum(shares[name] * unit[name] for name in unit)
    cost = sum(other[name] * unit[name] for name in unit)
    if whole <= routed:
        return float(prompts if cost >= prompts * routed else 0)
    return min(max((cost - prompts * routed) / (whole - routed), 0.0), float(prompts))
