"""Loading a router's checkpoint: everything that can be wrong with one is found here and said."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from persyn_hf.errors import RouterCheckpointError
from persyn_hf.models.identity import resolve_revision
from persyn_hf.packages import require

#: The key of `config.json` that holds what a classifier does not say about a router.
PERSYN_KEY = "persyn"


@dataclass(frozen=True)
class Checkpoint:
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


def load(path: str, revision: str | None = None, device: str | None = None, dtype: str | None = None) -> Checkpoint:
    """Loads and verifies a router; the same one is loaded once per process.

    Args:
        path (`str`): A folder, or a repository id.
        revision (`str`, *optional*): Of a repository; for a folder, the digest that it must have.
        device (`str`, *optional*), dtype (`str`, *optional*): As for [`PersynRouter.from_pretrained`].

    Raises:
        RouterCheckpointError: If the checkpoint is damaged, is no router, or does not have the digest.
        ConfigError: If nothing of that name can be found.
    """
    require("load a router", "torch", "transformers", "safetensors")
    path, digest, local = _located(path, revision)
    return _load_once(path, digest, device, dtype, local)


def read_labels(path: str, revision: str | None = None) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The `persyn` block and the teachers of a router, from its `config.json` alone: for a router served elsewhere.

    Args:
        path (`str`): A folder, or a repository id.
        revision (`str`, *optional*): Of a repository; for a folder, the digest that it must have.

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
    return _verify_config(_plain_config(path, None if local else digest), path)


@lru_cache(maxsize=8)
def _load_once(path: str, digest: str, device: str | None, dtype: str | None, local: bool) -> Checkpoint:
    import torch

    revision = None if local else digest
    config = _read_config(path, revision)
    persyn, teachers = _verify_config(config, path)
    model = _read_model(path, revision, config, dtype)
    tokenizer = _read_tokenizer(path, revision, persyn)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Checkpoint(path, digest, model.to(place).eval(), tokenizer, teachers, persyn)


def _read_config(path: str, revision: str | None) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RouterCheckpointError(f"{path}: `config.json` cannot be read: {_line(error)}") from error


def _plain_config(path: str, revision: str | None) -> SimpleNamespace:
    """What [`_verify_config`] looks at, read without transformers: a router behind a server needs no more."""
    from huggingface_hub import hf_hub_download

    try:
        folder = path if revision is None else os.path.dirname(hf_hub_download(path, "config.json", revision=revision))
        config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        labels = {int(index): label for index, label in (config.get("id2label") or {}).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise RouterCheckpointError(f"{path}: `config.json` cannot be read: {_line(error)}") from error
    known = {"architectures": None, "model_type": None, "label2id": None}
    return SimpleNamespace(**known | config | {"id2label": labels})


def _verify_config(config: Any, path: str) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    persyn = getattr(config, PERSYN_KEY, None)
    if not isinstance(persyn, Mapping):
        raise RouterCheckpointError(
            f"{path}: `config.json` has no `{PERSYN_KEY}` block, so this is no persyn router "
            f"(architectures: {config.architectures}, model type: {config.model_type})."
        )
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise RouterCheckpointError(
            f"{path}: `config.json` names the architectures {architectures}; a router is a sequence classifier "
            "(`…ForSequenceClassification`)."
        )
    described = persyn.get("teachers")
    if not isinstance(described, list) or not all(isinstance(t, Mapping) and "name" in t for t in described):
        raise RouterCheckpointError(f"{path}: `{PERSYN_KEY}.teachers` in `config.json` must list teachers with names.")
    names = tuple(str(teacher["name"]) for teacher in described)
    labels = tuple(str(config.id2label.get(index)) for index in range(len(config.id2label)))
    if labels != names or {name: index for index, name in enumerate(names)} != config.label2id:
        raise RouterCheckpointError(
            f"{path}: the labels in `config.json` do not match its `{PERSYN_KEY}` block: "
            f"`id2label` has {list(labels)}, `{PERSYN_KEY}.teachers` has {list(names)}."
        )
    if persyn.get("fallback") is not None and persyn["fallback"] not in names:
        raise RouterCheckpointError(
            f"{path}: `{PERSYN_KEY}.fallback` is {persyn['fallback']!r}, which is none of its teachers {list(names)}."
        )
    return persyn, names


def _read_model(path: str, revision: str | None, config: Any, dtype: str | None) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=config,
            revision=revision,
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise RouterCheckpointError(f"{path}: the safetensors file is damaged or truncated: {_line(error)}") from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise RouterCheckpointError(f"{path}: the weights cannot be loaded: {_line(error)}") from error
    for kind, what in (("missing_keys", "lack"), ("mismatched_keys", "have in another shape")):
        if info.get(kind):
            raise RouterCheckpointError(
                f"{path}: the weights {what} {sorted(map(str, info[kind]))[:5]}; the head of a router must be there. "
                "Save the trained classifier, not its backbone."
            )
    return model


def _read_tokenizer(path: str, revision: str | None, persyn: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise RouterCheckpointError(f"{path}: the tokenizer cannot be loaded: {_line(error)}") from error
    if persyn.get("max_length"):
        tokenizer.model_max_length = min(tokenizer.model_max_length, int(persyn["max_length"]))
    return tokenizer


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
