"""Publishing: the repositories of a run and of a student."""

from __future__ import annotations

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings

PULL_REQUEST = "`create_pr` opens a pull request against `main`; leave out `tags` and `revision`, or `create_pr`"


class StudentRepository(Settings):
    """The repository of a trained student.

    Args:
        push_to_hub (`str`, *optional*): Hub repository to push the model and its card to.
        private (`bool`, defaults to `True`): Whether to create the repository as private.
        license (`str`, *optional*): Licence identifier, for the card.
        allow_findings (`tuple[str, ...]`, defaults to `()`): Fingerprints of texts that look like secrets but are not.
    """

    push_to_hub: str | None = None
    private: bool = True
    license: str | None = None
    allow_findings: tuple[str, ...] = ()


class Publish(Settings):
    """Repositories of the results. Without them the results stay in the run folder.

    Args:
        dataset_repo_id (`str`, *optional*): Hub repository of the personalised set, such as `me/my-student-data`.
        router_repo_id (`str`, *optional*): Hub repository of the router; needs `dataset_repo_id`.
        config_name (`str`, defaults to `"default"`): The dataset's configuration; one per student.
        private (`bool`, defaults to `True`): Whether to create new repositories as private.
        revision (`str`, *optional*): Branch of both repositories, created if missing.
        create_pr (`bool`, defaults to `False`): Whether to open pull requests instead of committing.
        commit_message (`str`): Commit message.
        tags (`tuple[str, ...]`, defaults to `()`): Git tags for both commits, such as `v1.0`.
        collection (`str`, *optional*): Slug of a collection, or a title; a collection is created if none has it.
        license (`str`, *optional*): Licence identifier of dataset and router.
        language (`tuple[str, ...]`, defaults to `()`): Language codes.
        keep_truncated (`bool`, defaults to `False`): Whether to keep completions that were cut at `max_tokens`.
        allow_secrets (`bool`, defaults to `False`): Whether to push text that looks like an API key or a token.
        allow_findings (`tuple[str, ...]`, defaults to `()`): Fingerprints of texts that look like secrets but are not.
        dry_run (`bool`, defaults to `False`): Whether to check and write everything without uploading it.
        files_per_commit (`int`, defaults to 1000): Maximum number of files in one commit. Data files come first.
    """

    dataset_repo_id: str | None = None
    router_repo_id: str | None = None
    config_name: str = "default"
    private: bool = True
    revision: str | None = None
    create_pr: bool = False
    commit_message: str = Field("Push with persyn-hf", min_length=1)
    tags: tuple[str, ...] = ()
    collection: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    keep_truncated: bool = False
    allow_secrets: bool = False
    allow_findings: tuple[str, ...] = ()
    dry_run: bool = False
    files_per_commit: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _router_goes_with_dataset(self) -> Publish:
        if self.router_repo_id is not None and self.dataset_repo_id is None:
            raise ValueError("`router_repo_id` needs `dataset_repo_id`: the router's card names the dataset")
        return self

    @model_validator(mode="after")
    def _pull_request_or_branch(self) -> Publish:
        if self.create_pr and (self.tags or self.revision):
            raise ValueError(PULL_REQUEST)
        return self
