"""A model's files: where they are, who speaks in errors about them, and the plain JSON of its configuration."""

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

#: Bytes of a `config.json` that is read. One with 21,000 named labels has 1.5 million.
_LARGEST = 16 * 2**20
#: Levels of lists and objects in a `config.json`; published ones have about five.
_DEEPEST = 64
#: Longest excerpt of an error.
_LONGEST = 500


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, and how errors speak of them.

    Args:
        name (`str`): A Hub repository id or a local folder.
        revision (`str`, *optional*): What [`identity`] resolved; a folder's digest pins nothing further.
        role (`str`, defaults to `"The model"`): Begins every error: "The student".
        error (`type[PersynError]`, defaults to `ConfigError`): What a damaged file raises.
        local_only (`bool`, defaults to `False`): Look in the folder or the local cache only.
    """

    name: str
    revision: str | None = None
    role: str = "The model"
    error: type[PersynError] = ConfigError
    local_only: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether it is a local folder, which has no revisions."""
        return os.path.isdir(self.name)

    @property
    def commit(self) -> str | None:
        """The revision to ask the Hub for."""
        return None if self.is_folder or (self.revision or "").startswith("folder-") else self.revision

    def wrong(self, problem: str) -> PersynError:
        """The error that says what is wrong with it: "The student `org/student`" and the problem."""
        return self.error(tame_lines(f"{self.role} `{self.name}`{problem}"))

    def find(self, file: str) -> Path | None:
        """A file of the model, downloaded where need be; `None` where the model has none of that name."""
        if self.is_folder:
            path = Path(self.name) / file
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.name, file, revision=self.commit, local_files_only=self.local_only))
        except EntryNotFoundError:  # also where it is not in the cache and cannot be asked for
            return None


@contextmanager
def reading(files: ModelFiles, what: str) -> Iterator[None]:
    """Turns whatever goes wrong while a model's files are read into the one error of [`ModelFiles`].

    The files are a stranger's, and transformers, tokenizers and safetensors check little: a damaged one raises
    anything from a KeyError to a RecursionError, and tokenizers' Rust code a PanicException, which is no `Exception`.
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
        PersynError: Of the kind that `files.error` names, if there is none, or it is no JSON object, larger than
            16 MiB or nested deeper than 64 levels.
    """
    with reading(files, f"its `{CONFIG_FILE}`"):
        path = files.find(CONFIG_FILE)
        if path is None:
            where = "in the folder" if files.is_folder else "on the Hub, or in the local cache where the Hub is silent"
            raise files.wrong(f": a model of transformers has a `{CONFIG_FILE}`; there is none {where}.")
        return plain_object(path)


def plain_object(path: Path) -> dict[str, Any]:
    """A small, flat enough JSON object.

    Raises:
        ValueError: If it is something else.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; at most {_LARGEST:,} are read")
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
    """transformers writes infinity and NaN, which are not JSON, as `{"__float__": "Infinity"}`."""
    return float(value["__float__"]) if list(value) == ["__float__"] and isinstance(value["__float__"], str) else value


def _reason(error: BaseException) -> str:
    """An error of a library as one printable line: it may quote the files."""
    kind = type(error).__name__
    if kind == "SafetensorError":
        return f"a safetensors file is damaged or truncated: {tame(error, _LONGEST)}"
    text = tame(error, _LONGEST)
    # A KeyError's text is the key alone; the kind says what it means.
    return text if text and isinstance(error, OSError | ValueError) else f"{kind}: {text}".removesuffix(": ")


def is_plain(text: str) -> bool:
    """Whether text holds no control character, lone surrogate, or line or paragraph separator.

    Marks of the direction of writing belong to names in some scripts; what shows a name takes them out.
    """
    return not any(unicodedata.category(letter) in _MOVING for letter in text)


_MOVING = {"Cc", "Cs", "Zl", "Zp"}
