"""The router: a stock sequence classifier that is mapped over prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.errors import RouterError
from persyn_hf.models.loading import save_tokenizer
from persyn_hf.models.workers import calm_worker
from persyn_hf.routing import checkpoint

#: Tokens of one forward pass, padding included: a small batch fits a CPU's cache, a large one keeps a GPU busy.
CPU_TOKEN_BUDGET = 1024
GPU_TOKEN_BUDGET = 16384


class PersynRouter:
    """Scores every teacher for a prompt and names the best. Pass the object itself to `datasets.map`.

    Create one with [`from_pretrained`] or [`train_router`]. A router is immutable, and pickles and hashes by plain
    values (its checkpoint's location, and the digest or commit). So `datasets` reuses its cached results in any
    process, but not after the checkpoint has changed.

    Args:
        loaded (`LoadedRouter`): Verified checkpoint.
        device (`str`, *optional*), dtype (`str`, *optional*): As given to [`from_pretrained`].
        prompt_column (`str`, *optional*): Column of the prompts; default: the one in the checkpoint, else `prompt`.
        token_budget (`int`, *optional*): Tokens of one forward pass, padding included; default: 1,024 on a CPU,
            where a small batch fits the cache, and 16,384 elsewhere.

    Example:
        >>> router = PersynRouter.from_pretrained("org/router")  # doctest: +SKIP
        >>> routed = prompts.map(router, batched=True)  # doctest: +SKIP
    """

    #: Training report ([`RouterReport`]); only on a router that [`train_router`] returned.
    report: Any = None

    def __init__(
        self,
        loaded: checkpoint.LoadedRouter,
        *,
        device: str | None = None,
        dtype: str | None = None,
        prompt_column: str | None = None,
        token_budget: int | None = None,
    ) -> None:
        self._loaded = loaded
        self._options = (device, dtype, prompt_column, token_budget)
        self.prompt_column = prompt_column or loaded.persyn.get("prompt_column") or columns.PROMPT
        on_cpu = loaded.model.device.type == "cpu"
        self.token_budget = token_budget or (CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        revision: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        *,
        prompt_column: str | None = None,
        token_budget: int | None = None,
    ) -> PersynRouter:
        """Loads a router from a folder or the Hub (or its local cache, offline).

        Args:
            path_or_repo (`str` or `PathLike`): Folder or repository id.
            revision (`str`, *optional*): Branch, tag or commit of a repository, or expected digest of a folder.
            device (`str`, *optional*): Device of the model; default: `cuda` if available, else `cpu`.
            dtype (`str`, *optional*): `"float32"`, `"bfloat16"` or `"float16"`; default: the checkpoint's.
            prompt_column (`str`, *optional*): Column of the prompts; default: the one in the checkpoint, else
                `prompt`.
            token_budget (`int`, *optional*): Tokens of one forward pass, padding included; default: 1,024 on a CPU,
                where a small batch fits the cache, and 16,384 elsewhere.

        Raises:
            RouterCheckpointError: If the checkpoint is damaged, is not a router, or does not match `revision`.
            ConfigError: If the router is not found.
        """
        loaded = checkpoint.load(os.fspath(path_or_repo), revision, device, dtype)
        return cls(loaded, device=device, dtype=dtype, prompt_column=prompt_column, token_budget=token_budget)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the checkpoint (safetensors, `config.json` with the `persyn` block, tokenizer) into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._loaded.model.save_pretrained(folder, safe_serialization=True)
        save_tokenizer(self._loaded.tokenizer, folder)

    @property
    def teachers(self) -> list[str]:
        """Names of the teachers, in the order of the scores."""
        return list(self._loaded.teachers)

    @property
    def model(self) -> Any:
        """The stock classifier. All routers of this checkpoint in the process share it, so do not change it."""
        return self._loaded.model

    @property
    def tokenizer(self) -> Any:
        """The stock tokenizer, shared like `model`."""
        return self._loaded.tokenizer

    @property
    def metadata(self) -> dict[str, Any]:
        """A copy of the `persyn` block of `config.json`."""
        return dict(checkpoint.plain(self._loaded.persyn))

    @property
    def fallback(self) -> str | None:
        """The teacher that every prompt goes to if the router did not beat it on held-out prompts, else `None`."""
        return self._loaded.persyn.get("fallback")

    @property
    def digest(self) -> str:
        """Commit of the repository, or digest of the folder, from which the router was loaded."""
        return self._loaded.digest

    def scores(self, prompts: Sequence[columns.Prompt]) -> NDArray[np.float32]:
        """Scores every teacher for prompts.

        Args:
            prompts (`Sequence`): Strings, or lists of chat messages.

        Returns:
            `ndarray` of shape `(prompts, teachers)`, float32: Bradley–Terry scores; only their differences are
                meaningful.

        Raises:
            DataError: If a prompt is empty or of another type.
            RouterError: If a score is not finite.
        """
        from persyn_hf.routing import backbone

        texts = [columns.prompt_text(prompt) for prompt in prompts]
        if not texts:
            return np.empty((0, len(self._loaded.teachers)), dtype=np.float32)
        calm_worker()
        scores: NDArray[np.float32] = backbone.logits(
            self._loaded.model, self._loaded.tokenizer, texts, self.token_budget
        )
        if not np.isfinite(scores).all():
            raise RouterError(
                f"The router {self._loaded.path} must give finite scores, got NaN or infinity; load it with "
                "dtype='float32'."
            )
        return scores

    def embeddings(self, prompts: Sequence[columns.Prompt]) -> NDArray[np.float64]:
        """Returns the inputs of the head (the backbone's embedding) of each prompt, shape `(prompts, hidden)`."""
        from persyn_hf.routing import backbone

        texts = [columns.prompt_text(prompt) for prompt in prompts]
        return backbone.head_inputs(self._loaded.model, self._loaded.tokenizer, texts, self.token_budget)

    def routes(self, scores: NDArray[np.float32]) -> list[str]:
        """Returns the teacher of every prompt for scores of shape `(prompts, teachers)`."""
        if self.fallback is not None:
            return [self.fallback] * len(scores)
        return [self._loaded.teachers[index] for index in scores.argmax(axis=1)]

    def __call__(self, examples: Mapping[str, Any], rank: int | None = None) -> dict[str, Any]:
        """Routes one row or a batch; `rank` is accepted for `map(with_rank=True)`.

        Args:
            examples (`Mapping`): Row, or batch of columns, with the prompt column.
            rank (`int`, *optional*): Ignored, because the router stays on its device; [`persyn_route`] uses it.

        Returns:
            `dict`: `route` and `route_scores`: one value each for a row, lists for a batch.

        Raises:
            MissingColumnError: If the prompt column is absent.
            DataError: If a prompt is empty.
        """
        return route_examples(self, examples, self.prompt_column)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _restore, (self._loaded.path, self._loaded.digest, *self._options, checkpoint.library_version())

    def __repr__(self) -> str:
        return f"PersynRouter({self._loaded.path!r}, teachers={self.teachers})"


def route_examples(router: PersynRouter, examples: Mapping[str, Any], prompt_column: str) -> dict[str, Any]:
    """Routes a row or a batch of a table; see [`PersynRouter.__call__`]."""
    columns.require_columns(examples.keys(), [prompt_column], "routing")
    value = examples[prompt_column]
    if is_one_prompt(value):
        scores = router.scores([value])
        return {columns.ROUTE: router.routes(scores)[0], columns.ROUTE_SCORES: scores[0]}
    scores = router.scores(value)
    return {columns.ROUTE: router.routes(scores), columns.ROUTE_SCORES: list(scores)}


def is_one_prompt(value: Any) -> bool:
    """Returns true for a cell that is one prompt (a string, or chat messages), false for a batch of prompts."""
    if value is None or isinstance(value, str):
        return True
    return bool(len(value)) and isinstance(value[0], Mapping)


def _restore(
    path: str,
    digest: str,
    device: str | None,
    dtype: str | None,
    prompt_column: str | None,
    token_budget: int | None,
    _: str,
) -> PersynRouter:
    loaded = checkpoint.load(path, digest, device, dtype)
    return PersynRouter(loaded, device=device, dtype=dtype, prompt_column=prompt_column, token_budget=token_budget)
