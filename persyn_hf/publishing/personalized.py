"""Writes the personalised dataset and the router with their cards into folders, and to the Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.errors import PublishError
from persyn_hf.personalize import count_kept, personalize
from persyn_hf.publishing import checks
from persyn_hf.publishing.checks import license_warnings
from persyn_hf.publishing.contents import DatasetContent, RouterContent, RouterLike
from persyn_hf.publishing.figures import Figures
from persyn_hf.publishing.parquet import DEFAULT_CONFIG, plan_shards
from persyn_hf.publishing.provenance import gather
from persyn_hf.publishing.push import Published, Push, collect, write_content
from persyn_hf.publishing.repository import FILES_PER_COMMIT, Repository, Snapshot
from persyn_hf.tables import replaced
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def save_personalized(
    data: Dataset | DatasetDict,
    folder: str | os.PathLike[str],
    *,
    router: RouterLike | None = None,
    location: str | None = None,
    router_location: str | None = None,
    config_name: str = DEFAULT_CONFIG,
    license: str | None = None,
    language: Sequence[str] = (),
    keep_truncated: bool = False,
    scored: Dataset | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Writes what [`push_personalized`] pushes: Parquet, card, facts and figures, and the router with its card.

    Args:
        data (`Dataset` or `DatasetDict`): The routed answers, or the personalised tables made of them.
        folder (`str` or `PathLike`): Gets `dataset/` and, with a router, `router/`. Each replaces what was there.
        router (`PersynRouter`, *optional*): Saved beside the dataset and described in its card.
        location, router_location (`str`, *optional*): What the cards' snippets load; default: the folders themselves.
        config_name (`str`, defaults to `"default"`): The configuration, one per student.
        license (`str`, *optional*), language (`Sequence[str]`): Hub metadata.
        keep_truncated (`bool`, defaults to `False`): See [`personalize`].
        scored (`Dataset`, *optional*): The scored probe, for the picture of the teachers.
        run (`Mapping`, *optional*): More of [`gather`]: `generations`, `generations_all`, `cost`, `cost_all`,
            `prices`, `prompts_source`, `prompts_revision` …

    Returns:
        `Path`: The folder.

    Raises:
        DataError: If there is nothing to train on.
        PublishError: If a card cannot be rendered.
    """
    target = Path(folder)
    dataset_at = location or str(target / "dataset")
    router_at = (router_location or str(target / "router")) if router is not None else None
    splits, facts = _prepare(data, keep_truncated, run)
    checks.require_features(splits)
    if location is None or router_location is not None:
        facts.setdefault("router_repo_id", router_at)  # a card for the Hub cites no folder of this machine
    provenance = gather(splits, router.metadata if router is not None else None, scored=scored, **facts)
    warnings = license_warnings(license, provenance.teachers)
    figures, shards = Figures(provenance), plan_shards(splits, config_name)
    with replaced(target / "dataset") as staged:
        staged.mkdir(parents=True)
        content = DatasetContent(
            dataset_at, config_name, shards, provenance, figures, license, language, warnings, staged, whole=True
        )
        write_content(content.build(Snapshot()), staged)
    if router is not None and router_at is not None:
        with replaced(target / "router") as staged:
            staged.mkdir(parents=True)
            weights = RouterContent(router_at, router, provenance, figures, dataset_at, license, language, staged)
            write_content(weights.build(Snapshot()), staged)
    return target


def push_personalized(
    data: Dataset | DatasetDict,
    repo_id: str,
    *,
    router: RouterLike | None = None,
    router_repo_id: str | None = None,
    config_name: str = DEFAULT_CONFIG,
    private: bool = True,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Push with persyn-hf",
    tags: Sequence[str] = (),
    collection: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
    keep_truncated: bool = False,
    scored: Dataset | None = None,
    run: Mapping[str, Any] | None = None,
    allow_secrets: bool = False,
    dry_run: bool = False,
    saved: str | os.PathLike[str] | None = None,
    files_per_commit: int = FILES_PER_COMMIT,
) -> Published:
    """Pushes the personalised dataset, and the router where one is named, to the Hub with generated cards.

    Everything is checked first. Then the router goes, then the dataset, whose card cites the router's commit. Each
    repository changes in one commit against the one that was read, so that a reader sees the old state or the new one;
    where nothing has changed there is no commit. A push that was interrupted is finished by running it again.

    Args:
        data (`Dataset` or `DatasetDict`): The routed answers, or the personalised tables made of them.
        repo_id (`str`): The dataset repository, as `me/my-student-data`.
        router (`PersynRouter`, *optional*): Described in the dataset's card; pushed with `router_repo_id`.
        router_repo_id (`str`, *optional*): The router's repository; needs `router`.
        config_name (`str`, defaults to `"default"`): The configuration; one per student, others stay as they are.
        private (`bool`, defaults to `True`): Visibility of new repositories.
        token (`str`, *optional*): Defaults to the one that `hf auth login` stored.
        revision (`str`, *optional*): A branch of both repositories, made where it is not there, or `refs/pr/N`.
        create_pr (`bool`, defaults to `False`): Open pull requests instead of committing.
        commit_message (`str`): Of every commit.
        tags (`Sequence[str]`): Git tags for both commits, as `v1.0`.
        collection (`str`, *optional*): A collection's slug, or the title of one that is made where it is not there.
        license (`str`, *optional*), language (`Sequence[str]`): Hub metadata.
        keep_truncated (`bool`, defaults to `False`): See [`personalize`].
        scored (`Dataset`, *optional*), run (`Mapping`, *optional*): As in [`save_personalized`].
        allow_secrets (`bool`, defaults to `False`): Send text that looks like a key or a token.
        dry_run (`bool`, defaults to `False`): Check and write everything, send nothing; `Published.folder` says where.
        saved (`str` or `PathLike`, *optional*): A folder of [`save_personalized`]: shards of the same rows that lie
            there are not written again.
        files_per_commit (`int`, defaults to 1000): More files than this go in several commits, data first.

    Returns:
        `Published`: The commits, and what they changed.

    Raises:
        PublishError: If a check fails, with nothing sent, or a repository cannot be written to.
        DataError: If there is nothing to train on.

    Example:
        >>> push_personalized(data, "me/data", router=router, router_repo_id="me/router")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    if router_repo_id is not None and router is None:
        raise PublishError("`router_repo_id` needs `router`: give the trained router that is to be pushed there.")
    if create_pr and (tags or revision):
        raise PublishError("`create_pr` opens a pull request against `main`; leave out `tags` and `revision`.")
    checks.require_names(repo_id, router_repo_id, config_name)
    splits, facts = _prepare(data, keep_truncated, run)
    checks.require_features(splits)
    if router_repo_id is not None:
        facts["router_repo_id"] = router_repo_id
    provenance = gather(splits, router.metadata if router is not None else None, scored=scored, **facts)
    figures = Figures(provenance)
    warnings = license_warnings(license, provenance.teachers)
    checks.warn_of_license(license, private, warnings)
    api = HfApi(token=token, library_name="persyn_hf", library_version=__version__)
    folder, keep = Path(tempfile.mkdtemp(prefix="persyn-dry-run-" if dry_run else "persyn-push-")), False
    try:
        dataset = DatasetContent(
            repo_id,
            config_name,
            plan_shards(splits, config_name),
            provenance,
            figures,
            license,
            language,
            warnings,
            folder / "dataset",
            whole=dry_run,
            saved=Path(saved) / "dataset" if saved is not None else None,
        )
        push = Push(api, dataset, Repository(api, repo_id, "dataset", revision))
        if router_repo_id is not None and router is not None:
            push.router = RouterContent(
                router_repo_id, router, provenance, figures, repo_id, license, language, folder / "router"
            )
            push.router_repository = Repository(api, router_repo_id, "model", revision)
        push.check(tags, allow_secrets)
        if dry_run:
            keep = True
            return push.write(folder)
        options = {"private": private, "create_pr": create_pr, "files_per_commit": files_per_commit}
        done = push.send({"message": commit_message, **options}, tags)
        return replace(done, collection=collect(api, collection, done, private)) if collection else done
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(
    data: Dataset | DatasetDict, keep_truncated: bool, run: Mapping[str, Any] | None
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """The personalised tables by split, and the run's facts with what was left out of them."""
    facts = dict(run or {})
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    dropped: dict[str, int] = {}
    for name, table in splits.items():
        if _is_personalized(table):
            continue
        kept = count_kept(table, keep_truncated)
        for reason, count in (
            ("the teacher failed", kept.failed),
            ("cut by max_tokens", kept.truncated),
            ("no text", kept.empty),
        ):
            dropped[reason] = dropped.get(reason, 0) + count
        splits[name] = personalize(table, keep_truncated)
    if dropped:
        facts["dropped"] = dropped
    return splits, facts


def _is_personalized(data: Dataset) -> bool:
    columns.require_columns(data.column_names, (columns.PROMPT, columns.COMPLETION, columns.TEACHER), "push")
    return getattr(data.features[columns.COMPLETION], "dtype", None) != "string"
