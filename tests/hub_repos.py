"""What the tests' Hub holds: repositories with commits, branches, tags and pull requests, and large files by hash."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = (".parquet", ".safetensors", ".png")
EMPTY = "0" * 40


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes, or the SHA-256 and size of a large one."""

    content: bytes | None
    sha256: str = ""
    size: int = 0

    @property
    def length(self) -> int:
        return self.size if self.content is None else len(self.content)

    @property
    def oid(self) -> str:
        """What the Hub calls `oid`: git's hash of the file, or of the pointer to a large one."""
        content = self.pointer if self.content is None else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()


Tree = dict[str, File]


@dataclass
class Repo:
    kind: str
    name: str
    private: bool
    gated: bool = False
    trees: dict[str, Tree] = field(default_factory=dict)
    log: list[tuple[str, str, str]] = field(default_factory=list)  # commit, branch, message
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.branches:
            tree = {".gitattributes": File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n")}
            self.branches["main"] = self._store(tree, EMPTY, "main", "initial commit")

    def resolve(self, revision: str) -> str | None:
        """The commit of a branch, a tag, a pull request or a commit."""
        for known in (self.branches, self.tags):
            if revision in known:
                return known[revision]
        return revision if revision in self.trees else None

    @property
    def sha(self) -> str:
        return self.branches["main"]

    @property
    def files(self) -> Tree:
        return self.trees[self.sha]

    def commits(self, branch: str = "main") -> list[str]:
        """Commits made on a branch, oldest first; the first commit of a repository is not counted."""
        return [commit for commit, where, _ in self.log[1:] if where == branch]

    def messages(self, branch: str = "main") -> list[str]:
        return [message for _, where, message in self.log[1:] if where == branch]

    def text(self, path: str, branch: str = "main") -> str:
        content = self.trees[self.branches[branch]][path].content
        assert content is not None, f"{path} is a large file"
        return content.decode()

    def write(self, branch: str = "main", message: str = "by a person", **files: str | bytes | None) -> str:
        """Commits as a person would on the website; `None` deletes. Keys are paths with `__` for `/`."""
        tree = dict(self.trees[self.branches[branch]])
        for name, content in files.items():
            path = "README.md" if name == "readme" else name.replace("__", "/")
            if content is None:
                tree.pop(path)
            else:
                tree[path] = File(content.encode() if isinstance(content, str) else content)
        return self.advance(tree, branch, message)

    def advance(self, tree: Tree, branch: str, message: str) -> str:
        self.branches[branch] = self._store(tree, self.branches[branch], branch, message)
        return self.branches[branch]

    def _store(self, tree: Tree, parent: str, branch: str, message: str) -> str:
        listing = "".join(f"{path} {file.oid}\n" for path, file in sorted(tree.items()))
        commit = hashlib.sha1(f"{parent}\n{message}\n{len(self.log)}\n{listing}".encode()).hexdigest()
        self.trees[commit] = tree
        self.log.append((commit, branch, message))
        return commit


class CommitError(Exception):
    """A commit that the Hub refuses: status, message, error code."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def apply_commit(
    repo: Repo, revision: str, lines: list[dict[str, Any]], create_pr: bool, is_there: Callable[[str], bool]
) -> tuple[str, str]:
    """Applies the lines of a commit request; `is_there(sha256)` says whether a large file was uploaded.

    Returns the new commit and the branch or pull request it stands on.
    """
    if revision not in repo.branches:
        raise CommitError(404, "Revision not found", "RevisionNotFound")
    header = lines[0]["value"]
    parent = header.get("parentCommit")
    start = repo.branches[revision]
    if create_pr:
        start = parent or start
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
        revision = f"refs/pr/{number}"
    elif parent is not None and parent != start:
        raise CommitError(412, "A commit has happened since. Please refresh and try again.")
    tree = dict(repo.trees[start])
    for line in lines[1:]:
        value = line["value"]
        path = value["path"]
        if line["key"] == "file":
            tree[path] = File(base64.b64decode(value["content"]))
        elif line["key"] == "lfsFile":
            if not is_there(value["oid"]):
                raise CommitError(400, f"{path} was never uploaded")
            tree[path] = File(None, value["oid"], value["size"])
        elif line["key"] == "deletedFile":
            if path not in tree:
                raise CommitError(404, "A file with this name doesn't exist", "EntryNotFound")
            del tree[path]
        elif line["key"] == "deletedFolder":
            tree = {name: file for name, file in tree.items() if not name.startswith(path)}
    repo.branches.setdefault(revision, start)
    return repo.advance(tree, revision, header["summary"]), revision


def xet_hashes(store: Path) -> dict[str, str]:
    """SHA-256 → Xet hash of every file in a local Xet store, read from its shards.

    A shard is a header of 48 bytes and, per file, a record of 48 bytes (hash, flags, count), so many segments of 48
    bytes, as many more where bit 31 of the flags says so, and where bit 30 does one record that starts with the
    SHA-256. A record of ones ends the list.
    """
    found = {}
    for path in store.glob("**/shards/*.mdb"):
        data, position = path.read_bytes(), 48
        while data[position : position + 32] != b"\xff" * 32:
            flags, count = struct.unpack_from("<II", data, position + 32)
            file_hash = _digits(data[position : position + 32])
            position += 48 * (1 + count + (count if flags >> 31 & 1 else 0))
            if flags >> 30 & 1:
                found[_digits(data[position : position + 32])] = file_hash
                position += 48
    return found


def _digits(raw: bytes) -> str:
    """Xet prints a hash as four little-endian numbers."""
    return "".join(raw[start : start + 8][::-1].hex() for start in range(0, 32, 8))
