"""A router behind a server: client of `/predict` and `/info` of Text Embeddings Inference."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.config import Service, read_settings
from persyn_hf.config.settings import base_url
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.event_loop import run_to_end
from persyn_hf.endpoints.requests import Item, Patience, Result, Send, ask_all
from persyn_hf.errors import (
    ConfigError,
    DataError,
    PersynError,
    RetryableError,
    RouterError,
    RouterMismatchError,
    RowError,
    TeacherDownError,
)

#: Requests in flight; the server batches them itself.
_CONCURRENCY = 8
_ATTEMPTS = 6
_LONGEST_PAUSE = 30.0
_TIMEOUT = 60.0
_MAX_BYTES = 16 * 2**20
#: HTTP statuses for a prompt that the server cannot read.
_UNREADABLE = frozenset({413, 422})


@dataclass(frozen=True)
class RouterEndpoint:
    """A router behind a server, as described by the server.

    Args:
        url (`str`): Base URL.
        teachers (`tuple[str, ...]`): Labels, in the order of the logits.
        batch_size (`int`): Maximum number of texts per request.
        digest (`str`, *optional*): Commit of the served repository, if the server reports it.
    """

    url: str
    teachers: tuple[str, ...]
    batch_size: int
    digest: str | None

    def scores(self, prompts: Sequence[columns.Prompt], **connection: Any) -> NDArray[np.float32]:
        """Scores every teacher for prompts.

        Args:
            prompts (`Sequence`): Strings, or lists of chat messages.
            connection: Keys of [`Connection`]: `api_key_env`, `api_key_header`, `extra_headers`, `extra_query`,
                `use_hub_token`. No other token is sent.

        Returns:
            `ndarray` of shape `(prompts, teachers)`, float32: Bradley–Terry scores.

        Raises:
            RouterError: If the server refuses the request, does not answer after six attempts, or a score is not
                finite.
            DataError: If a prompt is empty, or the server cannot read it.
            RouterMismatchError: If the server answers with other labels.
        """
        texts = [columns.prompt_text(prompt) for prompt in prompts]
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        endpoint = _endpoint(self.url, connection)

        async def predict(send: Send, batch: list[str]) -> list[list[float]]:
            # The server reads a flat list of two strings as one pair, so every text is wrapped in a list.
            body = {"inputs": [[text] for text in batch], "raw_scores": True, "truncate": True}
            answer = await send(f"{self.url}/predict", body)
            if not isinstance(answer, list) or len(answer) != len(batch):
                raise RetryableError(f"/predict must answer with a list for each of {len(batch)} texts")
            return [self._row(endpoint, predictions) for predictions in answer]

        rows = [row for rows in run_to_end(lambda interrupt: _ask(endpoint, batches, predict)) for row in rows]
        scores = np.array(rows, dtype=np.float32).reshape(len(texts), len(self.teachers))
        if not np.isfinite(scores).all():
            raise RouterError(
                f"{self.url} must give finite scores, got NaN or infinity; serve the router with --dtype float32."
            )
        return scores

    def _row(self, endpoint: Endpoint, predictions: Any) -> list[float]:
        try:
            by_label = {str(one["label"]): float(one["score"]) for one in predictions}
        except (LookupError, TypeError, ValueError, OverflowError):
            raise RetryableError("/predict must answer with a label and a score for every teacher") from None
        if set(by_label) != set(self.teachers):
            found = endpoint.clean(str(sorted(by_label)))
            raise RouterMismatchError(f"{self.url} must answer for {list(self.teachers)}, got {found}.")
        return [by_label[name] for name in self.teachers]


def describe_endpoint(url: str, **connection: Any) -> RouterEndpoint:
    """Describes the router behind a server, which is queried once per process.

    Args:
        url (`str`): Base URL, such as `http://localhost:8080`.
        connection: Keys of [`Connection`], as for [`RouterEndpoint.scores`].

    Raises:
        ConfigError: If the URL is invalid, or the variable is not set.
        RouterError: If the server cannot be reached, or does not serve a sequence classifier.
    """
    try:
        base_url(url)
    except ValueError as error:
        raise ConfigError(f"`endpoint`: {error}.") from None
    return _describe_once(url.rstrip("/"), json.dumps(connection, sort_keys=True))


@lru_cache(maxsize=8)
def _describe_once(url: str, connection: str) -> RouterEndpoint:
    endpoint = _endpoint(url, json.loads(connection))

    async def describe(send: Send, page: str) -> Any:
        return await send(page)

    (info,) = run_to_end(lambda interrupt: _ask(endpoint, [f"{url}/info"], describe))
    kind = info.get("model_type") if isinstance(info, Mapping) else None
    classifier = kind.get("classifier") if isinstance(kind, Mapping) else None
    labels = classifier.get("id2label") if isinstance(classifier, Mapping) else None
    try:
        teachers = tuple(str(labels[key]) for key in sorted(labels, key=int)) if isinstance(labels, Mapping) else ()
    except ValueError:
        teachers = ()
    if not teachers:
        served = endpoint.clean(repr(kind))
        raise RouterError(f"{url} must serve a sequence classifier, got `model_type` {served}; serve a router there.")
    size, digest = info.get("max_client_batch_size"), info.get("model_sha")
    return RouterEndpoint(
        url,
        teachers,
        size if isinstance(size, int) and size > 0 else 32,
        endpoint.clean(digest) if isinstance(digest, str) else None,
    )


def _endpoint(url: str, connection: Mapping[str, Any]) -> Endpoint:
    server = read_settings(Service, {"url": url, **connection}, "`endpoint`")
    return Endpoint.of(server, setting="endpoint")


async def _ask(
    endpoint: Endpoint, items: Sequence[Item], ask: Callable[[Send, Item], Awaitable[Result]]
) -> list[Result]:
    """Sends a request for every item, with retries.

    Raises:
        RouterError, DataError: If a request fails.
    """
    patience = Patience(_CONCURRENCY, _TIMEOUT, _ATTEMPTS, _MAX_BYTES, _LONGEST_PAUSE)
    answers = []
    try:
        for answer in await ask_all(endpoint, patience, items, ask):
            if isinstance(answer, RowError | RetryableError):
                raise _refusal(endpoint, answer)
            answers.append(answer)
    except TeacherDownError as error:
        said = str(error) if error.status is not None else f"{endpoint.address} cannot be reached ({error})"
        raise RouterError(f"{said}.") from None
    return answers


def _refusal(endpoint: Endpoint, error: RowError | RetryableError) -> PersynError:
    words = f"{endpoint.address}: {error}"
    return DataError(words) if error.status in _UNREADABLE else RouterError(words)
