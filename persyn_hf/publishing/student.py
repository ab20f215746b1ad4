"""A fine-tuned student in a Hub repository: looked at before training, changed in one commit after it."""

from __future__ import annotations

from pathlib import Path

from persyn_hf import __version__
from persyn_hf.publishing import checks
from persyn_hf.publishing.contents import WEIGHTS
from persyn_hf.publishing.merge import renew_card, require_renewable, split_card
from persyn_hf.publishing.repository import CARD, Content, Pushed, Repository, Snapshot
from persyn_hf.publishing.shards import DEFAULT_CONFIG

_LEFT_OUT = "checkpoints"


class StudentPush:
    """The push of one student.

    Args:
        repo_id (`str`): The model repository, as `me/my-student`.
        private (`bool`, defaults to `True`): Visibility of a new repository.
        token (`str`, *optional*): Defaults to the one that `hf auth login` stored.
    """

    def __init__(self, repo_id: str, private: bool = True, token: str | None = None) -> None:
        from huggingface_hub import HfApi

        checks.require_names(repo_id, None, DEFAULT_CONFIG)
        api = HfApi(token=token, library_name="persyn_hf", library_version=__version__)
        self._repository = Repository(api, repo_id, "model")
        self._private = private

    def check(self) -> None:
        """Looks at the token and at the card that is there, so that no training ends before a closed door.

        Raises:
            PublishError: If the repository cannot be written to, or its card cannot be read.
        """
        before = self._repository.read()
        checks.require_access(self._repository, before)
        require_renewable(before.texts.get(CARD, ""), self._card_name)

    def send(self, folder: Path, card: str) -> Pushed:
        """Makes the repository hold what the folder holds; what a person wrote in its card stays.

        Args:
            folder (`Path`): The student's weights and tokenizer; `checkpoints/` is left out.
            card (`str`): Its freshly rendered card.

        Raises:
            PublishError: If it cannot be done; running it again goes on where this one stopped.
        """
        weights = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.relative_to(folder).parts[0] not in (_LEFT_OUT, CARD)
        }

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
