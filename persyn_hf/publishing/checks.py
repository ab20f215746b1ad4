"""Checks before a push sends anything, so that a push that cannot finish does not start."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import DataError, PublishError
from persyn_hf.publishing.leaks import Leak
from persyn_hf.publishing.provenance import TeacherShare
from persyn_hf.publishing.repository import Repository, Snapshot, explain, failures, retry

if TYPE_CHECKING:
    from datasets import Dataset


_CONFIG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")


def require_names(repo_id: str, router_repo_id: str | None, config_name: str) -> None:
    """Checks repository and configuration names without a request to the Hub.

    Raises:
        PublishError: If a name is invalid.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id  # `huggingface_hub.utils` re-exports it untyped

    for argument, name in (("repo_id", repo_id), ("router_repo_id", router_repo_id)):
        if name is None:
            continue
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise PublishError(f"`{argument}`: {error}") from error
        if "/" not in name:
            raise PublishError(f"`{argument}` must include its owner, such as `me/{name}`; got `{name}`.")
    if _CONFIG_NAME.fullmatch(config_name) is None:
        raise PublishError(
            "`config_name` must consist of letters, digits, `_`, `-` and `.`, such as `student-b`; got "
            f"{config_name!r:.120}."
        )


def require_features(splits: Mapping[str, Dataset]) -> None:
    """Checks that all splits are personalised tables with the same features.

    Raises:
        DataError: If there is no split or no row, a split's name is invalid, or features differ.
        MissingColumnError: If a column is absent.
    """
    if not splits:
        raise DataError("Expected a dataset with at least one split, got none.")
    first = next(iter(splits.values()))
    for split, data in splits.items():
        if _SPLIT_NAME.fullmatch(split) is None:
            raise DataError(
                f"A split's name must consist of letters, digits and `_`, such as `train`; got {split!r:.120}."
            )
        columns.require_columns(data.column_names, (columns.PROMPT, columns.COMPLETION, columns.TEACHER), "push")
        if data.features != first.features:
            raise DataError(
                f"All splits must have the same features; `{next(iter(splits))}` has {first.features}, "
                f"`{split}` has {data.features}."
            )
        if not len(data):
            raise DataError(f"The split `{split}` must have at least one row, got none.")


def require_access(repository: Repository, snapshot: Snapshot) -> None:
    """Checks that the token can write to the repository, or create it if it does not exist.

    Raises:
        PublishError: If there is no token, or it lacks the permission.
    """
    if snapshot.exists:
        _ask(
            repository,
            lambda: repository.api.auth_check(repository.repo_id, repo_type=repository.repo_type, write=True),
        )
        return
    who = _ask(repository, lambda: repository.api.whoami(cache=True))
    access = (who.get("auth") or {}).get("accessToken") or {}
    if access.get("role") == "read":
        raise PublishError(
            f"Creating {repository.name} needs a token with write access, got a read-only one. Create another under "
            "Settings > Access Tokens."
        )
    owner = repository.repo_id.split("/")[0]
    owners = [who["name"], *(organisation["name"] for organisation in who.get("orgs") or [])]
    if owner not in owners:
        raise PublishError(
            f"The token of `{who['name']}` cannot create {repository.name}: it can write to {', '.join(owners)} only."
        )


def require_free_name(repository: Repository, snapshot: Snapshot, other_type: str, expected: str | None) -> None:
    """Refuses a new repository whose name the other type already has, because the two ids were probably swapped.

    Raises:
        PublishError: If the name is taken, unless `expected` is this name.
    """
    if snapshot.exists or repository.repo_id == expected:
        return
    other = Repository(repository.api, repository.repo_id, other_type, wait=repository.wait)
    if other.read().exists:
        raise PublishError(
            f"`{repository.repo_id}` must be a {repository.repo_type}, but it is a {other_type} on the Hub. Are "
            "`repo_id` and `router_repo_id` swapped? To use this name for both, create the "
            f"{repository.repo_type} first: hf repo create {repository.repo_id} --repo-type {repository.repo_type}"
        )


def require_free_tags(repository: Repository, snapshot: Snapshot, tags: Sequence[str], changes: bool) -> None:
    """Refuses a tag that already marks another commit.

    Raises:
        PublishError: If there is such a tag; it names the tag and its commit.
    """
    if not tags or not snapshot.exists:
        return
    known = repository.tags()
    for tag in tags:
        if tag in known and (changes or known[tag] != snapshot.commit):
            raise PublishError(
                f"The tag `{tag}` of {repository.name} already marks the commit {known[tag][:12]}. Choose another "
                "name, or delete the tag first."
            )


def require_valid_card(repository: Repository, card: str) -> None:
    """Asks the Hub to validate a card's metadata.

    Raises:
        PublishError: If the Hub rejects the card; it has the Hub's message.
    """
    from huggingface_hub import DatasetCard, ModelCard

    kind = DatasetCard if repository.repo_type == "dataset" else ModelCard
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an absent licence; see `warn_of_license`
        try:
            retry(lambda: kind(card).validate(repo_type=repository.repo_type), wait=repository.wait)
        except ValueError as error:  # its text is the body of the Hub's response
            raise PublishError(f"The Hub rejects the card of {repository.name}: {_said(error)}") from error
        except failures() as error:
            raise PublishError(f"The Hub rejects the card of {repository.name}: {explain(error)}") from error


def require_no_leaks(leaks: Sequence[Leak]) -> None:
    """Refuses text that looks like a secret.

    Raises:
        PublishError: If there is any; it has each place, kind and fingerprint, but not the text.
    """
    if leaks:
        raise PublishError(f"Some text looks like a key or a token. Nothing was sent.\n{_listed(leaks)}")


def warn_of_leaks(leaks: Sequence[Leak], folder: Path) -> None:
    """Warns of text in a local folder that looks like a secret; a push of it would be refused."""
    if leaks:
        warnings.warn(
            f"Some text in {folder} looks like a key or a token; check it before you send the folder anywhere:\n"
            f"{_listed(leaks)}",
            stacklevel=3,
        )


def _listed(leaks: Sequence[Leak]) -> str:
    found = "\n".join(f"- {leak}" for leak in leaks)
    names = ", ".join(dict.fromkeys(leak.fingerprint for leak in leaks))
    return (
        f"{found}\nRemove it, and revoke it if it is real. If it is not a secret, allow it by its fingerprint: "
        f"`allow_findings: [{names}]` (under `publish` in a file); `allow_secrets=True` allows everything."
    )


def warn_of_license(license: str | None, private: bool, conflicts: Sequence[str]) -> None:
    """Warns of a public dataset without a licence, and of conflicts with teachers' licences."""
    if license is None and not private:
        warnings.warn(
            "`license` is not set: without a licence nobody may use a public dataset. Set a Hub identifier, such as "
            "`license='apache-2.0'`.",
            stacklevel=4,
        )
    for sentence in conflicts:
        warnings.warn(sentence, stacklevel=4)


def _ask(repository: Repository, question: Any) -> Any:
    try:
        return retry(question, wait=repository.wait)
    except failures() as error:
        raise PublishError(f"{_capital(repository.name)} is not writable: {explain(error)}") from error


def _said(error: ValueError) -> str:
    try:
        return "; ".join(problem["message"] for problem in json.loads(str(error))["errors"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(error).split())


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


#: Licences that restrict training other models on outputs.
_OUTPUTS_RESTRICTED = {
    "llama2": "Llama 2 forbids using its outputs to improve models other than Llama",
    "llama3": "Llama 3 forbids using its outputs to improve models other than Llama",
    "llama3.1": "Llama 3.1 requires models trained on its outputs to have “Llama” in their name",
    "llama3.2": "Llama 3.2 requires models trained on its outputs to have “Llama” in their name",
    "llama3.3": "Llama 3.3 requires models trained on its outputs to have “Llama” in their name",
    "llama4": "Llama 4 requires models trained on its outputs to have “Llama” in their name",
    "gemma": "Gemma's terms also apply to models trained on its outputs",
    "other": "the Hub does not list this licence; check if it permits training other models on outputs",
    "proprietary": "proprietary terms often forbid training other models on outputs",
}


def license_warnings(license: str | None, teachers: Sequence[TeacherShare]) -> list[str]:
    """Returns sentences on teachers whose licence may conflict with the dataset's licence, or forbid training.

    Args:
        license (`str`, *optional*): Licence of the dataset.
        teachers (`Sequence[TeacherShare]`): Teachers; those without rows are skipped.

    Example:
        >>> teacher = TeacherShare(name="t", rows=1, share=1.0, completion_tokens=1, license="cc-by-nc-4.0")
        >>> license_warnings("mit", [teacher])
        ["Teacher t has the licence cc-by-nc-4.0, which forbids commercial use; the dataset's is mit."]
    """
    return [
        sentence
        for teacher in teachers
        if teacher.rows and teacher.license and (sentence := _warning(license, teacher.name, teacher.license.lower()))
    ]


def _warning(license: str | None, teacher: str, theirs: str) -> str | None:
    ours = (license or "").lower()
    named = f"Teacher {teacher} has the licence {theirs}"
    if theirs in _OUTPUTS_RESTRICTED:
        return f"{named}: {_OUTPUTS_RESTRICTED[theirs]}."
    if "-nd" in theirs:
        return f"{named}, which forbids sharing derived works."
    if "-nc" in theirs and "-nc" not in ours:
        return f"{named}, which forbids commercial use; the dataset's is {ours or 'not given'}."
    if "-sa" in theirs and ours != theirs:
        return f"{named}, which requires the same licence for derived works; the dataset's is {ours or 'not given'}."
    return None
