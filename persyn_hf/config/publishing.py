"""Where the results of a run go."""

from __future__ import annotations

from pydantic import model_validator

from persyn_hf.config.settings import Settings


class Publish(Settings):
    """Where the results go. Without repositories they stay in the run folder.

    Args:
        dataset_repo_id, router_repo_id (`str`, *optional*): Hub repositories to push to.
        private (`bool`, defaults to `True`): Visibility of new repositories.
        license (`str`, *optional*): Licence identifier of the personalised dataset.
        language (`tuple[str, ...]`, defaults to `()`): Language codes of the dataset.
        keep_truncated (`bool`, defaults to `False`): Keep completions that were cut by `max_tokens`.
    """

    dataset_repo_id: str | None = None
    router_repo_id: str | None = None
    private: bool = True
    license: str | None = None
    language: tuple[str, ...] = ()
    keep_truncated: bool = False

    @model_validator(mode="after")
    def _router_goes_with_dataset(self) -> Publish:
        if self.router_repo_id is not None and self.dataset_repo_id is None:
            raise ValueError("`router_repo_id` needs `dataset_repo_id`: the router's card names the dataset")
        return self
