"""Fingerprints: what an argument of a stage stands for, so that a stage is made again when, and only when, it changes.

An argument counts with all that it decides: a section of the configuration with its fields, a model with its weights,
a file with its content, a verifier with its code. A field is left out only where its section or a stage names it.
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
        value (`Settings` or `Sequence[Settings]`): What the stage's function is given.
        without (`Set[str]`): Names of fields, instead of those that the section leaves out by itself.
    """

    value: Any
    without: Set[str]


@dataclass(frozen=True)
class Checkpoint:
    """A model as an argument: it counts with the identity of its weights.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Commit, tag or branch.
    """

    model: str
    revision: str | None = None


def fingerprint(value: Any) -> str:
    """SHA-256 of what a value stands for and of the library's version: 64 hex digits.

    Raises:
        TypeError: If the value, or a part of it, is of a kind that cannot be part of a fingerprint.
    """
    text = json.dumps([__version__, key_of(value)], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def key_of(value: Any) -> Any:
    """What a value stands for, as plain JSON values.

    Raises:
        TypeError: If it is of a kind that cannot be part of a fingerprint.
        ConfigError: If a model or a file that it names is not there.
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
    raise TypeError(f"A fingerprint cannot be made of {type(value).__name__}; pass plain values, or leave it out.")


def plain_value(value: Any) -> Any:
    """The value that a stage's function is given for an argument."""
    if isinstance(value, Keyed):
        return value.value
    return value


def _section(section: Settings, without: Set[str]) -> dict[str, Any]:
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
        if model is not None:  # the name too, which stands in tables and cards
            kept[name] = [model, resolve_revision(model, kept.pop(revision, None))]
    if isinstance(section, Teacher):
        identity = teacher_identity(section)
        kept.pop("revision", None)
        kept["model"] = [identity.model, identity.revision]
        if section.renderer is not None:
            kept["renderer"] = named_identity(section.renderer)
    return kept


def _content(path: Path, name: str) -> str:
    """Digest of a file, or of all files of a folder."""
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


def _code(verifier: str) -> Any:
    from persyn_hf.scoring.verifiers import verifier_identity

    return verifier_identity(verifier)
