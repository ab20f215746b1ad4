"""`train-student` and `compare`: fine-tune students, and compare training sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from persyn_hf.cli.app import QuietOption, SetOption, app, merged_overrides, moved_to_set, quiet_libraries, read_run
from persyn_hf.config import Publish, RunConfig, Settings, Student, Training
from persyn_hf.config.overrides import read_overridden
from persyn_hf.errors import ConfigError
from persyn_hf.text import markup


class _StudentRun(Settings):
    """Settings of `train-student` without a configuration file."""

    student: Student
    seed: int = Field(0, ge=0, lt=2**31)
    training: Training = Training()
    publish: Publish = Publish()


@app.command(
    "train-student",
    cls=moved_to_set(
        epochs="training.num_train_epochs=…",
        learning_rate="training.learning_rate=…",
        lora_r="training.lora.r=…",
        packing="training.packing=true",
        report_to="training.report_to=[…]",
        revision="student.revision=…",
        seed="seed=…",
        public="publish.private=false",
    ),
    epilog="Example: persyn-hf train-student me/data org/student --output-dir runs/student "
    "--set training.num_train_epochs=3",
)
def train_student_command(
    data: Annotated[str, typer.Argument(help="Personalised set: a file, a folder or a Hub dataset.")],
    student: Annotated[str, typer.Argument(help="Student: Hub repository or local folder.")],
    output_dir: Annotated[Path, typer.Option(help="Folder of the trained student.")],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with `training`, `seed` and `publish.private`.")
    ] = None,
    settings: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Resume an interrupted training.")] = True,
    push_to_hub: Annotated[
        str | None, typer.Option(help="Hub repository to push to; private unless `publish.private` is false.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune a student on a personalised set, with a loss on the completions only.

    The command reads `training`, `seed`, `publish.private` and `student.revision` of the configuration.
    On several GPUs: accelerate launch "$(command -v persyn-hf)" train-student …
    """
    from persyn_hf.students.train import train_student

    # STUDENT replaces the file's student, whose revision belongs to another model.
    overrides = {"student": {"model": student}} | _read_here(merged_overrides(settings))
    made: RunConfig | _StudentRun
    if config is None:
        made = read_overridden(_StudentRun, {}, overrides, "train-student")
    else:
        made = RunConfig.from_yaml(config, overrides)
    assert made.student is not None, "STUDENT is required"
    quiet_libraries(quiet)
    trained = train_student(
        data,
        student,
        output_dir,
        made.training,
        revision=made.student.revision,
        seed=made.seed,
        resume=resume,
        push_to_hub=push_to_hub,
        private=made.publish.private,
        progress=not quiet,
    )
    report = trained.report
    seen = report.counts.learnt_tokens if report.seen_tokens is None else report.seen_tokens
    typer.echo(
        f"{report.counts.rows} rows, {seen} tokens learnt, {report.steps} steps, "
        f"mean loss {report.loss:.3f} nats/token"
    )
    for count, what in (
        (report.counts.without_end, "rows were truncated, so they do not teach the end of turn"),
        (report.counts.left_out, "answers were left out, since their prompts fill `max_length`"),
    ):
        if count:
            typer.echo(f"{count} {what}")
    typer.echo(f"Saved the student to {trained.path}" + (f" and {trained.url}" if trained.url else ""))


def _read_here(overrides: dict[str, object]) -> dict[str, object]:
    """Raises an error for keys that training does not read."""
    for key in overrides:
        if key.partition(".")[0] != "training" and key not in ("seed", "student.revision", "publish.private"):
            raise ConfigError(
                "train-student reads only training.…, seed, student.revision and publish.private; leave out the other "
                "keys of --set."
            )
    return overrides


@app.command("compare", epilog="Example: persyn-hf compare run.yaml --set compare.seeds=[0,1]")
def compare_command(
    config: Annotated[Path, typer.Argument(help="YAML file of a run with a section `compare`.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Folder of the comparison. Default: the file's `output_dir`.")
    ] = None,
    settings: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train students on every policy's set with several seeds, and compare them.

    The result is a table with intervals and paired tests, a plot and the raw scores. A comparison can be stopped at
    any time; a later call skips the finished parts.
    """
    from rich.console import Console

    from persyn_hf.comparison.compare import compare
    from persyn_hf.comparison.presentation import print_comparison

    quiet_libraries(quiet)
    run = read_run(config, settings, output_dir=output_dir)
    result = compare(run, progress=not quiet, source=str(config))
    console = Console(width=None if sys.stdout.isatty() else 160)
    print_comparison(result.summary, result.facts, console)
    console.print(f"Results: {markup(result.folder)}", highlight=False, soft_wrap=True)
