"""What goes wrong at an endpoint, and what it means: for the row, for the number in flight, for the teacher.

| seen | error | again? |
|---|---|---|
| connection refused, 502, 503, 504 | `UnavailableError` | while the scheduler's patience lasts; opens the circuit |
| connection broken, 408, 409, 425, other 5xx | `RetryableError` | yes |
| 429 | `RetryableError(overloaded)` | yes, with fewer in flight; `Retry-After` is obeyed |
| 424, `incomplete_generation`, an empty completion | `RetryableError` | once |
| 400, 413, 422 and other 4xx | `RowError` | never |
| 401, 402, 403, 404, 405, 410, a redirect | `TeacherDownError` | never, by no row |
| an error event under 200 | as its `error_type` | |
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from huggingface_hub.errors import InferenceTimeoutError, OfflineModeIsEnabled

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.errors import RetryableError, RowError, TeacherDownError, TeacherError, UnavailableError

#: The status that stands for an `error_type` of an event under 200.
_STATUS_OF = {
    "overloaded": 429,
    "validation": 422,
    "template_error": 422,
    "missing_template_variable": 422,
    "tool_error": 422,
    "generation": 424,
    "incomplete_generation": 500,
    "healthcheck": 503,
}
#: A quota that waiting does not refill, as OpenAI names it under 429.
_SPENT = "insufficient_quota"


def transport_error(endpoint: Endpoint, error: Exception) -> TeacherError:
    """What is meant by a request that brought no whole response."""
    if isinstance(error, InferenceTimeoutError | httpx2.TimeoutException):
        return perhaps_charged(RetryableError(f"no answer from {endpoint.address} in time", attempts=3))
    if isinstance(error, OfflineModeIsEnabled):
        return TeacherDownError("HF_HUB_OFFLINE blocks every endpoint; unset it to ask teachers over HTTP")
    if isinstance(error, httpx2.ConnectError):
        words = endpoint.clean(str(error))
        if "CERTIFICATE_VERIFY_FAILED" in words:
            return TeacherDownError(f"{endpoint.address} has no certificate that can be trusted ({words})")
        return UnavailableError(f"cannot connect to {endpoint.address}: {words}")
    if isinstance(error, httpx2.TransportError):
        return perhaps_charged(RetryableError(f"the connection broke: {type(error).__name__}"))
    return perhaps_charged(RetryableError(f"the answer cannot be read: {type(error).__name__}", attempts=3))


def perhaps_charged(error: TeacherError) -> TeacherError:
    """Marks a failure of which the server may think that it was an answer."""
    error.maybe_charged = True
    return error


def status_error(endpoint: Endpoint, status: int, text: str, headers: Mapping[str, str]) -> TeacherError:
    """What is meant by a response whose status is not 200.

    Args:
        endpoint (`Endpoint`): Who sent it.
        status (`int`): Its status.
        text (`str`): Its body, or the beginning of it.
        headers (`Mapping[str, str]`): Its headers.
    """
    kind, words = _error_body(text)
    detail = endpoint.clean(words)
    said = f"HTTP {status}" + (f" ({endpoint.clean(kind)})" if kind else "") + (f": {detail}" if detail else "")
    if 300 <= status < 400:
        target = endpoint.clean(headers.get("location", "nowhere"))
        return TeacherDownError(
            f"{endpoint.address} redirects to {target}, and a key or a prompt is never sent on to another address; "
            "configure the final one as `endpoint`"
        )
    if status in (401, 403):
        named = f"check {endpoint.key_name}" if endpoint.key_name else "set `api_key_env`, the variable with its key"
        return TeacherDownError(f"{endpoint.address} refused the key (HTTP {status}): {named}")
    if status in (404, 405, 410):
        return TeacherDownError(f"{endpoint.address} does not serve `{endpoint.model}` there ({said})")
    if status == 402 or kind == _SPENT:
        return TeacherDownError(f"{endpoint.address} wants payment ({said})")
    return _by_status(status, kind, said, retry_after(headers))


def body_error(endpoint: Endpoint, text: str) -> TeacherError:
    """What is meant by 200 with a body that is no answer: an error in JSON or SSE, a page, half an answer."""
    lines = text.splitlines() if "data:" in text[:4096] else [text]
    for line in lines:
        kind, words = _error_body(line.removeprefix("data:").strip())
        if line.lstrip()[:1] in ("{", "d") and (kind or words):
            said = f"error event in a stream ({endpoint.clean(kind)}): {endpoint.clean(words)}"
            return _by_status(_STATUS_OF.get(kind, 500), kind, said, None)
    return RetryableError("the answer is no completion (malformed or cut JSON, or another format)")


def _by_status(status: int, kind: str, said: str, wait: float | None) -> TeacherError:
    if status == 429:
        return RetryableError(said, retry_after=wait, overloaded=True)
    if status in (502, 503, 504):
        return UnavailableError(said, retry_after=wait, overloaded=True)
    if status == 424 or kind == "incomplete_generation":
        return RetryableError(said, retry_after=wait, attempts=2)
    if status >= 500 or status in (408, 409, 425):
        return RetryableError(said, retry_after=wait, attempts=4)
    return RowError(said)


def _error_body(text: str) -> tuple[str, str]:
    """The `error_type` and the words of an error, from TGI's form, OpenAI's form or FastAPI's."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return "", "" if text.lstrip()[:1] in ("<", "", "{", "[") else text
    if not isinstance(body, dict):
        return "", ""
    inner: Any = body.get("error", body.get("detail", body.get("message")))
    kind = body.get("error_type")
    if isinstance(inner, dict):
        kind = kind or inner.get("type")
        inner = inner.get("message")
    return (kind if isinstance(kind, str) else ""), (str(inner) if inner is not None else "")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header.

    Its date form is measured against the response's own `Date`, so that neither a wrong clock here nor one that is
    set meanwhile counts; without a `Date` it is left to the backoff.
    """
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_between(headers.get("date"), value)
    return seconds if 0 <= seconds < math.inf else None


def _seconds_between(start: str | None, end: str) -> float:
    try:
        return (parsedate_to_datetime(end) - parsedate_to_datetime(start or "")).total_seconds()
    except (ValueError, TypeError):
        return math.nan
