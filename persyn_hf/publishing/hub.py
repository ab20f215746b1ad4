"""Writes the personalised dataset and the router with their cards into folders, and folders to the Hub."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from persyn_hf import __version__, columns
from persyn_hf.errors import PublishError
from persyn_hf.publishing import cards
from persyn_hf.publishing.personalize import count_kept, personalize
from persyn_hf.publishing.plots import plot_run
from persyn_hf.publishing.provenance import gather

if TYPE_CHECKING:
    from datasets import Dataset

SHARD_BYTES = 500_000_000


class Router(Protocol):
    """What publishing needs of a router: its `persyn` block and a way to save it."""

    @property
    def metadata(self) -> dict[str, Any]:
        """The `persyn` block of its `config.json`."""
        ...

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Any:
        """Writes the stock checkpoint."""
        ...


@dataclass(frozen=True)
class Published:
    """Where a push went.

    Args:
        dataset_url (`str`): The dataset's commit.
        router_url (`str`, *optional*): The router's commit.
    """

    dataset_url: str
    router_url: str | None = None


def save_personalized(
    data: Dataset,
    folder: str | os.PathLike[str],
    *,
    router: Router | None = None,
    location: str | None = None,
    router_location: str | None = None,
    license: str | None = None,
    language: tuple[str, ...] = (),
    keep_truncated: bool = False,
    run: dict[str, Any] | None = None,
) -> Path:
    """Writes what [`push_personalized`] pushes: Parquet, card and plot, and the router's checkpoint with its card.

    Args:
        data (`Dataset`): The routed answers, or the personalised table made of them.
        folder (`str` or `PathLike`): Gets `dataset/` and, with a router, `router/`. Each replaces what was there.
        router (`PersynRouter`, *optional*): Saved beside the dataset and described in its card.
        location, router_location (`str`, *optional*): What the cards' snippets load; default: the folders themselves.
        license (`str`, *optional*), language (`tuple[str, ...]`): Hub metadata.
        keep_truncated (`bool`, defaults to `False`): See [`personalize`].
        run (`dict`, *optional*): More of [`Provenance`]: `generations`, `generations_all`, `prompts_source` …

    Returns:
        `Path`: The folder.
    """
    target = Path(folder)
    facts = dict(run or {})
    if not _is_personalized(data):
        kept = count_kept(data, keep_truncated)
        facts["dropped"] = {
            "the teacher failed": kept.failed,
            "cut by max_tokens": kept.truncated,
            "no text": kept.empty,
        }
        data = personalize(data, keep_truncated)
    provenance = gather(data, router.metadata if router else None, **facts)
    dataset_at = location or str(target / "dataset")
    router_at = (router_location or str(target / "router")) if router else None
    common: dict[str, Any] = {"license": license, "language": language}
    with _replacing(target / "dataset") as staged:
        pattern = _write_shards(data, staged / "data")
        plot_run(provenance, staged / cards.PLOT_FILE)
        card = cards.dataset_card(
            provenance, location=dataset_at, router_location=router_at, data_files=pattern, **common
        )
        (staged / "README.md").write_text(card, encoding="utf-8")
    if router is not None and router_at is not None:
        with _replacing(target / "router") as staged:
            router.save_pretrained(staged)
            plot_run(provenance, staged / cards.PLOT_FILE)
            card = cards.router_card(provenance, location=router_at, dataset_location=dataset_at, **common)
            (staged / "README.md").write_text(card, encoding="utf-8")
    return target


def push_personalized(
    data: Dataset,
    repo_id: str,
    *,
    router: Router | None = None,
    router_repo_id: str | None = None,
    private: bool = True,
    token: str | None = None,
    license: str | None = None,
    language: tuple[str, ...] = (),
    keep_truncated: bool = False,
    run: dict[str, Any] | None = None,
) -> Published:
    """Pushes the personalised dataset, and the router where one is named, to the Hub with generated cards.

    The router goes first; each repository changes in one upload. Repositories are private unless they exist already.

    Args:
        data (`Dataset`): The routed answers, or the personalised table made of them.
        repo_id (`str`): The dataset repository.
        router (`PersynRouter`, *optional*): Described in the dataset's card; pushed with `router_repo_id`.
        router_repo_id (`str`, *optional*): The router's repository; needs `router`.
        private (`bool`, defaults to `True`): Visibility of new repositories.
        token (`str`, *optional*): Defaults to the one that `hf auth login` stored.
        license, language, keep_truncated, run: As in [`save_personalized`].

    Raises:
        PublishError: If a repository cannot be created or written to.
    """
    from huggingface_hub import HfApi

    if router_repo_id is not None and router is None:
        raise PublishError("`router_repo_id` needs `router`: give the trained router that is to be pushed there.")
    api = HfApi(token=token, library_name="persyn_hf", library_version=__version__)
    with tempfile.TemporaryDirectory(prefix="persyn-push-") as scratch:
        folder = save_personalized(
            data, scratch, router=router, location=repo_id, router_location=router_repo_id, license=license,
            language=language, keep_truncated=keep_truncated, run=run,
        )  # fmt: skip
        router_url = None
        if router_repo_id is not None:
            router_url = _upload(api, folder / "router", router_repo_id, "model", private)
        return Published(_upload(api, folder / "dataset", repo_id, "dataset", private), router_url)


def _upload(api: Any, folder: Path, repo_id: str, repo_type: str, private: bool) -> str:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo_id, repo_type=repo_type, commit_message="Push with persyn-hf",
            delete_patterns=["data/*.parquet"] if repo_type == "dataset" else None,
        )  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, httpx2.HTTPError) as error:
        raise PublishError(f"Pushing the {repo_type} `{repo_id}` failed: {error}") from error
    return str(commit.commit_url)


def _is_personalized(data: Dataset) -> bool:
    columns.require_columns(data.column_names, (columns.PROMPT, columns.COMPLETION, columns.TEACHER), "push")
    return getattr(data.features[columns.COMPLETION], "dtype", None) != "string"


def _write_shards(data: Dataset, folder: Path) -> str:
    """Writes Parquet shards of about 500 MB of Arrow data, at least one; returns the pattern that finds them.

    The names end in a digest of the contents. `load_dataset` keys its cache of a local folder by the folder's last
    name and the card's patterns (datasets 5.2), so under plain names one run's data would be served for another's.
    """
    folder.mkdir(parents=True)
    size = data._estimate_nbytes()  # the estimate that `Dataset.push_to_hub` uses; there is no public name for it
    count = max(1, min(len(data), -(-size // SHARD_BYTES)))
    digest = hashlib.sha256()
    shards = [folder / f"train-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
    for index, path in enumerate(shards):
        data.shard(count, index, contiguous=True).to_parquet(path)
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    mark = digest.hexdigest()[:16]
    for path in shards:
        path.rename(path.with_name(f"{path.stem}-{mark}.parquet"))
    return f"{folder.name}/train-*-{mark}.parquet"


class _replacing:
    """Fills a folder beside the target and puts it in place at the end: a reader sees the old one or the new one."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.staged = target.with_name(f".{target.name}.staged")

    def __enter__(self) -> Path:
        shutil.rmtree(self.staged, ignore_errors=True)
        self.staged.mkdir(parents=True)
        return self.staged

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            if self.target.exists():
                shutil.rmtree(self.target)
            self.staged.rename(self.target)
        else:
            shutil.rmtree(self.staged)
