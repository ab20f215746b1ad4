"""The chat protocol (`/v1/chat/completions`), which every inference server speaks, through `huggingface_hub`."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient, get_token
from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, RetryableError, RowError, TeacherDownError, TeacherError
from persyn_hf.generation.client import Completion, Request, UnavailableError

#: What servers call the end of an answer → `columns.FINISH_REASONS`.
_FINISH_REASONS = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
#: Requests per httpx2 pool. A pool has 100 connections, above which waiting counts as timeout; and it looks through
#: all of its connections at every request, so that several small pools cost less than one large one.
_POOL = 32
#: The longest answer, in characters, that is still an answer and not a server gone wrong.
_MAX_CHARACTERS = 16 * 2**20
#: Longest excerpt of a server's own words in an error.
_EXCERPT = 200


class ChatClient:
    """A teacher behind an OpenAI-compatible endpoint.

    A key is always sent, `-` where the teacher names none: without one, `AsyncInferenceClient` sends the user's Hub
    token to any address.

    Args:
        teacher (`Teacher`): With `backend: endpoint`.

    Raises:
        ConfigError: If the teacher wants a key or the Hub token and there is none.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._model = teacher.model
        self._address = teacher.endpoints[0]
        self._key = _key(teacher)
        self._key_name = teacher.api_key_env or ("the Hugging Face token" if teacher.use_hub_token else None)
        pools = math.ceil((teacher.max_concurrency or _POOL) / _POOL)
        self._clients = [
            AsyncInferenceClient(base_url=self._address, api_key=self._key, timeout=teacher.timeout)
            for _ in range(pools)
        ]
        self._in_flight = [0] * pools

    def __repr__(self) -> str:
        return f"ChatClient(model={self._model!r}, endpoint={self._address!r})"

    async def complete(self, request: Request) -> Completion:
        """Answers one request; see [`TeacherClient`]."""
        pool = min(range(len(self._clients)), key=self._in_flight.__getitem__)
        self._in_flight[pool] += 1
        try:
            answer = await self._clients[pool].chat_completion([*request.messages], **self._parameters(request))
        except InferenceTimeoutError:
            raise RetryableError(f"no answer from {self._address} in time", attempts=3) from None
        except HfHubHTTPError as error:
            raise self._from_status(error) from None
        except OfflineModeIsEnabled:
            raise TeacherDownError(
                "HF_HUB_OFFLINE blocks every endpoint; unset it to ask teachers over HTTP"
            ) from None
        except httpx2.ConnectError as error:
            raise UnavailableError(f"cannot connect to {self._address}: {self._clean(str(error))}") from None
        except httpx2.TransportError as error:
            raise RetryableError(f"the connection broke: {type(error).__name__}") from None
        except httpx2.HTTPError as error:
            raise RetryableError(f"the answer cannot be read: {type(error).__name__}", attempts=3) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._from_body(error) from None
        finally:
            self._in_flight[pool] -= 1
        return _completion(answer)

    async def aclose(self) -> None:
        """Closes the connections."""
        for client in self._clients:
            await client.close()  # type: ignore[no-untyped-call] # huggingface_hub leaves it untyped

    def _parameters(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return {
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            # 1.0 is no restriction, and TGI refuses it.
            "top_p": sampling.top_p if sampling.top_p < 1 else None,
            "stop": list(sampling.stop) or None,
            "seed": request.seed,
        }

    def _clean(self, text: str) -> str:
        """A short excerpt of foreign text that surely holds no key."""
        shown = " ".join(text.split())
        if len(self._key) > 1:
            shown = shown.replace(self._key, "***")
        return shown if len(shown) <= _EXCERPT else shown[:_EXCERPT] + "…"

    def _from_status(self, error: HfHubHTTPError) -> TeacherError:
        response = error.response
        status = response.status_code
        kind, words = _error_body(response.text)
        detail = self._clean(words)
        said = f"HTTP {status}" + (f" ({kind})" if kind else "") + (f": {detail}" if detail else "")
        if status in (401, 403):
            named = f"check {self._key_name}" if self._key_name else "set `api_key_env`, the variable with its key"
            return TeacherDownError(f"{self._address} refused the key (HTTP {status}): {named}")
        if status == 404:
            return TeacherDownError(f"{self._address} does not serve `{self._model}` there ({said})")
        wait = _retry_after(response.headers.get("retry-after"))
        return _by_status(status, kind, said, wait)

    def _from_body(self, error: Exception) -> TeacherError:
        """What is meant by 200 with a body that is no chat completion: an SSE error, a page, half an answer."""
        text = error.doc if isinstance(error, json.JSONDecodeError) else ""
        for line in text.splitlines() if "data:" in text[:4096] else []:
            kind, words = _error_body(line.removeprefix("data:").strip())
            if kind or words:
                said = f"error event in a stream ({kind}): {self._clean(words)}"
                return _by_status(_STATUS_OF.get(kind, 500), kind, said, None)
        return RetryableError("the answer is no chat completion (malformed or cut JSON, or another format)")


#: The status that stands for an `error_type` of an event under 200.
_STATUS_OF = {
    "overloaded": 429, "validation": 422, "template_error": 422, "missing_template_variable": 422, "tool_error": 422,
    "generation": 424, "incomplete_generation": 500, "healthcheck": 503,
}  # fmt: skip


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


def _key(teacher: Teacher) -> str:
    if teacher.use_hub_token:
        token = get_token()
        if not token:
            raise ConfigError(
                f"teacher `{teacher.name}`: `use_hub_token` is set but there is no token; run `hf auth login`."
            )
        return token
    if teacher.api_key_env is None:
        return "-"
    key = os.environ.get(teacher.api_key_env)
    if not key:
        raise ConfigError(f"teacher `{teacher.name}`: the environment variable {teacher.api_key_env} is not set.")
    return key


def _completion(answer: Any) -> Completion:
    """Reads the first choice; reasoning content is left where it is."""
    choices = getattr(answer, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise RetryableError("the answer has no choices", attempts=3)
    text = getattr(choices[0].message, "content", None)
    reason = getattr(choices[0], "finish_reason", None)
    if not isinstance(text, str) or not text.strip():
        # Half a reasoning model's answers end so when `max_tokens` is spent on reasoning.
        what = "no content" if text is None else "an empty completion"
        raise RetryableError(f"the teacher answered with {what} (finish reason {reason!r:.40})", attempts=2)
    if len(text) > _MAX_CHARACTERS:
        raise RowError(f"the answer has {len(text)} characters, more than {_MAX_CHARACTERS}")
    usage = getattr(answer, "usage", None)
    return Completion(
        text=text,
        finish_reason=_FINISH_REASONS.get(str(reason), "stop"),
        prompt_tokens=_count(getattr(usage, "prompt_tokens", None)),
        completion_tokens=_count(getattr(usage, "completion_tokens", None)),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _error_body(text: str) -> tuple[str, str]:
    """The `error_type` and the words of an error, from TGI's form, OpenAI's form or FastAPI's."""
    try:
        body = json.loads(text)
    except ValueError:
        return "", "" if text.lstrip()[:1] in ("<", "") else text[:1000]
    if not isinstance(body, dict):
        return "", ""
    inner = body.get("error", body.get("detail", body.get("message")))
    kind = body.get("error_type")
    if isinstance(inner, dict):
        kind = kind or inner.get("type")
        inner = inner.get("message")
    return (kind if isinstance(kind, str) else ""), (str(inner)[:1000] if inner is not None else "")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a `Retry-After` header; its date form is left to the backoff."""
    try:
        seconds = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None
