"""Publishing: the repositories of a run and of a student."""

from __future__ import annotations

from pydantic import Field, model_validator

from persyn_hf.config.settings import Settings

PULL_REQUEST = "`create_pr` opens a pull request against `main`; leave out `tags` and `revision`"


class StudentRepository(Settings):
    """The repository of a trained student.

    Args:
        push_to_hub (`str`, *optional*): Hub repository to push it to, with its card.
        private (`bool`, defaults to `True`): Visibility of a new repository.
        license (`str`, *optional*): Licence identifier, for the card.
        allow_findings (`tuple[str, ...]`, defaults to `()`): Fingerprints of texts that look like a key and are none.
    """

    push_to_hub: str | None = None
    private: bool = True
    license: str | None = None
    allow_findings: tuple[str, ...] = ()


class Publish(Settings):
    """Repositories of the results. Without them the results stay in the run folder.

    Args:
        dataset_repo_id (`str`, *optional*): Hub repository of the personalised set, as `me/my-student-data`.
        router_repo_id (`str`, *optional*): Hub repository of the router; needs `dataset_repo_id`.
        config_name (`str`, defaults to `"default"`): The dataset's configuration; one per student.
        private (`bool`, defaults to `True`): Visibility of new repositories.
        revision (`str`, *optional*): A branch of both repositories, made where it is not there.
        create_pr (`bool`, defaults to `False`): Open pull requests instead of committing.
        commit_message (`str`): Message of every commit.
        tags (`tuple[str, ...]`, defaults to `()`): Git tags for both commits, as `v1.0`.
        collection (`str`, *optional*): Slug of a collection, or the title of one that is made where it is not there.
        license (`str`, *optional*): Licence identifier of dataset and router.
        language (`tuple[str, ...]`, defaults to `()`): Language codes.
        keep_truncated (`bool`, defaults to `False`): Keep completions that were cut by `max_tokens`.
        allow_secrets (`bool`, defaults to `False`): Push text that looks like a key or a token.
        allow_findings (`tuple[str, ...]`, defaults to `()`): Fingerprints of texts that look like a key and are none.
        dry_run (`bool`, defaults to `False`): Check and write everything, send nothing.
        files_per_commit (`int`, defaults to 1000): More files than this go in several commits, data first.
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
