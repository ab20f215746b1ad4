"""Loading a router's checkpoint: everything that can be wrong with one is found here and said."""

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
        path (`str`): Absolute folder, or repository id.
        digest (`str`): `folder-…` of a folder, or the commit of a repository.
        model, tokenizer: Stock transformers objects, the model in evaluation mode on its device.
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
    """Loads and verifies a router; the same one is loaded once per process.

    Args:
        path (`str`): A folder, or a repository id.
        revision (`str`, *optional*): Revision of a repository; for a folder, the digest that it must have.
        device (`str`, *optional*), dtype (`str`, *optional*): As for [`PersynRouter.from_pretrained`].

    Raises:
        RouterCheckpointError: If the checkpoint is damaged, is no router, or does not have the digest.
        ConfigError: If nothing of that name can be found, or the device or dtype is unknown.
    """
    require("load a router", "torch", "transformers", "safetensors")
    path, digest, local = _located(path, revision)
    calm_worker()
    with LOADING:
        return _load_once(path, digest, device, dtype, local)


def read_labels(path: str, revision: str | None = None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The `persyn` block and the teachers of a router, from its `config.json` alone: for a router served elsewhere.

    Args:
        path (`str`): A folder, or a repository id.
        revision (`str`, *optional*): Revision of a repository; for a folder, the digest that it must have.

    Raises:
        RouterCheckpointError: If it is no router, or does not have the digest.
        ConfigError: If nothing of that name can be found.
    """
    path, digest, local = _located(path, revision)
    return _labels_once(path, digest, local)


def library_version() -> str:
    """The version of persyn_hf, part of every map function's arguments."""
    from persyn_hf.version import __version__

    return __version__


def plain(value: Any) -> Any:
    """A deep copy of plain values, so that nobody changes what a router says of itself."""
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
            raise files.wrong(f" reads {length} tokens, and what it reads around a prompt has {around}.")
        tokenizer.model_max_length = length
        largest, known = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
        if largest >= known:
            raise files.wrong(f": its tokenizer has a token {largest}, its model knows tokens below {known}.")
    return tokenizer


def _route_once(files: ModelFiles, model: Any, tokenizer: Any, teachers: int) -> None:
    """Scores two short prompts, so that files that fit no model are found here and not at the first prompt."""
    from persyn_hf.routing.backbone import logits

    with reading(files, "it: it scores no prompt"):
        shape = logits(model, tokenizer, ["a", "a b"], token_budget=1024).shape
        if shape != (2, teachers):
            raise files.wrong(f" gives two prompts scores of shape {shape}, expected (2, {teachers}).")
