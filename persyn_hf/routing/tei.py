"""A router behind a server: `/predict` and `/info` of Text Embeddings Inference, with plain arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt
from tenacity.wait import wait_exponential_jitter

from persyn_hf import columns
from persyn_hf.errors import ConfigError, DataError, RouterError, RouterMismatchError

#: Requests in flight at once; the server makes batches of its own.
_CONCURRENCY = 8
_ATTEMPTS = 6
_LONGEST_PAUSE = 20.0
_TIMEOUT = 60.0
_EXCERPT = 300


class _PassingError(RouterError):
    """The same request may succeed later; `retry_after` is in seconds."""

    retry_after: float = 0.0


@dataclass(frozen=True)
class RouterEndpoint:
    """What a server says of the router that it serves.

    Args:
        url (`str`): Base address.
        teachers (`tuple[str, ...]`): Labels, in the order of the logits.
        batch_size (`int`): Most texts of one request.
        digest (`str`, *optional*): Commit of the served repository, where the server knows it.
    """

    url: str
    teachers: tuple[str, ...]
    batch_size: int
    digest: str | None

    def scores(self, prompts: Sequence[columns.Prompt], api_key_env: str | None = None) -> NDArray[np.float32]:
        """Scores every teacher for prompts.

        Args:
            prompts (`Sequence`): Strings, or lists of chat messages.
            api_key_env (`str`, *optional*): Environment variable with the server's key. No other token is ever sent.

        Returns:
            `ndarray` of shape `(prompts, teachers)`, float32: Bradley–Terry scores.

        Raises:
            RouterError: If the server does not answer after some attempts, or refuses.
            DataError: If a prompt is empty, or the server cannot read it.
            RouterMismatchError: If it answers with other labels.
        """
        texts = [columns.prompt_text(prompt) for prompt in prompts]
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        scores = np.empty((len(texts), len(self.teachers)), dtype=np.float32)
        with _client(api_key_env) as client, ThreadPoolExecutor(_CONCURRENCY) as pool:
            # A flat list of two strings would be read as one pair, so every text is a list of its own.
            bodies = [
                {"inputs": [[text] for text in batch], "raw_scores": True, "truncate": True} for batch in batches
            ]
            answers = pool.map(lambda body: _ask(client, "POST", f"{self.url}/predict", body), bodies)
            row = 0
            for batch, answer in zip(batches, answers, strict=True):
                if not isinstance(answer, list) or len(answer) != len(batch):
                    raise RouterError(f"{self.url}/predict must answer with a list for each of {len(batch)} texts.")
                for predictions in answer:
                    scores[row] = self._row(predictions)
                    row += 1
        if not np.isfinite(scores).all():
            raise RouterError(f"{self.url} gives scores that are no numbers; serve the router with --dtype float32.")
        return scores

    def _row(self, predictions: Any) -> list[float]:
        by_label = {one["label"]: float(one["score"]) for one in predictions}
        if set(by_label) != set(self.teachers):
            raise RouterMismatchError(f"{self.url} answers for {sorted(by_label)}, not for {list(self.teachers)}.")
        return [by_label[name] for name in self.teachers]


def describe_endpoint(url: str, api_key_env: str | None = None) -> RouterEndpoint:
    """Asks a server what it serves; once per process.

    Args:
        url (`str`): Base address, as `http://localhost:8080`.
        api_key_env (`str`, *optional*): Environment variable with the server's key.

    Raises:
        ConfigError: If the address is none, or the variable is not set.
        RouterError: If nobody answers, or what is served is no sequence classifier.
    """
    if not url.startswith(("http://", "https://")) or "@" in url:
        raise ConfigError("`endpoint` must be a base URL with http:// or https:// and without user and password.")
    return _describe_once(url.rstrip("/"), api_key_env)


@lru_cache(maxsize=8)
def _describe_once(url: str, api_key_env: str | None) -> RouterEndpoint:
    with _client(api_key_env) as client:
        info = _ask(client, "GET", f"{url}/info", None)
    kind = info.get("model_type") if isinstance(info, Mapping) else None
    labels = (kind.get("classifier") or {}).get("id2label") if isinstance(kind, Mapping) else None
    if not labels:
        raise RouterError(f"{url} serves no sequence classifier, so no router: `model_type` is {kind!r:.200}.")
    teachers = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return RouterEndpoint(url, teachers, int(info.get("max_client_batch_size") or 32), info.get("model_sha"))


def _client(api_key_env: str | None) -> httpx2.Client:
    headers = {}
    if api_key_env is not None:
        key = os.environ.get(api_key_env)
        if not key:
            raise ConfigError(f"`api_key_env`: the environment variable {api_key_env} is not set.")
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.Client(headers=headers, timeout=_TIMEOUT)


def _ask(client: httpx2.Client, method: str, url: str, body: Any) -> Any:
    """Sends one request, again where that may help.

    Raises:
        RouterError, DataError: If it cannot be answered.
    """
    for attempt in Retrying(
        retry=retry_if_exception_type(_PassingError), wait=_pause, stop=stop_after_attempt(_ATTEMPTS), reraise=True
    ):
        with attempt:
            try:
                response = client.request(method, url, json=body)
            except httpx2.TransportError as error:
                raise _PassingError(f"{url} cannot be reached: {type(error).__name__}.") from error
            if response.status_code != 200:
                raise _refusal(url, response)
            try:
                return response.json()
            except ValueError as error:
                raise RouterError(f"{url} does not answer with JSON: is it Text Embeddings Inference?") from error
    raise AssertionError("tenacity raises or returns")


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after if isinstance(error, _PassingError) else 0.0
    grown = float(wait_exponential_jitter(initial=0.2, max=_LONGEST_PAUSE, jitter=0.2)(state))
    return max(min(grown, _LONGEST_PAUSE), min(asked, 300.0))


def _refusal(url: str, response: httpx2.Response) -> Exception:
    status, words = response.status_code, " ".join(response.text.split())[:_EXCERPT]
    said = f"{url} answered HTTP {status}" + (f": {words}" if words else ".")
    if status in (401, 403):
        return RouterError(f"{url} refused the key (HTTP {status}); name its variable in `api_key_env`.")
    if status in (413, 422):
        return DataError(said)
    if status in (408, 424, 429) or status >= 500:
        passing = _PassingError(said)
        after = response.headers.get("retry-after", "")
        passing.retry_after = float(after) if after.isdigit() else 0.0
        return passing
    return RouterError(said)
