"""Fingerprints of a stage's arguments. A stage is recomputed if, and only if, a fingerprint changes.

A section of the configuration enters by its fields, a model by its weights, a file by its content and a verifier by
its code. Only fields that the section or the stage names are left out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persyn_hf.config import Settings, Teacher, default_of
from persyn_hf.errors import ConfigError
from persyn_hf.models.identity import named_identity, resolve_revision, teacher_identity
from persyn_hf.version import __version__


@dataclass(frozen=True)
class Keyed:
    """A section, or several, with the fields that a stage leaves out of its fingerprint.

    Args:
        value (`Settings` or `Sequence[Settings]`): Argument of the stage's function.
        without (`Set[str]`): Names of the fields to leave out, instead of the section's own `unkeyed`.
    """

    value: Any
    without: Set[str]


@dataclass(frozen=True)
class Checkpoint:
    """A model as an argument, which enters the fingerprint by the identity of its weights.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
    """

    model: str
    revision: str | None = None


def fingerprint(value: object) -> str:
    """Returns the SHA-256 (64 hex digits) of a value's key and of the library's version.

    Raises:
        TypeError: If the value, or a part of it, has a type without a fingerprint.
    """
    text = json.dumps([__version__, key_of(value)], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def key_of(value: object) -> Any:
    """Returns the content of a value as plain JSON values.

    Raises:
        TypeError: If the value, or a part of it, has a type without a fingerprint.
        ConfigError: If a model or a file that the value names does not exist.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Keyed):
        many = not isinstance(value.value, Settings)
        return [_section(one, value.without) for one in value.value] if many else _section(value.value, value.without)
    if isinstance(value, Checkpoint):
        return resolve_revision(value.model, value.revision)
    if isinstance(value, Settings):
        return _section(value, value.unkeyed)
    if isinstance(value, Mapping):
        return {str(name): key_of(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [key_of(one) for one in value]
    raise TypeError(f"{type(value).__name__} has no fingerprint; pass plain values, or pass it under `unkeyed`.")


def plain_value(value: object) -> object:
    """Unwraps an argument for the stage's function."""
    if isinstance(value, Keyed):
        return value.value
    return value


def _section(section: Settings, without: Set[str]) -> dict[str, object]:
    kept: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name in without or (name in section.added and value == default_of(type(section), name)):
            continue
        if value is not None and name in section.files:
            kept[name] = _content(Path(value), name)
        elif value is not None and name in section.code:
            kept[name] = _code(value)
        else:
            kept[name] = key_of(value)
    for name, revision in section.checkpoints.items():
        model = kept.get(name)
        if model is not None:  # the name counts too, since tables and cards show it
            kept[name] = [model, resolve_revision(model, kept.pop(revision, None))]
    if isinstance(section, Teacher):
        identity = teacher_identity(section)
        kept.pop("revision", None)
        kept["model"] = [identity.model, identity.revision]
        if section.renderer is not None:
            kept["renderer"] = named_identity(section.renderer)
    return kept


def _content(path: Path, name: str) -> str:
    """Returns the digest of a file, or of all files in a folder."""
    digest = hashlib.sha256()
    if not path.exists():
        raise ConfigError(f"`{name}`: {path} cannot be read: there is no such file or folder.")
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    except OSError as error:
        raise ConfigError(f"`{name}`: {path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def _code(verifier: str) -> object:
    from persyn_hf.scoring.verifiers import verifier_identity

    return verifier_identity(verifier)
