"""Reads a published dataset back, with its router and its provenance."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import PublishError
from persyn_hf.publishing.contents import read_facts
from persyn_hf.publishing.provenance import Provenance
from persyn_hf.publishing.repository import FACTS, explain, failures, retry
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from persyn_hf.routing.router import PersynRouter


@dataclass(frozen=True)
class Personalized:
    """A published dataset with its router and provenance.

    Args:
        dataset (`Dataset` or `DatasetDict`): Rows; a `DatasetDict` if there are several splits.
        router (`PersynRouter`, *optional*): Router at the commit that the dataset cites; `None` if the dataset names
            none, or with `with_router=False`.
        provenance (`Provenance`): Teachers, settings and held-out results.
        revision (`str`, *optional*): Commit of the dataset; `None` for a folder.
    """

    dataset: Dataset | DatasetDict
    router: PersynRouter | None
    provenance: Provenance
    revision: str | None


def load_personalized(
    repo_id: str | os.PathLike[str],
    config_name: str | None = None,
    *,
    revision: str | None = None,
    with_router: bool = True,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Personalized:
    """Loads a dataset that [`push_personalized`] pushed, or that [`save_personalized`] or `persyn-hf pull` wrote.

    Args:
        repo_id (`str` or `PathLike`): Dataset repository, or folder with `dataset/` and `router/`.
        config_name (`str`, *optional*): Configuration; required if the dataset has several.
        revision (`str`, *optional*): Branch, tag or commit of the dataset repository.
        with_router (`bool`, defaults to `True`): Whether to load the router.
        token (`str`, *optional*): Hugging Face token; default: the one stored by `hf auth login`.
        cache_dir (`str` or `PathLike`, *optional*): Cache folder of `datasets`.

    Raises:
        PublishError: If the dataset or its router is missing, gated or damaged.

    Example:
        >>> loaded = load_personalized("me/my-student-data", revision="v1.0")  # doctest: +SKIP
        >>> loaded.provenance.student  # doctest: +SKIP
        'org/student'
    """
    from datasets import load_dataset

    if os.path.isdir(repo_id):
        return _load_folder(Path(repo_id), config_name, with_router, cache_dir)
    name = os.fspath(repo_id)
    api = _api(token)
    where = f"the dataset `{name}`"
    try:
        commit = retry(lambda: api.dataset_info(name, revision=revision)).sha
        facts = Path(retry(lambda: api.hf_hub_download(name, FACTS, repo_type="dataset", revision=commit)))
    except failures() as error:
        raise PublishError(f"Loading {where} failed: {_missing(error, where, 'load')}") from error
    config_name, provenance = _choose(facts, config_name, where)
    try:
        splits = load_dataset(name, config_name, revision=commit, token=token, cache_dir=cache_dir)
    except failures() as error:
        raise PublishError(f"Loading {where} failed: {explain(error, 'load')}") from error
    router = None
    if with_router and provenance.router_repo_id is not None:
        _require_router(api, provenance, where)
        router = _load_router(provenance.router_repo_id, provenance.router_revision, where)
    return Personalized(_only(splits), router, provenance, commit)


def pull(
    repo_id: str,
    folder: str | os.PathLike[str],
    *,
    revision: str | None = None,
    with_router: bool = True,
    token: str | None = None,
) -> Path:
    """Downloads a published dataset and its router into a folder, with the layout of [`save_personalized`].

    Args:
        repo_id (`str`): Dataset repository.
        folder (`str` or `PathLike`): Target folder, for `dataset/` and `router/`.
        revision (`str`, *optional*): Branch, tag or commit of the dataset repository.
        with_router (`bool`, defaults to `True`): Whether to download the router, at the commit that the dataset cites.
        token (`str`, *optional*): Hugging Face token; default: the one stored by `hf auth login`.

    Returns:
        `Path`: The target folder.

    Raises:
        PublishError: If the dataset or its router is missing or gated.
    """
    api = _api(token)
    target = Path(folder)
    where = f"the dataset `{repo_id}`"
    try:
        commit = retry(lambda: api.dataset_info(repo_id, revision=revision)).sha
        retry(
            lambda: api.snapshot_download(repo_id, repo_type="dataset", revision=commit, local_dir=target / "dataset")
        )
    except failures() as error:
        raise PublishError(f"Pulling {where} failed: {_missing(error, where)}") from error
    facts = _read(target / "dataset" / FACTS, where)
    routers = {(p.router_repo_id, p.router_revision) for p in facts.values() if p.router_repo_id is not None}
    if not with_router or not routers:
        return target
    if len(routers) > 1:
        named = ", ".join(sorted(f"`{router}`" for router, _ in routers))
        raise PublishError(
            f"Expected configurations with one router in {where}, got several ({named}); pull with "
            "`with_router=False` and load each configuration with `load_personalized`."
        )
    provenance = next(p for p in facts.values() if p.router_repo_id is not None)
    _require_router(api, provenance, where)
    try:
        retry(
            lambda: api.snapshot_download(
                provenance.router_repo_id, revision=provenance.router_revision, local_dir=target / "router"
            )
        )
    except failures() as error:
        said = explain(error, "pull")
        raise PublishError(f"Pulling the router `{provenance.router_repo_id}` failed: {said}") from error
    return target


def read_provenance(folder: str | os.PathLike[str]) -> dict[str, Provenance]:
    """Reads the provenance of every configuration in a folder that [`save_personalized`] or [`pull`] wrote.

    Raises:
        PublishError: If the folder has no provenance.
    """
    return _read(Path(folder) / "dataset" / FACTS, f"the folder {folder}")


def _load_folder(
    folder: Path, config_name: str | None, with_router: bool, cache_dir: str | os.PathLike[str] | None
) -> Personalized:
    from datasets import load_dataset

    config_name, provenance = _choose(folder / "dataset" / FACTS, config_name, f"the folder {folder}")
    splits = load_dataset(str(folder / "dataset"), config_name, cache_dir=cache_dir)
    router = None
    if with_router and (folder / "router").is_dir():
        router = _load_router(str(folder / "router"), None, f"the folder {folder}")
    return Personalized(_only(splits), router, provenance, None)


def _load_router(name: str, revision: str | None, where: str) -> PersynRouter:
    from persyn_hf.errors import ConfigError, RouterError
    from persyn_hf.routing.router import PersynRouter

    try:
        return PersynRouter.from_pretrained(name, revision=revision)
    except (RouterError, ConfigError) as error:
        raise PublishError(
            f"The router `{name}` of {where} cannot be loaded: {error} To load without it: `with_router=False`."
        ) from error


def _require_router(api: Any, provenance: Provenance, where: str) -> None:
    """Checks access to the router before it is loaded, to distinguish a gated router from a missing one."""
    try:
        retry(lambda: api.auth_check(provenance.router_repo_id))
        retry(lambda: api.model_info(provenance.router_repo_id, revision=provenance.router_revision))
    except failures() as error:
        raise PublishError(
            f"{where[0].upper()}{where[1:]} names the router `{provenance.router_repo_id}` at "
            f"{provenance.router_revision}: {_missing(error, 'the router')} To load without it: `with_router=False`."
        ) from error


def _missing(error: BaseException, what: str, action: str = "pull") -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated; request access on its page and accept its terms."
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the repository does not exist, or this token has no access to it."
    if isinstance(error, errors.RevisionNotFoundError):
        return "the revision does not exist."
    if isinstance(error, errors.EntryNotFoundError):
        return f"{what} has no `{FACTS}`, so persyn-hf did not push it; load its rows with `datasets.load_dataset`."
    return explain(error, action)


def _choose(facts: Path, config_name: str | None, where: str) -> tuple[str, Provenance]:
    known = _read(facts, where)
    if config_name is None and len(known) == 1:
        config_name = next(iter(known))
    if config_name not in known:
        raise PublishError(
            f"`config_name` must be one of the configurations of {where}: {', '.join(known)}; got {config_name!r}."
        )
    return config_name, known[config_name]


def _read(facts: Path, where: str) -> dict[str, Provenance]:
    if not facts.is_file():
        raise PublishError(f"{where} has no `{FACTS}`, so persyn-hf did not write it.")
    return read_facts(facts.read_text(encoding="utf-8"), f"`{FACTS}` of {where}")


def _only(splits: Any) -> Any:
    """Returns the split of a dataset that has only one, else the whole dataset."""
    return next(iter(splits.values())) if len(splits) == 1 else splits


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="persyn_hf", library_version=__version__)
