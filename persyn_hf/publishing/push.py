"""Push of one run: checks everything, then pushes the router, then the dataset that cites it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from persyn_hf.errors import PublishError
from persyn_hf.publishing import checks
from persyn_hf.publishing.contents import WEIGHTS, DatasetContent, RouterContent
from persyn_hf.publishing.leaks import Leak, find_in_tables, find_in_text, find_in_values
from persyn_hf.publishing.local_paths import is_description, public_files
from persyn_hf.publishing.metadata import renew_card, require_renewable, split_card
from persyn_hf.publishing.parquet import DEFAULT_CONFIG
from persyn_hf.publishing.repository import (
    CARD,
    FACTS,
    Content,
    Pushed,
    Repository,
    Snapshot,
    explain,
    failures,
    retry,
)
from persyn_hf.version import __version__

_COLLECTION_SLUG = re.compile(r"[^/\s]+/[^/\s]+-[0-9a-f]{24}")


@dataclass(frozen=True)
class Published:
    """Result of a push.

    Args:
        dataset (`Pushed`): Push to the dataset's repository.
        router (`Pushed`, *optional*): Push to the router's repository.
        folder (`Path`, *optional*): Folder of a dry run, with `dataset/` and `router/` as they would be sent; only the
            router's new commit, which the dataset's card cites, is unknown.
        collection (`str`, *optional*): Slug of the collection of both repositories.
    """

    dataset: Pushed
    router: Pushed | None = None
    folder: Path | None = None
    collection: str | None = None

    @property
    def dataset_url(self) -> str:
        """URL of the dataset's commit."""
        return self.dataset.url

    @property
    def router_url(self) -> str | None:
        """URL of the router's commit."""
        return self.router.url if self.router is not None else None


class Push:
    """One push: the new content of both repositories, and their state when they were read."""

    def __init__(self, api: Any, dataset: DatasetContent, repository: Repository) -> None:
        self.api = api
        self.dataset = dataset
        self.repository = repository
        self.router: RouterContent | None = None
        self.router_repository: Repository | None = None
        self.before = Snapshot()
        self.router_before = Snapshot()
        self.changes = self.router_changes = Content({})

    def check(self, tags: Sequence[str], allow_secrets: bool, allowed: Collection[str] = ()) -> None:
        """Checks everything that could stop the push later; nothing is sent.

        Args:
            tags (`Sequence[str]`): Git tags to set.
            allow_secrets (`bool`): Whether to skip the search for keys and tokens.
            allowed (`Collection[str]`): Fingerprints of findings that are not secrets.
        """
        self.before = self.repository.read()
        checks.require_access(self.repository, self.before)
        if self.router is not None and self.router_repository is not None:
            self.router_before = self.router_repository.read()
            checks.require_access(self.router_repository, self.router_before)
            checks.require_free_name(self.router_repository, self.router_before, "dataset", self.dataset.location)
            self.dataset.provenance = replace(self.dataset.provenance, router_revision=self.router_before.commit)
        other = self.router.location if self.router is not None else None
        checks.require_free_name(self.repository, self.before, "model", other)
        self._check_cards()
        if not allow_secrets:
            checks.require_no_leaks(self._leaks(allowed))
        if self.router is not None and self.router_repository is not None:
            self.router_changes = self.router.build(self.router_before).changes(self.router_before)
            checks.require_free_tags(self.router_repository, self.router_before, tags, _any(self.router_changes))
        self.changes = self.dataset.build(self.before).changes(self.before)
        changes = _any(self.changes) or _any(self.router_changes)
        checks.require_free_tags(self.repository, self.before, tags, changes)

    def send(self, options: Mapping[str, Any], tags: Sequence[str]) -> Published:
        """Pushes the router, then the dataset that cites it, then the tags."""
        router = None
        if self.router is not None and self.router_repository is not None:
            router = self.router_repository.update(self.router.build, self.router_before, **options)
            self.dataset.provenance = replace(self.dataset.provenance, router_revision=router.commit)
        dataset = self.repository.update(self.dataset.build, self.before, **options)
        for tag in tags:
            for repository, done in ((self.router_repository, router), (self.repository, dataset)):
                if repository is not None and done is not None and done.commit is not None:
                    repository.tag(tag, done.commit)
        return Published(dataset, router)

    def write(self, folder: Path) -> Published:
        """Writes both repositories' files into a folder, as they would be sent."""
        router = None
        write_content(self.dataset.build(self.before), folder / "dataset")
        if self.router is not None and self.router_repository is not None:
            write_content(self.router.build(self.router_before), folder / "router")
            router = _planned(self.router_repository, self.router_before, self.router_changes)
        return Published(_planned(self.repository, self.before, self.changes), router, folder)

    def _check_cards(self) -> None:
        """Renders and merges both cards, and asks the Hub to validate changed ones."""
        card = self.dataset.card(self.before)
        if card != self.before.texts.get(CARD):
            checks.require_valid_card(self.repository, card)
        if self.router is not None and self.router_repository is not None:
            card = self.router.card(self.router_before)
            if card != self.router_before.texts.get(CARD):
                checks.require_valid_card(self.router_repository, card)

    def _leaks(self, allowed: Collection[str]) -> list[Leak]:
        """Finds secrets; rows that the repository already has were searched when they were pushed."""
        return find_in_dataset(self.dataset, allowed, rows=not self.dataset.are_there(self.before))


def find_in_dataset(dataset: DatasetContent, allowed: Collection[str], rows: bool = True) -> list[Leak]:
    """Finds secrets in the new content of a dataset's and its router's repositories.

    Args:
        dataset (`DatasetContent`): Content of the dataset repository; its provenance includes all facts in both cards
            and in the router's `config.json`.
        allowed (`Collection[str]`): Fingerprints of findings that are not secrets.
        rows (`bool`, defaults to `True`): Whether to search the rows too.
    """
    leaks = find_in_values(dataset.provenance.to_dict(), f"`{FACTS}` and the cards", allowed)
    if rows:
        tables = {split: shards.data for split, shards in dataset.shards.items()}
        leaks += find_in_tables(tables, allowed=allowed)
    return leaks


def write_content(content: Content, folder: Path) -> None:
    """Writes the files of a repository into a folder, except those that are already in place."""
    for path, what in content.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(what, bytes):
            target.write_bytes(what)
        elif what != target:
            shutil.copyfile(what, target)


def collect(api: Any, collection: str, done: Published, private: bool) -> str:
    """Adds both repositories to a collection, which keeps its other entries."""
    owner = done.dataset.repo_id.split("/")[0]
    try:
        slug = collection
        if _COLLECTION_SLUG.fullmatch(collection) is None:
            slug = retry(
                lambda: api.create_collection(collection, namespace=owner, private=private, exists_ok=True)
            ).slug
        for pushed in (done.router, done.dataset):
            if pushed is not None:
                retry(partial(api.add_collection_item, slug, pushed.repo_id, pushed.repo_type, exists_ok=True))
    except failures() as error:
        raise PublishError(
            f"The push succeeded, but adding it to the collection `{collection}` failed: {explain(error)}"
        ) from error
    return slug


def _planned(repository: Repository, before: Snapshot, changes: Content) -> Pushed:
    commit = None if _any(changes) else before.commit
    return Pushed(
        repository.repo_id,
        repository.repo_type,
        commit,
        repository.url,
        _any(changes),
        added=tuple(changes.files),
        deleted=tuple(changes.stale),
    )


def _any(changes: Content) -> bool:
    return bool(changes.files or changes.stale)


_LEFT_OUT = "checkpoints"


class StudentPush:
    """The push of one student.

    Args:
        repo_id (`str`): Model repository, such as `me/my-student`.
        private (`bool`, defaults to `True`): Whether a new repository is private.
        token (`str`, *optional*): Hugging Face token; default: the one stored by `hf auth login`.
        allow_findings (`Collection[str]`): Fingerprints of texts that look like a key but are not.
    """

    def __init__(
        self, repo_id: str, private: bool = True, token: str | None = None, allow_findings: Collection[str] = ()
    ) -> None:
        from huggingface_hub import HfApi

        checks.require_names(repo_id, None, DEFAULT_CONFIG)
        api = HfApi(token=token, library_name="persyn_hf", library_version=__version__)
        self._repository = Repository(api, repo_id, "model")
        self._private = private
        self._allowed = allow_findings

    def check(self) -> None:
        """Checks the token and the existing card before the training.

        Raises:
            PublishError: If the repository is not writable, or its card cannot be read.
        """
        before = self._repository.read()
        checks.require_access(self._repository, before)
        require_renewable(before.texts.get(CARD, ""), self._card_name)

    def send(self, folder: Path, card: str) -> Pushed:
        """Pushes the folder's files to the repository; text that a user wrote in the card is kept.

        Args:
            folder (`Path`): Folder of the student's weights and tokenizer; `checkpoints/` is left out.
            card (`str`): New generated card.

        Raises:
            PublishError: If some text looks like a secret, or the push fails; running it again resumes it.
        """
        weights = public_files(
            {
                path.relative_to(folder).as_posix(): path
                for path in sorted(folder.rglob("*"))
                if path.is_file() and path.relative_to(folder).parts[0] not in (_LEFT_OUT, CARD)
            }
        )
        leaks = find_in_text(card.replace("\\_", "_"), CARD, self._allowed)
        for name, path in weights.items():
            if is_description(name):
                text = path if isinstance(path, bytes) else path.read_bytes()
                leaks += find_in_text(text.decode("utf-8", "replace"), name, self._allowed)
        checks.require_no_leaks(leaks)
        metadata, body = split_card(card)
        asked = frozenset({"license"} & metadata.keys())

        def build(snapshot: Snapshot) -> Content:
            stale = [path for path in snapshot.files if WEIGHTS.fullmatch(path) and path not in weights]
            renewed = renew_card(snapshot.texts.get(CARD, ""), metadata, body, self._card_name, asked)
            return Content({**weights, CARD: renewed.encode()}, stale)

        return self._repository.update(
            build, self._repository.read(), message="Student fine-tuned with persyn-hf", private=self._private
        )

    @property
    def _card_name(self) -> str:
        return f"The card of {self._repository.name}"
