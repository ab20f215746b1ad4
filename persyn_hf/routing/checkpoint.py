"""Loading and verifying a router's checkpoint."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from persyn_hf.errors import RouterCheckpointError
from persyn_hf.models.device import choose_device
from persyn_hf.models.files import ModelFiles, read_config, reading
from persyn_hf.models.identity import resolve_revision
from persyn_hf.models.loading import LOADING, context_of, load_model, load_tokenizer
from persyn_hf.models.workers import calm_worker
from persyn_hf.packages import require
from persyn_hf.routing.block import verify_config


@dataclass(frozen=True)
class LoadedRouter:
    """A verified router.

    Args:
        path (`str`): Absolute path of a folder, or repository id.
        digest (`str`): Digest of a folder (`folder-…`), or commit of a repository.
        model, tokenizer: Stock transformers objects; the model is in evaluation mode on its device.
        teachers (`tuple[str, ...]`): Labels, in the order of the logits.
        persyn (`Mapping[str, Any]`): The `persyn` block.
    """

    path: str
    digest: str
    model: Any
    tokenizer: Any
    teachers: tuple[str, ...]
    persyn: Mapping[str, Any]


def load(path: str, revision: str | None = None, device: str | None = None, dtype: str | None = None) -> LoadedRouter:
    """Loads and verifies a router. Each checkpoint is loaded once per process.

    Args:
        path (`str`): Folder or repository id.
        revision (`str`, *optional*): Revision of a repository, or expected digest of a folder.
        device (`str`, *optional*), dtype (`str`, *optional*): As for [`PersynRouter.from_pretrained`].

    Raises:
        RouterCheckpointError: If the checkpoint is damaged, is not a router, or has another digest.
        ConfigError: If the router is not found, or the device or dtype is unknown.
    """
    require("load a router", "torch", "transformers", "safetensors")
    path, digest, local = _located(path, revision)
    calm_worker()
    with LOADING:
        return _load_once(path, digest, device, dtype, local)


def read_labels(path: str, revision: str | None = None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Reads a router's `persyn` block and teachers from its `config.json` alone, for a router behind a server.

    Args:
        path (`str`): Folder or repository id.
        revision (`str`, *optional*): Revision of a repository, or expected digest of a folder.

    Raises:
        RouterCheckpointError: If it is not a router, or has another digest.
        ConfigError: If the router is not found.
    """
    path, digest, local = _located(path, revision)
    return _labels_once(path, digest, local)


def library_version() -> str:
    """Returns the version of persyn_hf, which is part of every map function's arguments."""
    from persyn_hf.version import __version__

    return __version__


def plain(value: Any) -> Any:
    """Returns a deep copy of plain values, so that callers cannot change a router's metadata."""
    return copy.deepcopy(dict(value) if isinstance(value, Mapping) else value)


def _located(path: str, revision: str | None) -> tuple[str, str, bool]:
    local = os.path.isdir(path)
    path = os.path.abspath(path) if local else path
    digest = resolve_revision(path, revision)
    if local and revision is not None and revision != digest:
        raise RouterCheckpointError(
            f"The router in {path} has changed: expected {revision}, found {digest}. Load or pin it again."
        )
    return path, digest, local


@lru_cache(maxsize=8)
def _labels_once(path: str, digest: str, local: bool) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    files = _files(path, digest, local)
    return verify_config(files, read_config(files))


@lru_cache(maxsize=8)
def _load_once(path: str, digest: str, device: str | None, dtype: str | None, local: bool) -> LoadedRouter:
    files = _files(path, digest, local)
    persyn, teachers = verify_config(files, read_config(files))
    model = load_model(files, "classifier", dtype or "auto", choose_device(device))
    tokenizer = _read_tokenizer(files, persyn, model)
    _route_once(files, model, tokenizer, len(teachers))
    return LoadedRouter(path, digest, model, tokenizer, teachers, persyn)


def _files(path: str, digest: str, local: bool) -> ModelFiles:
    return ModelFiles(path, None if local else digest, "The router", RouterCheckpointError)


def _read_tokenizer(files: ModelFiles, persyn: Mapping[str, Any], model: Any) -> Any:
    tokenizer = load_tokenizer(files)
    with reading(files, "its tokenizer"):
        limits = (persyn.get("max_length"), tokenizer.model_max_length, context_of(model.config))
        length = min(int(limit) for limit in limits if limit is not None)
        around = tokenizer.num_special_tokens_to_add()
        if length <= around:
            raise files.wrong(
                f" must read more than the {around} tokens that it adds around a prompt, got a length of {length}."
            )
        tokenizer.model_max_length = length
        largest, known = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
        if largest >= known:
            raise files.wrong(
                f": its tokenizer has the token id {largest}, but its model has only {known} embeddings."
            )
    return tokenizer


def _route_once(files: ModelFiles, model: Any, tokenizer: Any, teachers: int) -> None:
    """Scores two short prompts, so that incompatible files fail now and not at the user's first prompt."""
    from persyn_hf.routing.backbone import logits

    with reading(files, "it: it cannot score a prompt"):
        shape = logits(model, tokenizer, ["a", "a b"], token_budget=1024).shape
        if shape != (2, teachers):
            raise files.wrong(f" must score two prompts with shape (2, {teachers}), got {shape}.")
