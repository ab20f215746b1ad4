"""Checks before any cost: every endpoint answers and serves the model, and the prompts fit its context."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from persyn_hf.columns import Message
from persyn_hf.config import Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import (
    ConfigError,
    PromptTooLongError,
    RowError,
    TeacherDownError,
    TeacherError,
    UnavailableError,
)
from persyn_hf.generation.describe import EndpointLimits, describe
from persyn_hf.generation.tokens import TeacherTokenizer, count_tokens, render
from persyn_hf.messages import token_bound

#: Seconds for which a passed check of an endpoint is reused: `persyn_generate` may be called once per row.
_FRESH = 300.0
#: Maximum number of prompts that an error names.
_NAMED = 10
_passed: dict[tuple[Endpoint, str, str | None], tuple[float, EndpointLimits]] = {}

#: What is sent for one prompt: its messages, the teacher's system prompt included, and its own keys (`tools` …).
Sent = tuple[Sequence[Message], Mapping[str, Any]]
#: Gives what is sent for every prompt of a teacher.
Prompts = Callable[[], Iterable[Sent]]


@dataclass(frozen=True)
class Survey:
    """Limits and problems of the teachers' endpoints.

    Args:
        limits (`Mapping[tuple[str, str], EndpointLimits]`): Limits by teacher and address, for those that answered.
        problems (`Mapping[str, Sequence[str]]`): Problems by teacher; teachers without problems are omitted.
    """

    limits: Mapping[tuple[str, str], EndpointLimits]
    problems: Mapping[str, Sequence[str]]

    def of(self, teacher: Teacher) -> list[EndpointLimits]:
        """Returns the limits of one teacher's endpoints."""
        return [limits for (name, _), limits in self.limits.items() if name == teacher.name]


async def survey_endpoints(teachers: Sequence[Teacher], patience: float = 10.0) -> Survey:
    """Queries every endpoint of every teacher, in parallel, for its model and limits.

    An endpoint that does not answer within `patience` is a problem only if `on_teacher_down` is `error` and no other
    endpoint of the teacher answers. A server that lists no models is assumed to serve the configured one.

    Args:
        teachers (`Sequence[Teacher]`): Teachers; those with `backend: local` or `preflight: false` are skipped.
        patience (`float`, defaults to 10): Seconds to wait for an endpoint that does not answer.
    """
    checked = [teacher for teacher in teachers if teacher.backend == "endpoint" and teacher.preflight]
    results = await asyncio.gather(*[_check(teacher, patience) for teacher in checked])
    return Survey(
        {(one.teacher.name, address): limits for one in results for address, limits in one.limits.items()},
        {one.teacher.name: one.problems for one in results if one.problems},
    )


async def preflight(
    asked: Sequence[tuple[Teacher, Prompts]], patience: float = 10.0, problems: Sequence[str] = ()
) -> dict[tuple[str, str], EndpointLimits]:
    """Checks the endpoints, and then the prompts against their limits.

    Args:
        asked (`Sequence[tuple[Teacher, Prompts]]`): Teachers that will receive requests, with their prompts.
        patience (`float`, defaults to 10): Seconds to wait for an endpoint that does not answer.
        problems (`Sequence[str]`): Problems found before, reported with the others.

    Returns:
        `dict[tuple[str, str], EndpointLimits]`: Limits by teacher and address, for those that answered.

    Raises:
        ConfigError: If an endpoint serves another model, refuses the key or does not answer; all problems are listed.
        PromptTooLongError: If the only problem is prompts that do not fit; the message says how many and which.
    """
    survey = await survey_endpoints([teacher for teacher, _ in asked], patience)
    unfit: list[ConfigError | PromptTooLongError] = []
    for teacher, prompts in asked:
        if limits := survey.of(teacher):
            try:
                await asyncio.to_thread(require_fit, teacher, _least(limits), prompts())
            except (ConfigError, PromptTooLongError) as error:
                unfit.append(error)
    told = [*problems, *(f"teacher `{name}`: {one}" for name, several in survey.problems.items() for one in several)]
    if not told and len(unfit) == 1:
        raise unfit[0]
    if not told and unfit and all(isinstance(error, PromptTooLongError) for error in unfit):
        raise PromptTooLongError("\n".join(map(str, unfit)))
    told += map(str, unfit)
    if told:
        raise ConfigError(
            "No requests were sent:\n  "
            + "\n  ".join(told)
            + "\nFix the configuration, or set `preflight: false` to skip these checks."
        )
    return dict(survey.limits)


@dataclass(frozen=True)
class _Checked:
    teacher: Teacher
    limits: Mapping[str, EndpointLimits]
    problems: Sequence[str]


async def _check(teacher: Teacher, patience: float) -> _Checked:
    limits: dict[str, EndpointLimits] = {}
    wrong: list[str] = []
    silent: list[str] = []

    async def one(address: str) -> None:
        try:
            limits[address] = await _described(teacher, address, patience)
        except UnavailableError as error:
            silent.append(str(error))
        except (ConfigError, TeacherError) as error:
            wrong.append(str(error))

    try:
        if teacher.api == "tgi" or teacher.tokenizer is not None:
            await TeacherTokenizer(teacher, download=True).load()
    except TeacherDownError as error:
        wrong.append(str(error))
    await asyncio.gather(*[one(address) for address in teacher.endpoints])
    tolerated = teacher.on_teacher_down != "error" or limits
    return _Checked(teacher, limits, sorted(wrong) + ([] if tolerated else sorted(silent)))


async def _described(teacher: Teacher, address: str, patience: float) -> EndpointLimits:
    key = (Endpoint.of(teacher, address), teacher.api, teacher.revision)
    when, limits = _passed.get(key, (-_FRESH, None))
    if limits is None or time.monotonic() - when > _FRESH:
        limits = await describe(teacher, address, patience)
        _passed[key] = (time.monotonic(), limits)
    return limits


def _least(limits: Iterable[EndpointLimits]) -> EndpointLimits:
    """Returns the smallest limits of several endpoints."""
    known = list(limits)
    smallest: dict[str, Any] = {
        field.name: min((value for each in known if (value := getattr(each, field.name)) is not None), default=None)
        for field in fields(EndpointLimits)
        if field.name not in ("served_model", "no_whole_top_p")  # not limits, and specific to each endpoint
    }
    return EndpointLimits(**smallest)


def require_fit(teacher: Teacher, limits: EndpointLimits, prompts: Iterable[Sent]) -> None:
    """Checks that a teacher's settings and prompts fit what its server takes.

    A text has no more tokens than bytes, so only long prompts are tokenized, and the tokenizer is loaded for the first
    of them. If it is not available, the server checks them.

    Args:
        teacher (`Teacher`): With its sampling.
        limits (`EndpointLimits`): The server's.
        prompts (`Iterable[Sent]`): Content of the requests.

    Raises:
        ConfigError: If `max_tokens` or the number of `stop` strings alone exceeds a limit.
        PromptTooLongError: If prompts do not fit; the message says how many.
    """
    room = _room(teacher, limits)
    if room is None:
        return
    tokenizer = TeacherTokenizer(teacher, download=teacher.api == "tgi")
    count, longest = 0, 0
    long: list[int] = []
    for messages, own in prompts:
        tokens = _tokens_over(tokenizer, messages, {**own, **teacher.sampling.extra_body}, room)
        if tokens:
            long.append(count)
        count += 1
        longest = max(longest, tokens)
    if long:
        named = ", ".join(map(str, long[:_NAMED])) + (", …" if len(long) > _NAMED else "")
        raise PromptTooLongError(
            f"teacher `{teacher.name}`: {len(long)} of {count} prompts do not fit. The server accepts {room} tokens "
            f"in addition to `max_tokens` {teacher.sampling.max_tokens}, the longest prompt has {longest}. They are "
            f"number {named} of its prompts, counted from 0. Shorten or drop them, lower `max_tokens`, or set "
            "`preflight: false`, so that each row gets its own error."
        )


def prompt_room(teacher: Teacher, limits: Sequence[EndpointLimits]) -> int | None:
    """Returns the maximum number of prompt tokens for all of a teacher's endpoints; `None` if it is not known.

    Raises:
        ConfigError: If `max_tokens` or the number of `stop` strings alone exceeds a limit.
    """
    return _room(teacher, _least(limits)) if limits else None


def _room(teacher: Teacher, limits: EndpointLimits) -> int | None:
    sampling = teacher.sampling
    if limits.max_stop is not None and len(sampling.stop) > limits.max_stop:
        raise ConfigError(
            f"teacher `{teacher.name}`: the server accepts at most {limits.max_stop} `stop` strings, got "
            f"{len(sampling.stop)}."
        )
    total = limits.max_total_tokens
    if total is not None and sampling.max_tokens >= total:
        raise ConfigError(
            f"teacher `{teacher.name}`: `max_tokens` must be under {total}, the server's limit for prompt and answer "
            f"together, got {sampling.max_tokens}."
        )
    rooms = [] if limits.max_input_tokens is None else [limits.max_input_tokens]
    rooms += [] if total is None else [total - sampling.max_tokens]
    return min(rooms, default=None)


def _tokens_over(tokenizer: TeacherTokenizer, messages: Sequence[Message], more: Mapping[str, Any], room: int) -> int:
    """Returns the number of tokens of a prompt that does not fit; 0 for one that does."""
    if token_bound(messages, more.get("tools")) <= room:
        return 0
    loaded = tokenizer.load_here()
    if loaded is None:
        return 0
    try:
        tokens = count_tokens(loaded, render(loaded, messages, more))
    except RowError:  # the row gets this error when it is sent
        return 0
    return tokens if tokens > room else 0
