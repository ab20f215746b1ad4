"""`push` and `pull`: a run's results on the Hub, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from persyn_hf.cli.app import QuietOption, app, quiet_libraries
from persyn_hf.config import RunConfig
from persyn_hf.errors import PublishError
from persyn_hf.text import tame

if TYPE_CHECKING:
    from persyn_hf.publishing.push import Published
    from persyn_hf.publishing.repository import Pushed


@app.command()
def push(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run; stages that are not finished run first.")],
    dataset_repo_id: Annotated[
        str | None, typer.Option(help="The dataset repository, as `me/my-student-data`. Default: the file's.")
    ] = None,
    router_repo_id: Annotated[str | None, typer.Option(help="The router's repository, as `me/my-router`.")] = None,
    config_name: Annotated[str | None, typer.Option(help="The dataset's configuration; one per student.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="New repositories are public; private if left out.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="A branch of both repositories.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open pull requests instead of committing.")] = False,
    commit_message: Annotated[str | None, typer.Option(help="Of every commit.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A git tag for both commits, as `v1.0`; repeatable.")] = None,
    collection: Annotated[str | None, typer.Option(help="A collection's slug, or the title of a new one.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence identifier, as `apache-2.0`.")] = None,
    allow_secrets: Annotated[
        bool, typer.Option("--allow-secrets", help="Push text that looks like a key or a token.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and write everything, send nothing.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="The run folder, instead of the file's.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Push a run's personalised dataset, and its router, to the Hub with their cards.

    Everything is checked before anything is sent; each repository changes in one commit, and in none where nothing
    has changed. A push that was interrupted is finished by running it again. Options count more than the `publish`
    section of the file.
    """
    from persyn_hf.run.pipeline import run

    overrides = {"output_dir": str(output_dir)} if output_dir is not None else {}
    settings = RunConfig.from_yaml(config, overrides)
    given: dict[str, Any] = {
        "dataset_repo_id": dataset_repo_id,
        "router_repo_id": router_repo_id,
        "config_name": config_name,
        "revision": revision,
        "commit_message": commit_message,
        "tags": tag,
        "collection": collection,
        "license": license,
        "private": False if public else None,
        "create_pr": create_pr or None,
        "allow_secrets": allow_secrets or None,
        "dry_run": dry_run or None,
    }
    publish = settings.publish.model_dump(mode="json") | {k: v for k, v in given.items() if v is not None}
    settings = RunConfig.from_dict(settings.model_dump(mode="json") | {"publish": publish}, source="push")
    if settings.publish.dataset_repo_id is None:
        raise PublishError("Name the dataset repository with `--dataset-repo-id`, or under `publish` in the file.")
    quiet_libraries(quiet)
    result = run(settings, progress=not quiet, source=str(config))
    assert result.published is not None, "a run with a dataset repository publishes"
    _print_published(result.published)


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="A dataset that persyn-hf pushed, as `me/my-student-data`.")],
    output_dir: Annotated[Path, typer.Argument(help="Gets `dataset/` and `router/`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dataset.")] = None,
    without_router: Annotated[bool, typer.Option("--without-router", help="Leave the router out.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Download a published dataset, and the router that it cites, into a folder."""
    from persyn_hf.publishing.load import pull as download
    from persyn_hf.publishing.load import read_provenance

    quiet_libraries(quiet)
    folder = download(repo_id, output_dir, revision=revision, with_router=not without_router)
    typer.echo(f"{repo_id} is in {folder}")
    for name, provenance in read_provenance(folder).items():
        student = tame(provenance.student or "a student that is not recorded")
        typer.echo(f"{name}: {provenance.rows} rows for {student}")


def _print_published(published: Published) -> None:
    for pushed in (published.router, published.dataset):
        if pushed is not None:
            typer.echo(_line(pushed, published.folder))
    if published.folder is not None:
        typer.echo(f"Nothing was sent; what would be is in {published.folder}")
    if published.collection is not None:
        typer.echo(f"collection {published.collection}")


def _line(pushed: Pushed, dry_run: Path | None) -> str:
    name = f"{pushed.repo_type} {pushed.repo_id}"
    if not pushed.changed:
        return f"{name}: nothing has changed; {pushed.url}"
    count = f"{len(pushed.added)} files, {len(pushed.deleted)} taken away"
    if dry_run is not None:
        return f"{name}: would change: {count}"
    return f"{name}: {count}; {pushed.pr_url or pushed.url}"
