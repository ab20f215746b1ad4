"""The identity of a model: the Hub commit that a name refers to, or the digest of a local folder.

A name such as `org/model`, or a folder, says where weights are, not which weights they are. Ledger keys, cached map
results and provenance columns need to know which, so every stage resolves a model here first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError

_COMMIT_LENGTH = 40


@dataclass(frozen=True)
class TeacherIdentity:
    """The identity of a teacher's model in the ledger, the stages of a run and the cards.

    Args:
        model (`str`): Model name; empty for a local folder, which its digest identifies.
        revision (`str`): Commit, folder digest, or the configured revision of an endpoint's model.
    """

    model: str
    revision: str


def teacher_identity(teacher: Teacher) -> TeacherIdentity:
    """Resolves a teacher's model: the digest of a folder, the commit of a repository, or an endpoint's settings.

    Raises:
        ConfigError: If a local model cannot be found.
    """
    if teacher.backend == "endpoint":
        return TeacherIdentity(teacher.model, teacher.revision or "")
    revision = resolve_revision(teacher.model, teacher.revision)
    return TeacherIdentity("" if revision.startswith("folder-") else teacher.model, revision)


def resolve_revision(model: str, revision: str | None = None) -> str:
    """Resolves a model name to an identity that changes when its weights do.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository. Ignored for a local folder.

    Returns:
        `str`: The 40-digit commit of a Hub repository, or `folder-` and 32 hex digits for a local folder.

    Raises:
        ConfigError: If there is neither a folder nor a repository (online or in the local cache) of that name.
    """
    if os.path.isdir(model):
        return folder_digest(model)
    if revision is not None and len(revision) == _COMMIT_LENGTH and set(revision) <= set("0123456789abcdef"):
        return revision
    return _hub_commit(model, revision)


def named_identity(name: str) -> str:
    """The digest of a local folder; anything else by its name, so that nothing is asked."""
    return folder_digest(name) if os.path.isdir(name) else name


def folder_digest(folder: str | os.PathLike[str]) -> str:
    """Digests a local checkpoint: the names and contents of its files, without hidden files and `.md` cards.

    Each process caches digests by the files' sizes and modification times, so repeated calls are cheap and a replaced
    checkpoint is detected.
    """
    files = []
    for path in sorted(Path(folder).rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in relative.parts):
            stat = path.stat()
            files.append((str(path), relative.as_posix(), stat.st_size, stat.st_mtime_ns))
    return _digest_files(tuple(files))


@lru_cache(maxsize=64)
def _digest_files(files: tuple[tuple[str, str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, relative, size, _ in files:
        digest.update(f"{relative}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"folder-{digest.hexdigest()[:32]}"


def _hub_commit(model: str, revision: str | None) -> str:
    import httpx2
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        sha = HfApi().model_info(model, revision=revision).sha
        if sha:
            # Loading by commit records no branch or tag in the cache; this does, so that the name works offline too.
            with contextlib.suppress(EntryNotFoundError):
                hf_hub_download(model, "config.json", revision=revision)
            return sha
        reason = "the Hub reports no commit for it"
    except HFValidationError as error:
        raise ConfigError(f"`{model}` is neither a local folder nor a Hub repository id: {error}") from error
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError) as error:
        reason = f"{type(error).__name__}: {error}"
    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    raise ConfigError(
        f"Cannot resolve the model `{model}`: it is not a local folder, it is not in the local cache, and the request "
        f"to the Hub failed ({reason.splitlines()[0]})."
    )
