"""What an endpoint says of itself: the model that it serves (`/v1/models`, `/info`) and how much it takes."""

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
from persyn_hf.endpoints.wire import Wire, exchange
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, TeacherError, UnavailableError
from persyn_hf.generation.usage import count

_log = logging.getLogger(__name__)
_TIMEOUT = 10.0
_FIRST_DELAY, _LAST_DELAY = 0.1, 2.0
_COMMIT_LENGTH = 40
#: Names under which servers tell the context, which holds the prompt and the answer: vLLM, OpenRouter, Groq, Mistral.
_TOTAL = ("max_model_len", "context_length", "context_window", "max_context_length")
#: Stands for what is no JSON: a page for browsers.
_PAGE = object()


@dataclass(frozen=True)
class EndpointLimits:
    """How much one endpoint takes; `None` where it does not say.

    Args:
        max_input_tokens, max_total_tokens (`int`, *optional*): Of the prompt, and of the prompt with its answer.
        max_concurrency (`int`, *optional*): Requests at once, above which it refuses.
        max_stop (`int`, *optional*): Stop strings.
        served_model (`str`, *optional*): What the endpoint calls the model, where that is not what is configured:
            requests must name it so.
        no_whole_top_p (`bool`): Whether it refuses a `top_p` of 1, as Text Generation Inference does.
    """

    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_concurrency: int | None = None
    max_stop: int | None = None
    served_model: str | None = None
    no_whole_top_p: bool = field(default=False, compare=False)


async def describe(teacher: Teacher, address: str, patience: float) -> EndpointLimits:
    """Asks an endpoint what it serves.

    Args:
        teacher (`Teacher`): What it should serve.
        address (`str`): Where.
        patience (`float`): Seconds to wait while it does not answer.

    Raises:
        ConfigError: If it serves another model, or is not of the configured `api`.
        TeacherDownError: If it refuses the key, redirects, or wants payment.
        UnavailableError: If it still does not answer.
    """
    endpoint = Endpoint.of(teacher, address)
    wire = _open(teacher, endpoint)
    async with aclosing(wire):
        if teacher.api == "chat":
            return await _of_chat(wire, endpoint, patience)
        info = await _until_answered(wire, endpoint, "/info", patience)
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise ConfigError(f"{address} has no `/info` with a `model_id`: it is no TGI; set `api: chat`.")
        _require_model(endpoint, teacher, info)
        return _limits(info)


async def describe_judge(judge: Judge, patience: float) -> EndpointLimits:
    """Asks a judge's server what it serves.

    Args:
        judge (`Judge`): What it should serve, and where.
        patience (`float`): Seconds to wait while it does not answer.

    Raises:
        ConfigError, TeacherDownError, UnavailableError: As for [`describe`].
    """
    endpoint = Endpoint.of(judge, model=judge.model)
    wire = _open(judge, endpoint)
    async with aclosing(wire):
        return await _of_chat(wire, endpoint, patience)


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
            f"{endpoint.url('/v1/models')} is a web page, so no model server is asked there; check "
            f"`{endpoint.setting}`."
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


async def _get(wire: Wire, endpoint: Endpoint, path: str) -> Any:
    try:
        reply = await exchange(wire, endpoint, "GET", endpoint.url(path), within=_TIMEOUT)
    except TeacherError as error:
        of_the_key = isinstance(error, TeacherDownError) and error.status == 400
        if error.status is not None and error.status >= 400 and error.status not in OF_THE_SERVER and not of_the_key:
            # No such page; `transformers serve` has one that fails with 500 without a network.
            return _PAGE if error.is_page else None
        raise
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        return _PAGE


def _from_models(endpoint: Endpoint, listed: Any) -> EndpointLimits:
    # A list, or a single model as TGI's published schema has it.
    data = listed.get("data", [listed] if "id" in listed else None) if isinstance(listed, dict) else listed
    model = endpoint.model or ""
    found = [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []
    # Some servers call the id `name`; an entry without either says nothing.
    named_so = [entry if isinstance(entry.get("id"), str) else {**entry, "id": entry.get("name")} for entry in found]
    entries = [entry for entry in named_so if isinstance(entry["id"], str)]
    if not entries:
        _log.info(
            "%s lists no models; it is taken to serve `%s`, which the first answer shows (%s was asked)",
            endpoint.address,
            model,
            endpoint.url("/v1/models"),
        )
        return EndpointLimits()
    for same in (str.__eq__, _same):  # one that is named exactly so goes before one that differs in case
        for entry in entries:
            named = _called(model, entry, same)
            if named is not None:
                served = named if named != model else None
                return replace(_lengths(entry, entries), served_model=served)
    if any(_matches(model, entry.get("id")) for entry in entries):  # a gateway's wildcard: `openai/*`
        return EndpointLimits()
    listed_ids = ", ".join(f"`{endpoint.clean(str(entry.get('id')))}`" for entry in entries[:5])
    more = f" and {len(entries) - 5} more" if len(entries) > 5 else ""
    raise ConfigError(f"{endpoint.address} serves {listed_ids}{more}, but `model` is `{model}`.")


def _lengths(entry: dict[str, Any], entries: list[dict[str, Any]]) -> EndpointLimits:
    """How long prompts and answers may be: an entry's own word, or that of the model that a LoRA stands on."""
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
    """Tells whether a listed name with `*` stands for a model."""
    if not isinstance(listed, str) or "*" not in listed:
        return False
    return re.fullmatch(".*".join(map(re.escape, listed.split("*"))), model) is not None


def _called(model: str, entry: dict[str, Any], same: Callable[[str, str], bool]) -> str | None:
    """The name by which requests must call a listed model; `None` where it is another one.

    An alias is as good as the id; `root` (of vLLM) is what the id stands for, and no name. A `:provider` behind the
    name stays where the entry is a router's that knows it.
    """
    name = entry.get("id")
    aliases = entry.get("aliases")
    for other in [name, *(aliases if isinstance(aliases, list) else [])]:
        if isinstance(other, str) and same(model, other):
            return model if _is_of_a_provider(model, entry) else other
    root = entry.get("root")
    return name if isinstance(name, str) and isinstance(root, str) and same(model, root) else None


def _is_of_a_provider(model: str, entry: dict[str, Any]) -> bool:
    providers, chosen = entry.get("providers"), model.partition(":")[2]
    names = [one.get("provider") for one in providers if isinstance(one, dict)] if isinstance(providers, list) else []
    return bool(names) and chosen in (*names, "fastest", "cheapest", "preferred")


def _same(model: str, served: str) -> bool:
    wanted = {model.rstrip("/").casefold(), model.partition(":")[0].casefold()}
    return served.rstrip("/").casefold() in wanted


async def _from_info_if_any(wire: Wire, endpoint: Endpoint) -> EndpointLimits:
    """TGI tells its limits there, whatever protocol it is asked by; other servers have no such page."""
    try:
        info = await _get(wire, endpoint, "/info")
    except (RetryableError, RowError, TeacherDownError):
        return EndpointLimits()
    return _limits(info) if isinstance(info, dict) and isinstance(info.get("model_id"), str) else EndpointLimits()


def _require_model(endpoint: Endpoint, teacher: Teacher, info: dict[str, Any]) -> None:
    served, sha = info["model_id"], info.get("model_sha")
    if not _same(teacher.model, served):
        raise ConfigError(f"{endpoint.address} serves `{endpoint.clean(served)}`, but `model` is `{endpoint.model}`.")
    named = teacher.revision
    if named and len(named) == _COMMIT_LENGTH and isinstance(sha, str) and sha != named:
        raise ConfigError(
            f"{endpoint.address} serves revision {endpoint.clean(sha)} of `{endpoint.model}`, `revision` is {named}."
        )


def _limits(info: dict[str, Any]) -> EndpointLimits:
    return EndpointLimits(
        # `max_input_length` before TGI 2.
        max_input_tokens=count(info.get("max_input_tokens", info.get("max_input_length"))),
        max_total_tokens=count(info.get("max_total_tokens")),
        max_concurrency=count(info.get("max_concurrent_requests")) or None,
        max_stop=count(info.get("max_stop_sequences")),
        no_whole_top_p=True,
    )
