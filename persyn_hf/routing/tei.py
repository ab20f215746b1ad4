"""A router behind a server: `/predict` and `/info` of Text Embeddings Inference, with plain arguments."""

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

#: Requests in flight at once; the server makes batches of its own.
_CONCURRENCY = 8
_ATTEMPTS = 6
_LONGEST_PAUSE = 30.0
_TIMEOUT = 60.0
_MAX_BYTES = 16 * 2**20
#: Statuses by which the server says that it cannot read a prompt.
_UNREADABLE = frozenset({413, 422})


@dataclass(frozen=True)
class RouterEndpoint:
    """A router behind a server, as the server describes it.

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

    def scores(self, prompts: Sequence[columns.Prompt], **connection: Any) -> NDArray[np.float32]:
        """Scores every teacher for prompts.

        Args:
            prompts (`Sequence`): Strings, or lists of chat messages.
            connection: Keys of [`Connection`]: `api_key_env`, `api_key_header`, `extra_headers`, `extra_query`,
                `use_hub_token`. No token is sent that is not named so.

        Returns:
            `ndarray` of shape `(prompts, teachers)`, float32: Bradley–Terry scores.

        Raises:
            RouterError: If the server does not answer after some attempts, or refuses.
            DataError: If a prompt is empty, or the server cannot read it.
            RouterMismatchError: If it answers with other labels.
        """
        texts = [columns.prompt_text(prompt) for prompt in prompts]
        batches = [texts[start : start + self.batch_size] for start in range(0, len(texts), self.batch_size)]
        endpoint = _endpoint(self.url, connection)

        async def predict(send: Send, batch: list[str]) -> list[list[float]]:
            # A flat list of two strings would be read as one pair, so every text is a list of its own.
            body = {"inputs": [[text] for text in batch], "raw_scores": True, "truncate": True}
            answer = await send(f"{self.url}/predict", body)
            if not isinstance(answer, list) or len(answer) != len(batch):
                raise RetryableError(f"/predict must answer with a list for each of {len(batch)} texts")
            return [self._row(endpoint, predictions) for predictions in answer]

        rows = [row for rows in run_to_end(lambda interrupt: _ask(endpoint, batches, predict)) for row in rows]
        scores = np.array(rows, dtype=np.float32).reshape(len(texts), len(self.teachers))
        if not np.isfinite(scores).all():
            raise RouterError(f"{self.url} gives scores that are no numbers; serve the router with --dtype float32.")
        return scores

    def _row(self, endpoint: Endpoint, predictions: Any) -> list[float]:
        try:
            by_label = {str(one["label"]): float(one["score"]) for one in predictions}
        except (LookupError, TypeError, ValueError, OverflowError):
            raise RetryableError("/predict must answer with a label and a score for every teacher") from None
        if set(by_label) != set(self.teachers):
            found = endpoint.clean(str(sorted(by_label)))
            raise RouterMismatchError(f"{self.url} answers for {found}, not for {list(self.teachers)}.")
        return [by_label[name] for name in self.teachers]


def describe_endpoint(url: str, **connection: Any) -> RouterEndpoint:
    """Asks a server what it serves; once per process.

    Args:
        url (`str`): Base address, as `http://localhost:8080`.
        connection: Keys of [`Connection`], as for [`RouterEndpoint.scores`].

    Raises:
        ConfigError: If the address is none, or the variable is not set.
        RouterError: If nobody answers, or what is served is no sequence classifier.
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
        raise RouterError(f"{url} serves no sequence classifier, so no router: `model_type` is {served}.")
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
    """Asks for every item, again where that may help.

    Raises:
        RouterError, DataError: If one cannot be answered.
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
