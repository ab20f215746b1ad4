"""Removal of local paths from published text: a local path is shown by its last part, a Hub id is kept."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_ABSOLUTE = re.compile(r"(?:file:/*)?(?:/|~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\)[^\n]*|file:[^\n]*")
_FILE = re.compile(
    r"\.(?:jsonl?|csv|tsv|parquet|arrow|txt|ya?ml|toml|py|gguf|safetensors|bin|pt|gz|zst|bz2|xz|zip|jinja2?|sqlite)$",
    re.IGNORECASE,
)
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?")
_ADDRESS = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+://")
#: Keys whose values are kept: texts sent to a model, and names of teachers, which are in the rows too.
_KEPT = frozenset(("system_prompt", "stop", "name", "fallback", "id2label", "label2id"))
#: Vocabulary files, which may contain any text.
_VOCABULARIES = frozenset(
    ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
)
_LARGEST = 2_000_000  # bytes of a file that describes a model


def public_name(name: str) -> str:
    """Returns the name of a model or file without local folders.

    Args:
        name (`str`): Hub id, URL, or path of Linux, macOS or Windows; any other text is returned unchanged.

    Example:
        >>> [public_name(name) for name in ("/home/alice/secret/model", "data/p.jsonl", "org/model")]
        ['model', 'p.jsonl', 'org/model']
    """
    if not _is_local(name):
        return name
    parts = [part for part in re.split(r"[/\\]+", name.strip()) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "."


def without_local_paths(value: Any) -> Any:
    """Replaces every local path in plain nested values by its last part.

    System prompts, stop strings and names of teachers are kept.
    """
    if isinstance(value, str):
        return public_name(value)
    if isinstance(value, Mapping):
        return {key: part if key in _KEPT else without_local_paths(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [without_local_paths(part) for part in value]
    return value


def is_description(path: str) -> bool:
    """Returns true for a checkpoint's descriptive text files, false for weights and vocabularies."""
    name = path.rsplit("/", 1)[-1]
    return name not in _VOCABULARIES and name.endswith((".json", ".txt", ".md", ".jinja", ".yaml", ".yml", ".py"))


def public_files(files: Mapping[str, Path]) -> dict[str, Path | bytes]:
    """Returns the files of a checkpoint, with local paths removed from JSON files.

    Args:
        files (`Mapping[str, Path]`): Local files by path in the repository; they are not changed.
    """
    return {name: _public_content(name, path) for name, path in files.items()}


def _public_content(name: str, path: Path) -> Path | bytes:
    if not (is_description(name) and name.endswith(".json")) or path.stat().st_size > _LARGEST:
        return path
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        return path
    public = without_local_paths(value)
    return path if public == value else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def _is_local(name: str) -> bool:
    if "\n" in name or not name.strip() or _ADDRESS.match(name):
        return False
    if _ABSOLUTE.fullmatch(name.strip()):
        return len(re.findall(r"[/\\]+[^/\\]", name)) > 1 or name.startswith(("~", ".", "file:")) or _exists(name)
    if not re.search(r"[/\\]", name) or (" " in name.strip("/\\") and not _exists(name)):
        return False
    return _exists(name) or (_HUB_ID.fullmatch(name) is None and _looks_like_folders(name)) or bool(_FILE.search(name))


def _looks_like_folders(name: str) -> bool:
    """Returns true for a relative path of plain names, such as `runs/a/b` or `data\\\\prompts`."""
    return re.fullmatch(r"[\w.*?\[\]-]+(?:[/\\][\w.*?\[\]-]+)+", name) is not None


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a path, or contains a null byte
        return False
