"""A model's files: their location, the errors about them, and the plain JSON of the model's configuration."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persyn_hf.errors import ConfigError, PersynError
from persyn_hf.text import tame, tame_lines

CONFIG_FILE = "config.json"

#: Largest `config.json`, in bytes. One with 21,000 named labels has 1.5 million.
_LARGEST = 16 * 2**20
#: Deepest nesting of a `config.json`; published ones have about five levels.
_DEEPEST = 64
#: Longest excerpt of an error, in characters.
_LONGEST = 500


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, and the type and subject of errors about them.

    Args:
        name (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Revision that [`identity`] resolved; the digest of a folder is not used.
        role (`str`, defaults to `"The model"`): First words of every error, such as "The student".
        error (`type[PersynError]`, defaults to `ConfigError`): Type of the error that a damaged file raises.
        local_only (`bool`, defaults to `False`): Look in the folder or the local cache only.
    """

    name: str
    revision: str | None = None
    role: str = "The model"
    error: type[PersynError] = ConfigError
    local_only: bool = False

    @property
    def is_folder(self) -> bool:
        """True for a local folder, which has no revisions."""
        return os.path.isdir(self.name)

    @property
    def commit(self) -> str | None:
        """The revision to request from the Hub."""
        return None if self.is_folder or (self.revision or "").startswith("folder-") else self.revision

    def wrong(self, problem: str) -> PersynError:
        """Makes the error for a problem; its message begins with "The student `org/student`"."""
        return self.error(tame_lines(f"{self.role} `{self.name}`{problem}"))

    def find(self, file: str) -> Path | None:
        """Finds a file of the model, and downloads it if needed; `None` if the model has no such file."""
        if self.is_folder:
            path = Path(self.name) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file, revision=self.commit, local_files_only=self.local_only))
        except EntryNotFoundError:  # also if the file is not cached and cannot be requested
            return None


@contextmanager
def reading(files: ModelFiles, what: str) -> Iterator[None]:
    """Turns every exception raised while a model's files are read into the error of [`ModelFiles`].

    The files are untrusted, and transformers, tokenizers and safetensors check little: a damaged file raises anything
    from a KeyError to a RecursionError, and tokenizers' Rust code a PanicException, which is not an `Exception`.
    """
    try:
        yield
    except PersynError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise files.wrong(f": cannot load {what}: {_reason(error)}") from error


def read_config(files: ModelFiles) -> dict[str, Any]:
    """Reads `config.json` as plain values, without transformers.

    Raises:
        PersynError: The type `files.error`, if there is no such file, or it is not a JSON object, is larger than
            16 MiB or nested deeper than 64 levels.
    """
    with reading(files, f"its `{CONFIG_FILE}`"):
        path = files.find(CONFIG_FILE)
        if path is None:
            where = "in the folder" if files.is_folder else "on the Hub, or in the local cache if the Hub is offline"
            raise files.wrong(f": a transformers model needs a `{CONFIG_FILE}`, but there is none {where}.")
        return plain_object(path)


def plain_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object within the limits of size and nesting.

    Raises:
        ValueError: If the file is not JSON, not an object, too large or nested too deeply.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it must have at most {_LARGEST:,} bytes, got {path.stat().st_size:,}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_hook=_special_float)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"it must hold a JSON object, got a {type(values).__name__}")
    level: list[Any] = [values]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return values
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _special_float(value: dict[str, Any]) -> Any:
    """Reads `{"__float__": "Infinity"}`, as transformers writes infinity and NaN, which are not JSON."""
    return float(value["__float__"]) if list(value) == ["__float__"] and isinstance(value["__float__"], str) else value


def _reason(error: BaseException) -> str:
    """A library's error as one printable line, since it may quote the files."""
    kind = type(error).__name__
    if kind == "SafetensorError":
        return f"a safetensors file is damaged or truncated: {tame(error, _LONGEST)}"
    text = tame(error, _LONGEST)
    # The text of a KeyError is only the key, so the type is added.
    return text if text and isinstance(error, OSError | ValueError) else f"{kind}: {text}".removesuffix(": ")


def is_plain(text: str) -> bool:
    """Tells whether a text is free of control characters, lone surrogates, and line and paragraph separators.

    Marks of writing direction are allowed, because names in some scripts need them; they are removed for display.
    """
    return not any(unicodedata.category(letter) in _MOVING for letter in text)


_MOVING = {"Cc", "Cs", "Zl", "Zp"}
