"""Failures of an endpoint, mapped to errors that say what they mean for the row, the concurrency and the teacher.

The table applies to every server: teachers, judges, students and routers. The scheduler of teachers follows the last
column; for the other servers, `requests` retries transient failures up to a number of attempts.

| failure | error | retried? |
|---|---|---|
| connection refused, 502, 503, 504, 520 to 527, 530 | `UnavailableError` | while patience lasts; opens the circuit |
| a 500 whose message says that no server is running behind a gateway | `UnavailableError` | the same |
| connection broken, 408, 409, 425, other 5xx | `RetryableError` | yes |
| 429, 498, 529, `overloaded_error`, `capacity_exceeded` | `RetryableError(overloaded)` | yes, with fewer in flight |
| 424, `incomplete_generation`, an empty completion | `RetryableError` | once |
| 400, 413, 422 and other 4xx | `RowError` | never |
| 402, 501, a redirect, a compressed answer | `TeacherDownError` | never, for any row |
| 401, 403, 404, 405, 410 | `TeacherDownError(doubtful)` | other rows show whether the row or the key was refused |
| an error event under 200 | as its `error_type` | |
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import httpx2
from huggingface_hub.errors import OfflineModeIsEnabled

from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.refusals import advice, named_parameters
from persyn_hf.errors import RetryableError, RowError, TeacherDownError, TeacherError, UnavailableError

#: The HTTP status equivalent to the `error_type` of an error event under 200.
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
#: Refusals for load: Groq's 498, Anthropic's 529, and their names under other statuses.
_OVERLOADED = frozenset({429, 498, 529})
_OVERLOADED_TYPES = frozenset({"overloaded_error", "capacity_exceeded"})
#: No server is available at the moment; from 520 on, Cloudflare's statuses for that.
_UNAVAILABLE = frozenset({502, 503, 504, *range(520, 528), 530})
_PASSING = frozenset({408, 409, 425})
#: Statuses that are about the server and not about the requested page.
OF_THE_SERVER = frozenset({401, 402, 403, 408, 425}) | _OVERLOADED | _UNAVAILABLE
#: Refusals of a request, possibly because of one of its parameters.
_REFUSALS = frozenset({400, 422})
#: The address does not exist, or does not support the method.
_NOT_THERE = frozenset({404, 405, 410, 501})
#: Refusals of a key or a model that services also send for a single prompt: moderation, a firewall, a gateway error.
_DOUBTFUL = frozenset({401, 403, 404, 405, 410})
#: Error types of a refused key under another status; LiteLLM sends them under 400.
_WRONG_KEY = frozenset({"auth_error", "authentication_error", "invalid_api_key", "invalid_authentication"})
#: Messages of a gateway that answers 500 when no server is running behind it.
_UPSTREAM = re.compile(
    r"connection (error|refused)|cannot connect|connect call failed|service ?unavailable|upstream|no healthy",
    re.IGNORECASE,
)
#: Maximum number of problems of one request that an error lists.
_PROBLEMS = 4
#: OpenAI's error code under 429 for a quota that waiting does not refill.
_SPENT = "insufficient_quota"


def transport_error(endpoint: Endpoint, error: Exception) -> TeacherError:
    """Converts the exception of a request without a complete response into an error."""
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return perhaps_charged(RetryableError(f"no answer from {endpoint.address} in time", attempts=3))
    if isinstance(error, OfflineModeIsEnabled):
        return TeacherDownError(f"HF_HUB_OFFLINE blocks {endpoint.address}, a server of the Hub; unset it to connect")
    if isinstance(error, httpx2.InvalidURL):
        return TeacherDownError(f"{endpoint.address} is not a valid address; fix `{endpoint.setting}`")
    if isinstance(error, httpx2.ConnectError):
        words = endpoint.clean(str(error))
        if "CERTIFICATE_VERIFY_FAILED" in words:
            return TeacherDownError(f"the certificate of {endpoint.address} cannot be trusted ({words})")
        return UnavailableError(f"cannot connect to {endpoint.address}: {words}")
    if isinstance(error, httpx2.TransportError):
        return perhaps_charged(RetryableError(f"the connection broke: {type(error).__name__}"))
    return perhaps_charged(RetryableError(f"the answer cannot be read: {type(error).__name__}", attempts=3))


def perhaps_charged(error: TeacherError) -> TeacherError:
    """Marks a failure that the server may have charged for."""
    error.maybe_charged = True
    return error


def status_error(
    endpoint: Endpoint,
    status: int,
    text: str,
    headers: Mapping[str, str],
    url: str | None = None,
    sent: bytes | None = None,
) -> TeacherError:
    """Converts a response whose status is not 200 into an error.

    Args:
        endpoint (`Endpoint`): Endpoint that sent the response.
        status (`int`): HTTP status.
        text (`str`): Body, or the beginning of it.
        headers (`Mapping[str, str]`): Response headers.
        url (`str`, *optional*): Requested address, if it is not the configured one.
        sent (`bytes`, *optional*): Body of the request.
    """
    kind, words, named = _error_body(text)
    said = _said(endpoint, status, kind, words)
    if status in _REFUSALS and (line := advice(words, named, sent, endpoint.options)):
        said = f"{said}; {line}"
    error = _status_error(endpoint, status, kind, said, headers, url)
    error.doubtful = status in _DOUBTFUL
    error.status, error.is_page = status, text.lstrip("\ufeff \t\r\n")[:1] == "<"
    return error


def _said(endpoint: Endpoint, status: int, kind: str, words: str) -> str:
    detail = endpoint.clean(words)
    return f"HTTP {status}" + (f" ({endpoint.clean(kind)})" if kind else "") + (f": {detail}" if detail else "")


def _status_error(
    endpoint: Endpoint, status: int, kind: str, said: str, headers: Mapping[str, str], url: str | None
) -> TeacherError:
    if 300 <= status < 400:
        target = endpoint.clean(headers.get("location", "nowhere"))
        return TeacherDownError(
            f"{endpoint.address} redirects to {target}, and persyn_hf never sends a key or a prompt to another "
            f"address; configure the final one as `{endpoint.setting}`"
        )
    if status == 403:
        key = endpoint.key_name or "`api_key_env`, which is not set"
        return TeacherDownError(
            f"{endpoint.address} refused the request ({said}): moderation or a firewall rejected it, or the key may "
            f"not use the model (see {key})"
        )
    if status == 401 or (status in _REFUSALS and kind in _WRONG_KEY):
        mend = f"check {endpoint.key_name}" if endpoint.key_name else "name its variable (set `api_key_env`)"
        return TeacherDownError(f"{endpoint.address} refused the key ({said}): {mend}")
    if status in _NOT_THERE:
        what = "this" if endpoint.model is None else f"`{endpoint.model}`"
        return TeacherDownError(f"{url or endpoint.address} does not serve {what} there ({said})")
    if status == 402 or kind == _SPENT:
        return TeacherDownError(f"{endpoint.address} requires payment ({said})")
    return _by_status(status, kind, said, retry_after(headers))


def body_error(endpoint: Endpoint, text: str, wanted: str = "completion") -> TeacherError:
    """Converts a 200 whose body is not an answer into an error: an error in JSON or SSE, a page, half an answer.

    Args:
        endpoint (`Endpoint`): Endpoint that sent the response.
        text (`str`): Body of the response.
        wanted (`str`, defaults to `"completion"`): Expected kind of answer.
    """
    lines = text.splitlines() if "data:" in text[:4096] else [text]
    for line in lines:
        kind, words, _ = _error_body(line.removeprefix("data:").strip())
        if line.lstrip()[:1] in ("{", "d") and (kind or words):
            said = f"error event in a stream ({endpoint.clean(kind)}): {endpoint.clean(words)}"
            return _by_status(_STATUS_OF.get(kind, 500), kind, said, None)
    if text.lstrip("\ufeff \t\r\n")[:1] == "<":
        page = endpoint.clean(_title(text))
        return RetryableError(f"the answer is a web page{f' ({page!r})' if page else ''} and no {wanted}")
    return RetryableError(f"the answer is no {wanted} (malformed or cut JSON, or another format)")


def _by_status(status: int, kind: str, said: str, wait: float | None) -> TeacherError:
    if status in _OVERLOADED or kind in _OVERLOADED_TYPES:
        return RetryableError(said, retry_after=wait, overloaded=True)
    if status in _UNAVAILABLE or (status == 500 and _UPSTREAM.search(said)):
        return UnavailableError(said, retry_after=wait, overloaded=True)
    if status == 424 or kind == "incomplete_generation":
        return RetryableError(said, retry_after=wait, attempts=2)
    if status >= 500 or status in _PASSING:
        return RetryableError(said, retry_after=wait, attempts=4)
    return RowError(said)


def _error_body(text: str) -> tuple[str, str, list[str]]:
    """Parses the type, the message and the named parameters of an error, in the format of TGI, OpenAI (and Anthropic),
    FastAPI (and Mistral) or Gemini (a list of one)."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return "", _title(text) if text.lstrip("\ufeff \t\r\n")[:1] in ("<", "", "{", "[") else text, []
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, dict):
        return "", "", []
    inner: object = body.get("error", body.get("detail", body.get("message")))
    kinds = [body.get("error_type")]
    if isinstance(inner, dict):
        kinds += [inner.get("type"), inner.get("code")]
        inner = inner.get("message", inner.get("detail"))
    if isinstance(inner, list):
        inner = "; ".join(map(_located, inner[:_PROBLEMS]))
    named = [kind for kind in kinds if kind and isinstance(kind, str)]
    telling = (kind for kind in named if kind in _OVERLOADED_TYPES or kind == _SPENT or kind in _WRONG_KEY)
    words = str(inner) if inner is not None else ""
    return next(telling, named[0] if named else ""), words, list(named_parameters(body))


def _title(text: str) -> str:
    """Returns the title of an HTML page; empty if the text is not one."""
    found = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    return html.unescape(found[1]).strip() if found else ""


def _located(problem: object) -> str:
    """Formats one problem of FastAPI's list as location and message."""
    if not isinstance(problem, dict):
        return str(problem)
    location = problem.get("loc")
    where = ".".join(map(str, location)) if isinstance(location, list) else ""
    return f"{where}: {problem.get('msg')}" if where else str(problem.get("msg", problem))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server asks to wait: `retry-after-ms`, else `retry-after`, else the rate-limit reset.

    A date is measured against the response's own `Date`, so that a wrong or changing local clock has no effect;
    without a `Date` header the date is ignored, and the backoff applies.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            seconds = _seconds_between(headers.get("date"), value)
        if 0 <= seconds < math.inf:
            return seconds
    return _reset(headers)


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII)


def _reset(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds until an exhausted rate limit resets, in OpenAI's notation: `1s`, `6m0s`, `20ms`."""
    waits = []
    for what in ("requests", "tokens"):
        found = _DURATION.fullmatch(headers.get(f"x-ratelimit-reset-{what}", ""))
        if found and found[0] and headers.get(f"x-ratelimit-remaining-{what}") == "0":
            parts = (float(part or 0) for part in found.groups())
            waits.append(sum(part * unit for part, unit in zip(parts, (3600, 60, 1, 1e-3), strict=True)))
    longest = max(waits, default=math.inf)
    return longest if longest < math.inf else None


def _seconds_between(start: str | None, end: str) -> float:
    try:
        return (parsedate_to_datetime(end) - parsedate_to_datetime(start or "")).total_seconds()
    except (ValueError, TypeError):
        return math.nan
