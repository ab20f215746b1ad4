"""`push`: a run's results on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from persyn_hf.cli.app import Stage, app, run_and_report
from persyn_hf.config import RunConfig


@app.command()
def push(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run that has finished `generate`.")],
    dataset_repo_id: Annotated[str, typer.Option(help="The dataset repository, as `me/my-student-data`.")],
    router_repo_id: Annotated[str | None, typer.Option(help="The router's repository, as `me/my-router`.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="New repositories are public; private if left out.")
    ] = False,
    output_dir: Annotated[Path | None, typer.Option(help="The run folder, instead of the file's.")] = None,
) -> None:
    """Push a run's personalised dataset, and its router, to the Hub with their cards."""
    overrides = {"output_dir": str(output_dir)} if output_dir is not None else {}
    settings = RunConfig.from_yaml(config, overrides)
    wanted = {"dataset_repo_id": dataset_repo_id, "router_repo_id": router_repo_id, "private": not public}
    publish = settings.publish.model_dump(mode="json") | wanted
    run_and_report(
        RunConfig.from_dict(settings.model_dump(mode="json") | {"publish": publish}, source="push"),
        Stage.PUBLISH,
        quiet=False,
        source=str(config),
    )
