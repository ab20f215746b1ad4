"""Model and limits of an endpoint, as reported by `/v1/models` or `/info`."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from persyn_hf.config import Judge, Teacher
from persyn_hf.endpoints.aiohttp_wire import open_wire
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import OF_THE_SERVER
from persyn_hf.endpoints.wire import Wire, encoded, exchange
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, TeacherError, UnavailableError
from persyn_hf.generation.usage import count

_log = logging.getLogger(__name__)
_TIMEOUT = 10.0
_FIRST_DELAY, _LAST_DELAY = 0.1, 2.0
_COMMIT_LENGTH = 40
#: Names for the context length (prompt and answer together): vLLM, OpenRouter, Groq, Mistral.
_TOTAL = ("max_model_len", "context_length", "context_window", "max_context_length")
#: Marks a response that is not JSON, such as a web page.
_PAGE = object()


@dataclass(frozen=True)
class EndpointLimits:
    """Limits of one endpoint; `None` for limits that it does not report.

    Args:
        max_input_tokens, max_total_tokens (`int`, *optional*): Maximum tokens of the prompt, and of the prompt with
            its answer.
        max_concurrency (`int`, *optional*): Maximum requests in flight; the endpoint refuses more.
        max_stop (`int`, *optional*): Maximum number of stop strings.
        served_model (`str`, *optional*): Name of the model at the endpoint, for the requests, if it differs from the
            configured one.
        no_whole_top_p (`bool`): Whether the endpoint refuses a `top_p` of 1, as Text Generation Inference does.
    """

    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_concurrency: int | None = None
    max_stop: int | None = None
    served_model: str | None = None
    no_whole_top_p: bool = field(default=False, compare=False)


class UnlistedModelError(ConfigError):
    """An endpoint lists models, and the configured one is not among them."""


async def describe(teacher: Teacher, address: str, patience: float) -> EndpointLimits:
    """Queries an endpoint for its model and limits.

    Args:
        teacher (`Teacher`): Teacher that the endpoint should serve.
        address (`str`): Address of the endpoint.
        patience (`float`): Seconds to wait for an endpoint that does not answer.

    Raises:
        ConfigError: If the endpoint serves another model, or does not support the configured `api`.
        TeacherDownError: If the endpoint refuses the key, redirects, or requires payment.
        UnavailableError: If the endpoint does not answer in time.
    """
    endpoint = Endpoint.of(teacher, address)
    wire = _open(teacher, endpoint)
    async with aclosing(wire):
        if teacher.api == "chat":
            return await _of_chat(wire, endpoint, patience)
        info = await _until_answered(wire, endpoint, "/info", patience)
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise ConfigError(f"{address} has no `/info` with a `model_id`, so it is not TGI; set `api: chat`.")
        _require_model(endpoint, teacher, info)
        return _limits(info)


async def describe_judge(judge: Judge, patience: float) -> EndpointLimits:
    """Asks a judge's server what it serves, and for one reply if the judge is not among it.

    Args:
        judge (`Judge`): Judge that the server should serve.
        patience (`float`): Seconds to wait while it does not answer.

    Raises:
        ConfigError, TeacherDownError, UnavailableError: As for [`describe`].
    """
    endpoint = Endpoint.of(judge, model=judge.model)
    wire = _open(judge, endpoint)
    async with aclosing(wire):
        try:
            return await _of_chat(wire, endpoint, patience)
        except UnlistedModelError as unlisted:
            return await _of_one_reply(wire, endpoint, judge, unlisted)


async def _of_one_reply(wire: Wire, endpoint: Endpoint, judge: Judge, unlisted: UnlistedModelError) -> EndpointLimits:
    """Asks a judge for one reply: many gateways answer under names that they do not list."""
    messages = [{"role": "user", "content": "Reply with the number 7."}]
    body = encoded({"model": judge.model, "messages": messages, **judge.sampling_fields, "stream": False})
    try:
        await exchange(wire, endpoint, "POST", endpoint.url("/v1/chat/completions"), body)
    except TeacherError as error:
        raise ConfigError(f"{unlisted} Its answer to a request for that name: {error}") from error
    _log.info("%s does not list `%s`, but answers under that name", endpoint.address, judge.model)
    return EndpointLimits()


def _open(server: Teacher | Judge, endpoint: Endpoint) -> Wire:
    return open_wire(endpoint, min(server.timeout, _TIMEOUT), server.max_response_bytes)


async def _of_chat(wire: Wire, endpoint: Endpoint, patience: float) -> EndpointLimits:
    listed = await _until_answered(wire, endpoint, "/v1/models", patience)
    limits = _from_models(endpoint, listed)
    if limits.max_total_tokens is not None or limits.max_input_tokens is not None:
        return limits
    info = await _from_info_if_any(wire, endpoint)
    if listed is _PAGE and info == EndpointLimits():
        raise ConfigError(
            f"{endpoint.url('/v1/models')} is a web page, so it is not a model server; check `{endpoint.setting}`."
        )
    return replace(info, served_model=limits.served_model)


async def _until_answered(wire: Wire, endpoint: Endpoint, path: str, patience: float) -> Any:
    """The JSON at a path; `None` where there is none; waits while nobody answers."""
    end = time.monotonic() + patience
    delay = _FIRST_DELAY
    while True:
        try:
            return await _get(wire, endpoint, path)
        except RetryableError as error:
            if time.monotonic() + delay > end:
                raise UnavailableError(f"{endpoint.address} does not answer ({error})") from None
        await asyncio.sleep(delay)
        delay = min(_LAST_DELAY, 2 * delay)


async def _get(wire: Wire, endpoint: Endpoint, path: str) -> object:
    try:
        reply = await exchange(wire, endpoint, "GET", endpoint.url(path), within=_TIMEOUT)
    except TeacherError as error:
        of_the_key = isinstance(error, TeacherDownError) and error.status == 400
        if error.status is not None and error.status >= 400 and error.status not in OF_THE_SERVER and not of_the_key:
            # No such page; that of `transformers serve` fails with 500 without a network.
            return _PAGE if error.is_page else None
        raise
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        return _PAGE


def _from_models(endpoint: Endpoint, listed: object) -> EndpointLimits:
    # A list, or a single model as in TGI's published schema.
    data = listed.get("data", [listed] if "id" in listed else None) if isinstance(listed, dict) else listed
    model = endpoint.model or ""
    found = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    # Some servers call the id `name`; an entry without either says nothing.
    named_so = [entry if isinstance(entry.get("id"), str) else {**entry, "id": entry.get("name")} for entry in found]
    entries = [entry for entry in named_so if isinstance(entry["id"], str)]
    if not entries:
        _log.info(
            "%s lists no models; persyn_hf assumes that it serves `%s`, as the first answer will show (queried: %s)",
            endpoint.address,
            model,
            endpoint.url("/v1/models"),
        )
        return EndpointLimits()
    for same in (str.__eq__, _same):  # an exact name takes precedence over one that differs in case
        for entry in entries:
            named = _called(model, entry, same)
            if named is not None:
                served = named if named != model else None
                return replace(_lengths(entry, entries), served_model=served)
    if any(_matches(model, entry.get("id")) for entry in entries):  # a gateway's wildcard: `openai/*`
        return EndpointLimits()
    listed_ids = ", ".join(f"`{endpoint.clean(str(entry.get('id')))}`" for entry in entries[:5])
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    raise UnlistedModelError(f"{endpoint.address} serves {listed_ids}{more}, but `model` is `{model}`.")


def _lengths(entry: dict[str, object], entries: list[dict[str, object]]) -> EndpointLimits:
    """Reads the length limits of an entry, or of the base model of a LoRA."""
    total = next(filter(None, (count(entry.get(name)) for name in _TOTAL)), None)
    about = entry.get("model_info")
    told = {**about, **entry} if isinstance(about, dict) else entry
    most = count(told.get("max_input_tokens")) or None
    parent = entry.get("parent")
    if total is None and most is None and isinstance(parent, str) and parent != entry.get("id"):
        found = next((one for one in entries if one is not entry and parent in (one.get("id"), one.get("root"))), None)
        if found is not None:
            return _lengths(found, [one for one in entries if one is not entry])
    return EndpointLimits(max_input_tokens=most, max_total_tokens=total)


def _matches(model: str, listed: object) -> bool:
    """Returns whether a listed name with `*` matches a model."""
    if not isinstance(listed, str) or "*" not in listed:
        return False
    return re.fullmatch(".*".join(map(re.escape, listed.split("*"))), model) is not None


def _called(model: str, entry: dict[str, object], same: Callable[[str, str], bool]) -> str | None:
    """Returns the name that requests must use for a listed model; `None` if the entry is another model.

    An alias works like the id; vLLM's `root` is the model behind the id, and not a name. A suffix `:provider` is kept
    if the entry belongs to a router that lists this provider.
    """
    name = entry.get("id")
    aliases = entry.get("aliases")
    for other in [name, *(aliases if isinstance(aliases, list) else [])]:
        if isinstance(other, str) and same(model, other):
            return model if _is_of_a_provider(model, entry) else other
    root = entry.get("root")
    return name if isinstance(name, str) and isinstance(root, str) and same(model, root) else None


def _is_of_a_provider(model: str, entry: dict[str, object]) -> bool:
    providers, chosen = entry.get("providers"), model.partition(":")[2]
    names = [one.get("provider") for one in providers if isinstance(one, dict)] if isinstance(providers, list) else []
    return bool(names) and chosen in (*names, "fastest", "cheapest", "preferred")


def _same(model: str, served: str) -> bool:
    wanted = {model.rstrip("/").casefold(), model.partition(":")[0].casefold()}
    return served.rstrip("/").casefold() in wanted


async def _from_info_if_any(wire: Wire, endpoint: Endpoint) -> EndpointLimits:
    """Reads the limits from TGI's `/info`, which it serves next to any protocol; other servers have no such page."""
    try:
        info = await _get(wire, endpoint, "/info")
    except (RetryableError, RowError, TeacherDownError):
        return EndpointLimits()
    return _limits(info) if isinstance(info, dict) and isinstance(info.get("model_id"), str) else EndpointLimits()


def _require_model(endpoint: Endpoint, teacher: Teacher, info: dict[str, object]) -> None:
    served, sha = str(info["model_id"]), info.get("model_sha")
    if not _same(teacher.model, served):
        raise ConfigError(f"{endpoint.address} serves `{endpoint.clean(served)}`, but `model` is `{endpoint.model}`.")
    named = teacher.revision
    if named and len(named) == _COMMIT_LENGTH and isinstance(sha, str) and sha != named:
        raise ConfigError(
            f"{endpoint.address} serves revision {endpoint.clean(sha)} of `{endpoint.model}`, but `revision` is "
            f"{named}."
        )


def _limits(info: dict[str, object]) -> EndpointLimits:
    return EndpointLimits(
        # The name before TGI 2 was `max_input_length`.
        max_input_tokens=count(info.get("max_input_tokens", info.get("max_input_length"))),
        max_total_tokens=count(info.get("max_total_tokens")),
        max_concurrency=count(info.get("max_concurrent_requests")) or None,
        max_stop=count(info.get("max_stop_sequences")),
        no_whole_top_p=True,
    )
