"""`push` and `pull`: uploads a run's results to the Hub, and downloads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persyn_hf.cli.app import QuietOption, SetOption, app, moved_to_set, quiet_libraries, read_run
from persyn_hf.errors import PublishError
from persyn_hf.text import tame

if TYPE_CHECKING:
    from persyn_hf.publishing.push import Published
    from persyn_hf.publishing.repository import Pushed


@app.command(
    cls=moved_to_set(
        config_name="publish.config_name=…",
        revision="publish.revision=…",
        create_pr="publish.create_pr=true",
        commit_message="publish.commit_message=…",
        tag="publish.tags=[…]",
        collection="publish.collection=…",
        license="publish.license=…",
        allow_secrets="publish.allow_secrets=true",
    ),
    epilog="Example: persyn-hf push run.yaml --dataset-repo-id me/data --set publish.license=apache-2.0",
)
def push(
    config: Annotated[Path, typer.Argument(help="YAML file of the run; unfinished stages run first.")],
    dataset_repo_id: Annotated[
        str | None, typer.Option(help="Dataset repository, such as `me/my-student-data`. Default: from the file.")
    ] = None,
    router_repo_id: Annotated[str | None, typer.Option(help="Router repository, such as `me/my-router`.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Create new repositories as public instead of private.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and write everything without uploading.")] = False,
    output_dir: Annotated[Path | None, typer.Option(help="Run folder. Default: from the file.")] = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Push a run's personalised dataset, and its router, to the Hub with their cards.

    All checks run before the upload. Each repository changes in one commit, or in none if nothing has changed. Run the
    command again to finish an interrupted push. Options override the `publish` section of the file.
    """
    from persyn_hf.run.pipeline import run

    made = read_run(
        config,
        settings,
        output_dir=output_dir,
        publish__dataset_repo_id=dataset_repo_id,
        publish__router_repo_id=router_repo_id,
        publish__private=False if public else None,
        publish__dry_run=dry_run or None,
    )
    if made.publish.dataset_repo_id is None:
        raise PublishError("Name the dataset repository with `--dataset-repo-id`, or under `publish` in the file.")
    quiet_libraries(quiet)
    result = run(made, progress=not quiet, source=str(config))
    assert result.published is not None, "a run with a dataset repository publishes"
    _print_published(result.published)


@app.command(epilog="Example: persyn-hf pull me/my-student-data runs/pulled")
def pull(
    repo_id: Annotated[str, typer.Argument(help="Dataset pushed by persyn-hf, such as `me/my-student-data`.")],
    output_dir: Annotated[Path, typer.Argument(help="Folder for `dataset/` and `router/`.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the dataset.")] = None,
    without_router: Annotated[bool, typer.Option("--without-router", help="Do not download the router.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Download a published dataset, and the router that it cites, into a folder."""
    from persyn_hf.publishing.load import pull as download
    from persyn_hf.publishing.load import read_provenance

    quiet_libraries(quiet)
    folder = download(repo_id, output_dir, revision=revision, with_router=not without_router)
    typer.echo(f"Downloaded {repo_id} to {folder}")
    for name, provenance in read_provenance(folder).items():
        student = tame(provenance.student or "an unknown student")
        typer.echo(f"{name}: {provenance.rows} rows for {student}")


def _print_published(published: Published) -> None:
    for pushed in (published.router, published.dataset):
        if pushed is not None:
            typer.echo(_line(pushed, published.folder))
    if published.folder is not None:
        typer.echo(f"Dry run: nothing was uploaded. The files are in {published.folder}")
    if published.collection is not None:
        typer.echo(f"collection {published.collection}")


def _line(pushed: Pushed, dry_run: Path | None) -> str:
    name = f"{pushed.repo_type} {pushed.repo_id}"
    if not pushed.changed:
        return f"{name}: no changes; {pushed.url}"
    count = f"{len(pushed.added)} files added, {len(pushed.deleted)} removed"
    if dry_run is not None:
        return f"{name}: would change: {count}"
    return f"{name}: {count}; {pushed.pr_url or pushed.url}"
