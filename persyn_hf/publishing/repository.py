"""A Hub repository that changes in one commit: read, compare, commit on top of what was read, or start over.

Every attempt starts by reading the repository, and files that are already there are not sent again. So after a broken
connection, a concurrent push or a lost response, the next attempt sends only what is still missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from persyn_hf.config import Publish, default_of
from persyn_hf.errors import PublishError

#: Maximum number of files per commit; `huggingface_hub` uses the same maximum for its uploads.
FILES_PER_COMMIT: int = default_of(Publish, "files_per_commit")
ATTEMPTS = 6
CARD, FACTS = "README.md", "persyn.json"
_AGAIN = frozenset((408, 412, 429, 500, 502, 503, 504))
_LONGEST_WAIT = 60.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a repository.

    Args:
        size (`int`): In bytes.
        oid (`str`): SHA-256 of a large file, else git's SHA-1.
        large (`bool`): Whether the file is stored as LFS or Xet, not in git.
    """

    size: int
    oid: str
    large: bool

    def holds(self, content: Path | bytes) -> bool:
        """Returns true if the file has the given content, by size and digest."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size != self.size:
            return False
        start = b"" if self.large else b"blob %d\0" % size
        state = hashlib.new("sha256" if self.large else "sha1", start, usedforsecurity=False)
        if isinstance(content, bytes):
            state.update(content)
        else:
            with open(content, "rb") as file:
                while block := file.read(1 << 20):
                    state.update(block)
        return state.hexdigest() == self.oid


@dataclass(frozen=True)
class Snapshot:
    """State of a repository at the commit that was read.

    Args:
        commit (`str`, *optional*): Commit; `None` if the repository or branch does not exist yet.
        files (`Mapping[str, RemoteFile]`): Files by path.
        texts (`Mapping[str, str]`): Card and facts, if they exist.
        exists (`bool`): Whether the repository exists.
    """

    commit: str | None = None
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    exists: bool = False


@dataclass(frozen=True)
class Content:
    """New content of a repository.

    Args:
        files (`Mapping[str, Path | bytes]`): Files to write, by path; including card and facts.
        stale (`Sequence[str]`): Paths of files to delete.
    """

    files: Mapping[str, Path | bytes]
    stale: Sequence[str] = ()

    def changes(self, snapshot: Snapshot) -> Content:
        """Returns the part of the content that the repository does not have yet."""
        missing = {
            path: content
            for path, content in self.files.items()
            if path not in snapshot.files or not snapshot.files[path].holds(content)
        }
        return Content(missing, [path for path in self.stale if path in snapshot.files and path not in self.files])


@dataclass(frozen=True)
class Pushed:
    """Result of a push to one repository.

    Args:
        repo_id (`str`), repo_type (`str`): Name and type of the repository.
        commit (`str`, *optional*): Commit with the content; `None` in a dry run that would create one.
        url (`str`): URL of the commit, or of the repository.
        changed (`bool`): Whether this push created the commit.
        added, deleted (`tuple[str, ...]`): Written and deleted paths.
        pr_url (`str`, *optional*): URL of the pull request, if `create_pr` was set.
    """

    repo_id: str
    repo_type: str
    commit: str | None
    url: str
    changed: bool
    added: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    pr_url: str | None = None


class Repository:
    """One repository at one branch.

    Args:
        api (`HfApi`): Client of the Hub.
        repo_id (`str`), repo_type (`str`): Name and type of the repository.
        revision (`str`, *optional*): Branch or `refs/pr/N`; default: `main`. A missing branch is created.
        wait (`float`, defaults to 1.0): Seconds before the second attempt; doubled after each attempt.
    """

    def __init__(self, api: Any, repo_id: str, repo_type: str, revision: str | None = None, wait: float = 1.0) -> None:
        self.api = api
        self.repo_id = repo_id
        self.repo_type = repo_type
        self.revision = revision or "main"
        self.wait = wait

    @property
    def name(self) -> str:
        """The repository's name in errors."""
        return f"the {self.repo_type} `{self.repo_id}`"

    @property
    def url(self) -> str:
        """URL of the repository."""
        kind = "datasets/" if self.repo_type == "dataset" else ""
        return f"{self.api.endpoint}/{kind}{self.repo_id}"

    def read(self) -> Snapshot:
        """Reads the commit, then the list of files, card and facts at this commit."""
        return self._trying(self._read, "Reading")

    def update(
        self,
        build: Callable[[Snapshot], Content],
        first: Snapshot,
        *,
        message: str,
        private: bool,
        create_pr: bool = False,
        files_per_commit: int = FILES_PER_COMMIT,
    ) -> Pushed:
        """Writes the content that `build` returns, in one commit, or in none if nothing has changed.

        Args:
            build (`Callable`): Function from the current state to the new content; called again after a concurrent
                push.
            first (`Snapshot`): State that was read before, for the first attempt.
            message (`str`): Commit message.
            private (`bool`): Whether a new repository is private.
            create_pr (`bool`, defaults to `False`): Whether to open a pull request instead.
            files_per_commit (`int`): Maximum number of files per commit. More files need several commits: data first,
                card and facts last, so that the card refers to the old data until all new data is there.

        Raises:
            PublishError: If the push fails; running the same push again resumes it.
        """
        known: list[Snapshot | None] = [first]

        def attempt() -> Pushed:
            snapshot = known.pop() if known else None
            if snapshot is None or snapshot.commit is None:
                snapshot = self._made(snapshot or self._read(), private)
            content = build(snapshot)
            return self._commit(snapshot, content.changes(snapshot), message, create_pr, files_per_commit)

        # A retry after a lost response would open a second pull request.
        return self._trying(attempt, "Pushing", attempts=1 if create_pr else ATTEMPTS)

    def tags(self) -> dict[str, str]:
        """Returns the commit of each tag."""
        refs = self._trying(lambda: self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type), "Reading")
        return {tag.name: tag.target_commit for tag in refs.tags}

    def tag(self, name: str, commit: str) -> None:
        """Tags a commit; an existing tag is not changed."""
        self._trying(
            lambda: self.api.create_tag(
                self.repo_id, tag=name, revision=commit, repo_type=self.repo_type, exist_ok=True
            ),
            "Tagging",
        )

    def _read(self) -> Snapshot:
        from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

        options = {"repo_type": self.repo_type}
        try:
            commit = self.api.repo_info(self.repo_id, revision=self.revision, **options).sha
        except RepositoryNotFoundError:
            return Snapshot()
        except RevisionNotFoundError:
            return Snapshot(exists=True)
        try:
            entries = list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit, **options))
        except EntryNotFoundError:
            entries = []  # a repository without any file
        files = {
            entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.lfs is not None)
            for entry in entries
            if hasattr(entry, "blob_id")
        }
        texts = {}
        for path in (CARD, FACTS):
            if path in files:
                local = self.api.hf_hub_download(self.repo_id, path, revision=commit, **options)
                texts[path] = _read_text(Path(local), f"`{path}` of {self.name}")
        return Snapshot(commit, files, texts, exists=True)

    def _made(self, snapshot: Snapshot, private: bool) -> Snapshot:
        if not snapshot.exists:
            self.api.create_repo(self.repo_id, repo_type=self.repo_type, private=private, exist_ok=True)
            snapshot = self._read()
        if snapshot.commit is None:
            self.api.create_branch(self.repo_id, branch=self.revision, repo_type=self.repo_type, exist_ok=True)
            snapshot = self._read()
        return snapshot

    def _commit(
        self, snapshot: Snapshot, changes: Content, message: str, create_pr: bool, files_per_commit: int
    ) -> Pushed:
        commit = snapshot.commit
        if not changes.files and not changes.stale:
            return Pushed(self.repo_id, self.repo_type, commit, f"{self.url}/commit/{commit}", changed=False)
        revision, pr_url = self.revision, None
        batches = _batches(changes, files_per_commit)
        for number, batch in enumerate(batches, start=1):
            part = f" (part {number} of {len(batches)})" if len(batches) > 1 else ""
            made = self.api.create_commit(
                self.repo_id,
                _operations(batch),
                commit_message=f"{message}{part}",
                repo_type=self.repo_type,
                revision=revision,
                parent_commit=commit,
                create_pr=create_pr and pr_url is None,
            )
            commit = made.oid
            if made.pr_url is not None:
                pr_url, revision = made.pr_url, made.pr_revision
        return Pushed(
            self.repo_id,
            self.repo_type,
            commit,
            f"{self.url}/commit/{commit}",
            changed=True,
            added=tuple(changes.files),
            deleted=tuple(changes.stale),
            pr_url=pr_url,
        )

    def _trying(self, call: Callable[[], Answer], doing: str, attempts: int = ATTEMPTS) -> Answer:
        try:
            return retry(call, attempts, self.wait)
        except failures() as error:
            raise PublishError(f"{doing} {self.name} failed: {explain(error)}") from error


def retry(call: Callable[[], Answer], attempts: int = ATTEMPTS, wait: float = 1.0) -> Answer:
    """Retries a call until it succeeds; a permanent failure is raised at once.

    Args:
        call (`Callable`): Function that sends one or more repeatable requests.
        attempts (`int`): Maximum number of attempts; the error of the last one is raised.
        wait (`float`, defaults to 1.0): Seconds before the second attempt; doubled after each attempt.
    """
    for attempt in range(1, attempts):
        try:
            return call()
        except failures() as error:
            if not _may_succeed_later(error):
                raise
            time.sleep(_pause(error, wait * 2 ** (attempt - 1)))
    return call()


def failures() -> tuple[type[Exception], ...]:
    """Returns the client's exceptions. `RuntimeError` and `ValueError` wrap failed LFS and Xet transfers."""
    import httpx2

    return httpx2.HTTPError, OSError, RuntimeError, ValueError


def explain(error: BaseException, action: str = "push") -> str:
    """Explains an exception of the Hub's client and how to fix it, in one paragraph.

    Args:
        error (`BaseException`): Exception to explain.
        action (`str`, defaults to `"push"`): Name of the action to repeat.
    """
    from huggingface_hub.errors import GatedRepoError, LocalTokenNotFoundError, RepositoryNotFoundError

    status = _status(error)
    text = " ".join(str(_root(error)).split())
    if isinstance(error, LocalTokenNotFoundError):
        return "no token was found; run `hf auth login`, or pass `token`."
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its terms on its page first. {text}"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"the Hub rejects this token; run `hf auth login` again, or pass `token`. {text}"
    if status == 403:
        return f"this token has no write access; create one that has under Settings > Access Tokens. {text}"
    if status == 412:
        return f"concurrent pushes changed the repository every time; run the {action} again when they are done."
    if status == 400 or (status is None and type(_root(error)) is ValueError):
        return text
    return f"{text} Run the same {action} again to resume it."


def _batches(changes: Content, files_per_commit: int) -> list[Content]:
    """Splits changes into commits: one, or several for the data and a last one for card, facts and deletions."""
    if len(changes.files) <= files_per_commit:
        return [changes]
    shown = {path: content for path, content in changes.files.items() if path in (CARD, FACTS)}
    data = [(path, content) for path, content in changes.files.items() if path not in shown]
    size = max(1, files_per_commit)
    parts = [dict(data[start : start + size]) for start in range(0, len(data), size)]
    return [*(Content(part) for part in parts), Content(shown, changes.stale)]


def _operations(changes: Content) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # Deletions first: a user's folder may have the path of a new file.
    return [
        *(CommitOperationDelete(path_in_repo=path, is_folder=False) for path in changes.stale),
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in changes.files.items()),
    ]


def _read_text(path: Path, where: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PublishError(
            f"{where} must be UTF-8 text, got {error.reason} at byte {error.start}; fix it first."
        ) from None


def _root(error: BaseException) -> BaseException:
    """Returns the cause of a failed transfer, which the client wraps."""
    while type(error) in (RuntimeError, ValueError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return getattr(getattr(_root(error), "response", None), "status_code", None)


def _may_succeed_later(error: BaseException) -> bool:
    import httpx2

    root = _root(error)
    status = _status(error)
    if status is not None:
        return status in _AGAIN
    # hf_xet reports a broken connection as a built-in exception.
    return isinstance(root, httpx2.TransportError | ConnectionError | TimeoutError)


def _pause(error: BaseException, usual: float) -> float:
    response = getattr(_root(error), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else usual, _LONGEST_WAIT)
