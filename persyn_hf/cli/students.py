"""`train-student` and `compare`: what a training set is worth."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from persyn_hf.cli.app import QuietOption, app, quiet_libraries
from persyn_hf.config import RunConfig, Training, read_settings
from persyn_hf.text import markup


@app.command("train-student")
def train_student_command(
    data: Annotated[str, typer.Argument(help="The personalised set: a file, a folder or a Hub dataset.")],
    student: Annotated[str, typer.Argument(help="The student: Hub repository or local folder.")],
    output_dir: Annotated[Path, typer.Option(help="Where the trained student goes.")],
    config: Annotated[
        Path | None, typer.Option(help="Take the recipe from the section `training` of this file.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data, instead of the recipe's.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    lora_r: Annotated[int | None, typer.Option(help="Train adapters of this rank, not all weights.")] = None,
    packing: Annotated[bool, typer.Option("--packing", help="Put several rows into one sequence.")] = False,
    report_to: Annotated[
        list[str] | None, typer.Option(help="trackio, wandb or tensorboard; may be repeated.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the student.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of rows and of adapters.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted training stopped.")] = True,
    push_to_hub: Annotated[str | None, typer.Option(help="Repository to push the student to.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a student on a personalised set; the loss is on the completions only.

    On several GPUs: accelerate launch "$(command -v persyn-hf)" train-student …
    """
    from persyn_hf.students.train import train_student

    quiet_libraries(quiet)
    recipe: dict[str, Any] = {}
    if config is not None:
        recipe = RunConfig.from_yaml(config).training.model_dump(exclude_unset=True)
    given = {"num_train_epochs": epochs, "learning_rate": learning_rate, "report_to": report_to}
    recipe |= {key: value for key, value in given.items() if value is not None}
    if lora_r is not None:
        recipe["lora"] = {"r": lora_r, "alpha": 2 * lora_r}
    if packing:
        recipe["packing"] = True
    trained = train_student(
        data,
        student,
        output_dir,
        read_settings(Training, recipe, "training"),
        revision=revision,
        seed=seed,
        resume=resume,
        push_to_hub=push_to_hub,
        private=not public,
        progress=not quiet,
    )
    report = trained.report
    typer.echo(
        f"{report.counts.rows} rows, {report.counts.learnt_tokens} tokens learnt, {report.steps} steps, "
        f"mean loss {report.loss:.3f} nats/token"
    )
    for count, what in (
        (report.counts.without_end, "rows were cut and learn no end of turn"),
        (report.counts.left_out, "answers were left out: their prompts fill `max_length`"),
    ):
        if count:
            typer.echo(f"{count} {what}")
    typer.echo(f"The student is in {trained.path}" + (f" and at {trained.url}" if trained.url else ""))


@app.command("compare")
def compare_command(
    config: Annotated[Path, typer.Argument(help="The YAML file of a run with a section `compare`.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="The folder of the comparison, instead of the file's `output_dir`.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Train students on every policy's set with several seeds, and set them beside each other.

    One table with intervals and paired tests, a plot and the raw scores. Whatever is finished is found and skipped by
    a later call, so a comparison may be stopped at any time.
    """
    from rich.console import Console

    from persyn_hf.comparison.compare import compare
    from persyn_hf.comparison.presentation import print_comparison

    quiet_libraries(quiet)
    overrides = {"output_dir": str(output_dir)} if output_dir is not None else {}
    result = compare(RunConfig.from_yaml(config, overrides), progress=not quiet, source=str(config))
    console = Console(width=None if sys.stdout.isatty() else 160)
    print_comparison(result.summary, result.facts, console)
    console.print(f"Everything is in {markup(result.folder)}", highlight=False, soft_wrap=True)
