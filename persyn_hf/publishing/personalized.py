"""Writing the personalised dataset and the router, with their cards, to folders and to the Hub."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Publish, merged
from persyn_hf.config.publishing import PULL_REQUEST
from persyn_hf.errors import ConfigError, PublishError
from persyn_hf.personalize import count_kept, kept_rows, personalize
from persyn_hf.publishing import checks
from persyn_hf.publishing.checks import license_warnings
from persyn_hf.publishing.contents import DatasetContent, RouterContent, RouterLike
from persyn_hf.publishing.figures import Figures
from persyn_hf.publishing.parquet import plan_shards
from persyn_hf.publishing.provenance import Provenance, gather
from persyn_hf.publishing.push import Published, Push, collect, find_in_dataset, write_content
from persyn_hf.publishing.repository import Repository, Snapshot
from persyn_hf.tables import replaced, require_table
from persyn_hf.version import __version__

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict
    from huggingface_hub import HfApi


def save_personalized(
    data: Dataset | DatasetDict,
    folder: str | os.PathLike[str],
    *,
    router: RouterLike | None = None,
    location: str | None = None,
    router_location: str | None = None,
    scored: Dataset | None = None,
    run: Mapping[str, Any] | None = None,
    settings: Publish | Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Saves the files that [`push_personalized`] pushes: Parquet, card, facts, figures, and the router with its card.

    Args:
        data (`Dataset` or `DatasetDict`): Routed answers, or the personalised tables made from them.
        folder (`str` or `PathLike`): Target folder for `dataset/` and, with a router, `router/`, which are replaced.
        router (`PersynRouter`, *optional*): Router to save and to describe in the dataset's card.
        location, router_location (`str`, *optional*): Repositories or folders that the cards' snippets load; default:
            the repositories in `settings`, or the folders themselves.
        scored (`Dataset`, *optional*): Scored probe, for the figure of the teachers.
        run (`Mapping`, *optional*): Further arguments of [`gather`]: `generations`, `generations_all`, `cost`,
            `cost_all`, `prices`, `prompts_source`, `prompts_revision` …
        settings (`Publish` or `Mapping`, *optional*): The section `publish` of a configuration, or its keys. Keys that
            concern only a push are ignored.
        options: Single keys of [`Publish`] that affect the files: `config_name`, `license`, `language`,
            `keep_truncated`, `allow_secrets` (skip the search for keys) and `allow_findings`. They replace those of
            `settings`.

    Returns:
        `Path`: The target folder.

    Raises:
        DataError: If there are no training rows.
        PublishError: If a card cannot be rendered.
    """
    asked = merged(Publish, settings, options, "save_personalized", _WRITTEN)
    target, location = Path(folder), location or asked.dataset_repo_id
    router_location = router_location or asked.router_repo_id
    dataset_at = location or str(target / "dataset")
    router_at = (router_location or str(target / "router")) if router is not None else None
    splits, facts = _prepare(data, asked.keep_truncated, run)
    checks.require_features(splits)
    if location is None or router_location is not None:
        facts.setdefault("router_repo_id", router_at)  # a card for the Hub must not cite a local folder
    provenance = gather(splits, router.metadata if router is not None else None, scored=scored, **facts)
    license, language = asked.license, asked.language
    warnings = license_warnings(license, provenance.teachers)
    figures, shards = Figures(provenance), plan_shards(splits, asked.config_name)
    with replaced(target / "dataset") as staged:
        staged.mkdir(parents=True)
        content = DatasetContent(
            dataset_at, asked.config_name, shards, provenance, figures, license, language, warnings, staged, whole=True
        )
        if not asked.allow_secrets:
            checks.warn_of_leaks(find_in_dataset(content, asked.allow_findings), target)
        write_content(content.build(Snapshot()), staged)
    if router is not None and router_at is not None:
        with replaced(target / "router") as staged:
            staged.mkdir(parents=True)
            weights = RouterContent(router_at, router, provenance, figures, dataset_at, license, language, staged)
            write_content(weights.build(Snapshot()), staged)
    return target


def push_personalized(
    data: Dataset | DatasetDict,
    repo_id: str | None = None,
    *,
    router: RouterLike | None = None,
    settings: Publish | Mapping[str, Any] | None = None,
    token: str | None = None,
    scored: Dataset | None = None,
    run: Mapping[str, Any] | None = None,
    saved: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Published:
    """Pushes the personalised dataset, and with `router_repo_id` the router, to the Hub with generated cards.

    Everything is checked before anything is sent. The router is pushed first, then the dataset, whose card cites the
    router's commit. Each repository changes in one commit on top of the one that was read, so a reader sees either the
    old or the new state; without changes there is no commit. Run an interrupted push again to finish it.

    Args:
        data (`Dataset` or `DatasetDict`): Routed answers, or the personalised tables made from them.
        repo_id (`str`): Dataset repository, such as `me/my-student-data`; default: the one in `settings`.
        router (`PersynRouter`, *optional*): Router described in the dataset's card, and pushed with `router_repo_id`.
        settings (`Publish` or `Mapping`, *optional*): The section `publish` of a configuration, or its keys.
        token (`str`, *optional*): Hugging Face token; default: the one stored by `hf auth login`.
        scored (`Dataset`, *optional*), run (`Mapping`, *optional*): As in [`save_personalized`].
        saved (`str` or `PathLike`, *optional*): Folder of [`save_personalized`], whose shards are reused if they have
            the same rows.
        options: Single keys of [`Publish`] (`router_repo_id`, `config_name`, `private`, `license`, `tags` …), which
            replace those of `settings`. `revision` may also be `refs/pr/N`; with `dry_run`, all files are written to
            `Published.folder`.

    Returns:
        `Published`: Commits and changed files.

    Raises:
        ConfigError: If an option is unknown or wrong.
        PublishError: If a check fails (nothing was sent), or a repository is not writable.
        DataError: If there are no training rows.

    Example:
        >>> push_personalized(data, "me/data", router=router, router_repo_id="me/router")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    asked = _settings(repo_id, settings, options)
    if asked.router_repo_id is not None and router is None:
        raise PublishError("`router_repo_id` needs `router`: pass the trained router to push.")
    splits, facts = _prepare(data, asked.keep_truncated, run)
    checks.require_features(splits)
    if asked.router_repo_id is not None:
        facts["router_repo_id"] = asked.router_repo_id
    provenance = gather(splits, router.metadata if router is not None else None, scored=scored, **facts)
    api = HfApi(token=token, library_name="persyn_hf", library_version=__version__)
    folder = Path(tempfile.mkdtemp(prefix="persyn-dry-run-" if asked.dry_run else "persyn-push-"))
    keep = False
    try:
        push = _push(api, asked, splits, provenance, folder, router, saved)
        push.check(asked.tags, asked.allow_secrets, asked.allow_findings)
        if asked.dry_run:
            keep = True
            return push.write(folder)
        how = {name: getattr(asked, name) for name in ("private", "create_pr", "files_per_commit")}
        done = push.send({"message": asked.commit_message, **how}, asked.tags)
        if asked.collection is None:
            return done
        return replace(done, collection=collect(api, asked.collection, done, asked.private))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


#: Keys of the section `publish` that affect the files, rather than the push.
_WRITTEN = ("config_name", "license", "language", "keep_truncated", "allow_secrets", "allow_findings")


def _settings(
    repo_id: str | None, settings: Publish | Mapping[str, Any] | None, options: Mapping[str, Any]
) -> Publish:
    """Merges the settings of a push and checks its names."""
    if options.get("create_pr") and (options.get("tags") or options.get("revision")):
        raise PublishError(f"{PULL_REQUEST}.")
    given = options if repo_id is None else {**options, "dataset_repo_id": repo_id}
    asked = merged(Publish, settings, given, "push_personalized")
    if asked.dataset_repo_id is None:
        raise ConfigError("push_personalized: `repo_id` is required, or `dataset_repo_id` in `settings`.")
    checks.require_names(asked.dataset_repo_id, asked.router_repo_id, asked.config_name)
    return asked


def _push(
    api: HfApi,
    asked: Publish,
    splits: Mapping[str, Dataset],
    provenance: Provenance,
    folder: Path,
    router: RouterLike | None,
    saved: str | os.PathLike[str] | None,
) -> Push:
    """Builds the push; nothing is sent yet."""
    repo_id = asked.dataset_repo_id
    assert repo_id is not None, "checked with the settings"
    figures, warnings = Figures(provenance), license_warnings(asked.license, provenance.teachers)
    checks.warn_of_license(asked.license, asked.private, warnings)
    dataset = DatasetContent(
        repo_id,
        asked.config_name,
        plan_shards(splits, asked.config_name),
        provenance,
        figures,
        asked.license,
        asked.language,
        warnings,
        folder / "dataset",
        whole=asked.dry_run,
        saved=Path(saved) / "dataset" if saved is not None else None,
    )
    push = Push(api, dataset, Repository(api, repo_id, "dataset", asked.revision))
    if asked.router_repo_id is not None and router is not None:
        push.router = RouterContent(
            asked.router_repo_id,
            router,
            provenance,
            figures,
            repo_id,
            asked.license,
            asked.language,
            folder / "router",
        )
        push.router_repository = Repository(api, asked.router_repo_id, "model", asked.revision)
    return push


def _prepare(
    data: Dataset | DatasetDict, keep_truncated: bool, run: Mapping[str, Any] | None
) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Returns the personalised tables by split, and the run's facts with the numbers of dropped answers."""
    facts = dict(run or {})
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    for table in splits.values():
        require_table(data if not hasattr(table, "column_names") else table, "push")
    dropped: dict[str, int] = dict(facts.get("dropped") or {})
    finer: dict[str, tuple[int, ...]] = {}
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
        for teacher, tokens in _finer(table, keep_truncated).items():
            finer[teacher] = tuple(map(sum, zip(tokens, finer.get(teacher, (0, 0)), strict=True)))
        splits[name] = personalize(table, keep_truncated)
    if dropped:
        facts["dropped"] = dropped | dict(facts.get("dropped") or {})
    if finer:
        facts.setdefault("finer", finer)
    return splits, facts


def _finer(answers: Dataset, keep_truncated: bool) -> dict[str, tuple[int, ...]]:
    """Per teacher, the cached tokens and the reasoning tokens of the answers that become training rows."""
    names = [columns.CACHED_TOKENS, columns.REASONING_TOKENS]
    if not set(names) <= set(answers.column_names):
        return {}
    kept = answers.select_columns([columns.TEACHER, *names]).select(kept_rows(answers, keep_truncated))
    table = kept.with_format("arrow")[:]
    sums = table.group_by(columns.TEACHER).aggregate([(name, "sum") for name in names])
    return {row[columns.TEACHER]: tuple(row[f"{name}_sum"] or 0 for name in names) for row in sums.to_pylist()}


def _is_personalized(data: Dataset) -> bool:
    columns.require_columns(data.column_names, (columns.PROMPT, columns.COMPLETION, columns.TEACHER), "push")
    return getattr(data.features[columns.COMPLETION], "dtype", None) != "string"
