"""What an endpoint says of itself: the model that it serves (`/v1/models`, `/info`) and how much it takes."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from persyn_hf.config import Teacher
from persyn_hf.endpoints.aiohttp_wire import open_wire
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import OF_THE_SERVER
from persyn_hf.endpoints.wire import Wire, exchange
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, TeacherError, UnavailableError
from persyn_hf.generation.answer import count

_log = logging.getLogger(__name__)
_TIMEOUT = 10.0
_FIRST_DELAY, _LAST_DELAY = 0.1, 2.0
_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class EndpointLimits:
    """How much one endpoint takes; `None` where it does not say.

    Args:
        max_input_tokens, max_total_tokens (`int`, *optional*): Of the prompt, and of the prompt with its answer.
        max_concurrency (`int`, *optional*): Requests at once, above which it refuses.
        max_stop (`int`, *optional*): Stop strings.
    """

    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_concurrency: int | None = None
    max_stop: int | None = None


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
    wire = open_wire(endpoint, min(teacher.timeout, _TIMEOUT), teacher.max_response_bytes)
    async with aclosing(wire):
        if teacher.api == "chat":
            listed = await _until_answered(wire, endpoint, "/v1/models", patience)
            limits = _from_models(endpoint, listed)
            return limits if limits.max_total_tokens is not None else await _from_info_if_any(wire, endpoint)
        info = await _until_answered(wire, endpoint, "/info", patience)
        if not isinstance(info, dict) or not isinstance(info.get("model_id"), str):
            raise ConfigError(f"{address} has no `/info` with a `model_id`: it is no TGI; set `api: chat`.")
        _require_model(endpoint, teacher, info)
        return _limits(info)


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
        if error.status is not None and error.status >= 400 and error.status not in OF_THE_SERVER:
            return None  # no such page; `transformers serve` has one that fails with 500 without a network
        raise
    try:
        return json.loads(reply.content)
    except (ValueError, RecursionError):
        return None


def _from_models(endpoint: Endpoint, listed: Any) -> EndpointLimits:
    # A list, or a single model as TGI's published schema has it.
    data = listed.get("data", [listed] if "id" in listed else None) if isinstance(listed, dict) else listed
    models = [model for model in data if isinstance(model, dict)] if isinstance(data, list) else []
    if not models:
        _log.info("%s lists no models; it is taken to serve `%s`", endpoint.address, endpoint.model)
        return EndpointLimits()
    for model in models:
        # vLLM: `root` is the model, `id` the name that it was given; routers: `model:provider`.
        aliases = model.get("aliases")
        names = [model.get("id"), model.get("root"), *(aliases if isinstance(aliases, list) else [])]
        if any(_same(endpoint.model or "", name) for name in names):
            return EndpointLimits(max_total_tokens=count(model.get("max_model_len")))
    served = ", ".join(f"`{endpoint.clean(str(model.get('id')))}`" for model in models[:5])
    more = f" and {len(models) - 5} more" if len(models) > 5 else ""
    raise ConfigError(f"{endpoint.address} serves {served}{more}, but `model` is `{endpoint.model}`.")


def _same(model: str, served: object) -> bool:
    if not isinstance(served, str):
        return False
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
    )
