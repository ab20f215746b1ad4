"""`allocate`: assigns a teacher to every prompt within share, budget and time limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.config import Teacher, default_of, merged
from persyn_hf.config.allocation import Allocation, AllocationOptions
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.routing.allocation.limits import make_limits
from persyn_hf.routing.allocation.result import AllocationResult, win_rates
from persyn_hf.routing.allocation.solver import solve
from persyn_hf.routing.policies import Basis, policy_scores, prompt_rewards, require_policy
from persyn_hf.routing.rewards import RewardTable, read_rewards
from persyn_hf.tables import require_table


def allocate(
    routed: Any,
    teachers: Sequence[str] | Sequence[Teacher],
    *,
    settings: AllocationOptions | Mapping[str, Any] | None = None,
    cost: Mapping[str, float] | None = None,
    throughput: Mapping[str, float] | None = None,
    probe: Any = None,
    families: Mapping[str, str | None] | None = None,
    seed: int = 0,
    **options: Any,
) -> AllocationResult:
    """Assigns a teacher to every prompt, maximising the total score within share, budget and time limits.

    A router's scores are Bradley–Terry scores: the difference of two is the log-odds that one answer beats the other.
    Their sum weights a unit of log-odds equally on every prompt. `scale="win-rate"` first converts them to the share
    of the other teachers that a teacher is expected to beat, 0 to 1, which saturates on clear prompts.

    Args:
        routed (`Dataset` or `ndarray` of shape `(prompts, teachers)`): Table with `route_scores`, or the scores. For
            policies other than `persyn`, any table of the prompts.
        teachers (`Sequence[str]` or `Sequence[Teacher]`): Teachers in the order of the scores: `router.teachers`.
        settings (`AllocationOptions` or `Mapping`, *optional*): The section `allocation` of a configuration, or its
            keys. Its expected tokens are used by [`answer_costs`] and [`answer_rates`] only.
        cost (mapping, *optional*): USD per answer of each teacher, required by `budget`; [`answer_costs`] computes it.
        throughput (mapping, *optional*): Answers per second of each teacher, required by `makespan`;
            [`answer_rates`] computes it.
        probe (`Dataset`, *optional*): Scored answers, for policies other than `persyn` and `random`.
        families (mapping, *optional*): Family of each teacher; default: the `family` of the `Teacher`s.
        seed (`int`, defaults to 0): Random seed.
        options: Single keys of [`AllocationOptions`] (`policy`, `max_share`, `budget`, `top_k` …), which replace
            those of `settings`. With `top_k` above 1, score all answers, then use [`keep_best`].

    Returns:
        `AllocationResult`: Routes, shares, cost, time, expected reward and the maximum distance from the optimum.

    Raises:
        AllocationError: If the limits contradict each other; it names them and the amount.
        ConfigError: If a setting is out of range.
        DataError: If scores are missing, not finite, or have another number of teachers.
        RouterMismatchError: If the table's routes do not match `teachers` in this order.

    Example:
        >>> scores = np.array([[2.0, 0.0], [1.0, 0.5], [0.3, 0.0]])
        >>> allocate(scores, ["large", "small"], max_share={"large": 0.4}).routes
        ['large', 'small', 'small']
    """
    if not isinstance(routed, np.ndarray):
        require_table(routed, "allocate", "routed")
    names, known_families = _names(teachers)
    asked = merged(AllocationOptions, settings, options, "allocate")
    policy = asked.policy
    if policy == "persyn":
        scores = _scores(routed, names)
        if asked.scale == "win-rate":
            scores = win_rates(scores)
    else:
        asked = asked.model_copy(update={"scale": "reward"})
        require_policy(policy)
        table = None if policy == "random" else _read_probe(policy, probe, names)
        basis = Basis(
            names,
            table,
            families or known_families,
            asked.student_family,
            rewards=_own_rewards(routed, table) if table is not None and policy == "oracle" else None,
            strong_share=asked.strong_share,
            beta=asked.beta,
        )
        scores = policy_scores(policy, basis, len(routed), seed)
    if not len(scores):
        raise DataError("Expected prompts to allocate, got an empty table.")
    limits = make_limits(names, len(scores), asked.top_k, cost=cost, throughput=throughput, settings=asked)
    solution = solve(_diversified(scores, asked.temperature, seed), limits, seed)
    return AllocationResult.of(solution, scores, names, asked, seed=seed, cost=cost, throughput=throughput)


def _read_probe(policy: str, probe: Any, names: Sequence[str]) -> RewardTable:
    """Reads the scored answers that a policy needs, with the teachers in the order of the scores."""
    if probe is None:
        raise ConfigError(f"The policy {policy!r} needs scored answers; pass them as `probe`.")
    table = read_rewards(probe, f"the policy {policy!r}")
    absent = [name for name in names if name not in table.teachers]
    if absent:
        raise DataError(f"The policy {policy!r} needs scored answers of {', '.join(absent)}; `probe` has none.")
    return table.reordered(names)


def _own_rewards(routed: Any, table: RewardTable) -> NDArray[np.float64]:
    if columns.PROMPT_ID not in getattr(routed, "column_names", ()):
        raise ConfigError("The policy 'oracle' needs the column `prompt_id`, to find the prompts' rewards in `probe`.")
    ids, known = routed[columns.PROMPT_ID][:], set(table.ids)
    absent = [identity for identity in ids if identity not in known]
    if absent:
        raise DataError(
            f"The policy 'oracle' needs rewards of every prompt; `probe` has none of {len(absent)}, first {absent[0]}."
        )
    return prompt_rewards(table, ids)


def answer_costs(
    teachers: Sequence[Teacher],
    completion_tokens: float | Mapping[str, float] | None = None,
    prompt_tokens: float | Mapping[str, float] = 0.0,
    cached_tokens: Mapping[str, float] | None = None,
    reasoning_tokens: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Computes USD per answer of each teacher from its prices and expected tokens.

    Args:
        teachers (`Sequence[Teacher]`): Teachers with their prices.
        completion_tokens (`float` or mapping by teacher, *optional*): Mean tokens of an answer; default: the maximum,
            `sampling.max_tokens`.
        prompt_tokens (`float` or mapping by teacher, defaults to 0): Mean tokens of a prompt.
        cached_tokens, reasoning_tokens (mapping by teacher, *optional*): Tokens of a prompt from a cache, and
            those of an answer that go into reasoning, which may have prices of their own. A teacher that is not named
            has none.

    Raises:
        ConfigError: If a mapping lacks a teacher.
    """
    prompt, completion = _tokens(teachers, prompt_tokens), _completion_tokens(teachers, completion_tokens)
    cached, reasoning = cached_tokens or {}, reasoning_tokens or {}
    return {
        teacher.name: teacher.price(
            prompt[teacher.name],
            completion[teacher.name],
            min(cached.get(teacher.name, 0.0), prompt[teacher.name]),
            min(reasoning.get(teacher.name, 0.0), completion[teacher.name]),
        )
        for teacher in teachers
    }


def answer_rates(
    teachers: Sequence[Teacher],
    completion_tokens: float | Mapping[str, float] | None = None,
    tokens_per_second: float | Mapping[str, float] = default_of(Allocation, "tokens_per_second"),
    concurrency: float = 32,
) -> dict[str, float]:
    """Computes answers per second of each teacher: its requests in flight, each at `tokens_per_second`.

    Args:
        teachers (`Sequence[Teacher]`): Teachers; `max_concurrency` applies to each of a teacher's endpoints.
        completion_tokens (`float` or mapping by teacher, *optional*): As for [`answer_costs`].
        tokens_per_second (`float` or mapping by teacher, defaults to 50): Speed of one request, in tokens per second.
        concurrency (`float`, defaults to 32): Requests in flight of teachers without `max_concurrency`.
    """
    completion, speed = _completion_tokens(teachers, completion_tokens), _tokens(teachers, tokens_per_second)
    return {
        teacher.name: (teacher.max_concurrency or concurrency)
        * max(1, len(teacher.endpoints))
        * speed[teacher.name]
        / completion[teacher.name]
        for teacher in teachers
    }


def _completion_tokens(teachers: Sequence[Teacher], given: float | Mapping[str, float] | None) -> Mapping[str, float]:
    return _tokens(teachers, {t.name: t.sampling.max_tokens for t in teachers} if given is None else given)


def _tokens(teachers: Sequence[Teacher], given: float | Mapping[str, float]) -> Mapping[str, float]:
    if not isinstance(given, Mapping):
        return {teacher.name: float(given) for teacher in teachers}
    absent = [teacher.name for teacher in teachers if teacher.name not in given]
    if absent:
        raise ConfigError(f"Expected tokens of every teacher, got none for {', '.join(absent)}.")
    return given


def _names(teachers: Sequence[Any]) -> tuple[list[str], dict[str, str | None]]:
    names = [teacher if isinstance(teacher, str) else teacher.name for teacher in teachers]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated or not names:
        raise ConfigError(f"`teachers` must be unique names, at least one; got {names}.")
    return names, {t.name: t.family for t in teachers if isinstance(t, Teacher)}


def _scores(routed: Any, names: Sequence[str]) -> NDArray[np.floating]:
    scores = routed if isinstance(routed, np.ndarray) else _read(routed)
    if scores.ndim != 2 or scores.shape[1] != len(names):
        raise DataError(
            f"Expected scores of shape (prompts, {len(names)}), for {', '.join(names)}; got {scores.shape}."
        )
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores).all(axis=1))[0])
        raise DataError(f"Scores must be finite numbers, got {scores[row].tolist()} in row {row}.")
    if not isinstance(routed, np.ndarray) and columns.ROUTE in routed.column_names:
        _same_teachers(routed, scores, names)
    return scores if np.issubdtype(scores.dtype, np.floating) else scores.astype(np.float64)


def _read(routed: Any) -> NDArray[np.floating]:
    columns.require_columns(routed.column_names, [columns.ROUTE_SCORES], "allocate")
    column = routed.select_columns([columns.ROUTE_SCORES]).with_format("arrow")[:].column(0).combine_chunks()
    lengths = column.value_lengths()
    if column.null_count or len(set(lengths.unique().to_pylist())) > 1:
        raise DataError("`route_scores` must have one length in every row, got rows without any or of other lengths.")
    width = lengths[0].as_py() if len(column) else 0
    flat: NDArray[np.floating] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), width)


def _same_teachers(routed: Any, scores: NDArray[np.floating], names: Sequence[str]) -> None:
    """Checks the order of the names: a router's routes are its best teachers, which they are not in another order."""
    count = min(len(scores), 1000)
    routes = routed.select(range(count))[columns.ROUTE][:]
    strangers = sorted(set(routes) - set(names))
    if strangers:
        raise RouterMismatchError(f"`route` names {', '.join(strangers)}; `teachers` are {', '.join(names)}.")
    best = scores[:count].max(axis=1)
    right = np.array([scores[row, names.index(route)] >= best[row] for row, route in enumerate(routes)])
    # Exempt are a router that fell back (one teacher, regardless of scores) and a table that was already allocated.
    if len(set(routes)) > 1 and right.mean() < 0.5 and columns.ROUTES not in routed.column_names:
        raise RouterMismatchError(
            f"`teachers` must be in the order of the scores, `router.teachers`: only {int(right.sum())} of {count} "
            "routes have the best score. Drop the column `route` if the routes were changed."
        )


def _diversified(scores: NDArray[np.floating], temperature: float, seed: int) -> NDArray[np.floating]:
    if temperature == 0:
        return scores
    noise = np.random.default_rng([seed, 1]).standard_exponential(scores.shape, dtype=np.float32)
    np.log(np.maximum(noise, np.finfo(np.float32).tiny), out=noise)  # minus a standard Gumbel variable
    noise *= -temperature
    diversified: NDArray[np.floating] = scores + noise
    return diversified
