"""`plan`: predicts the cost of a run, and compares it with the actual cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from persyn_hf.cli.app import SetOption, app, quiet_libraries, read_run
from persyn_hf.tables import write_json


@app.command("plan", epilog="Example: persyn-hf plan run.yaml --completion-tokens 300 --set probe.size=1000")
def plan_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    completion_tokens: Annotated[
        float | None, typer.Option(help="Mean tokens of an answer. Default: `max_tokens`, an upper bound.", min=1)
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(
            help="Answers to take the lengths from: a Parquet file with `teacher` and `completion_tokens`; with "
            "`quality`, also how often answers pass `accept`."
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(help="Speed of one request. Default: 50; measured for teachers in this process.", min=0.01),
    ] = None,
    actual: Annotated[bool, typer.Option("--actual", help="Compare the plan with the finished run.")] = False,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the plan to.")] = None,
    settings: SetOption = None,
) -> None:
    """Predict answers, tokens, cost and time of a run for every stage and teacher, without sending a request.

    The plan also shows the FLOPs and memory of scoring, and the cost of generate-then-select, Strong, Mix and CAR for
    the same prompts, with the largest probe at which PerSyn costs no more.
    """
    from rich.console import Console

    from persyn_hf.planning.actual import read_actual
    from persyn_hf.planning.lengths import read_sample
    from persyn_hf.planning.plan import plan
    from persyn_hf.planning.printing import print_plan

    quiet_libraries(quiet=True)
    run = read_run(config, settings)
    answers = read_sample(sample) if sample is not None else None
    made = plan(run, completion_tokens, answers, tokens_per_second=tokens_per_second)
    facts = read_actual(run) if actual else None
    print_plan(made, Console(width=None if sys.stdout.isatty() else 120), facts)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, made.to_dict())
