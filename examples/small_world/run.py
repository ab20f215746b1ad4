"""The small world from nothing to its table: `python -m examples.small_world.run`, from the repository's root.

Trains seven teachers and two students from scratch, then compares every policy through the product's own stages.
Whatever is finished is found again, so it may be stopped at any time. `--quick` goes through all of it in about a
minute, with models that learn nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import yaml

from examples.small_world.world import read_world, settle

HERE = Path(__file__).parent


def settings(output_dir: Path, quick: bool = False) -> dict[str, Any]:
    """The comparison's configuration with its paths under `output_dir`."""
    text = (HERE / "compare.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text.replace("runs/small_world", str(output_dir)))
    if quick:
        for teacher in data["teachers"]:
            teacher["preflight"] = False  # untrained teachers may say nothing, which would stop the run at once
        data["probe"]["size"] = 24
        data["publish"] = {"keep_truncated": True}  # who has learnt nothing does not know when to stop
        data["router"] |= {"folds": 2, "min_answered": 0.0}
        data["training"] |= {"max_steps": 2, "per_device_train_batch_size": 8}
        data["compare"] |= {"seeds": [0, 1], "processes": 1}
        for one in [*(teacher["sampling"] for teacher in data["teachers"]), *data["compare"]["decodings"]]:
            one["max_tokens"] = 8
    return data


def main(output_dir: Path, quick: bool) -> None:
    from rich.console import Console

    from persyn_hf.cli.app import quiet_libraries
    from persyn_hf.comparison.compare import compare
    from persyn_hf.comparison.presentation import print_comparison
    from persyn_hf.config import RunConfig

    quiet_libraries(quiet=True)
    began = time.monotonic()
    settle(read_world(HERE / "world.yaml", quick), output_dir)
    settled = time.monotonic()
    result = compare(RunConfig.from_dict(settings(output_dir, quick), source="small world"))
    console = Console(width=170)
    print_teachers(output_dir, console)
    print_comparison(result.summary, result.facts, console)
    now = time.monotonic()
    print(f"models {settled - began:.0f} s, comparison {now - settled:.0f} s; everything is in {output_dir}")


def print_teachers(output_dir: Path, console: Any) -> None:
    """How often each teacher is right at each task, and what the first student finds of its answers."""
    from collections import defaultdict

    import pyarrow.parquet as pq
    from rich.table import Table

    from examples.small_world.tasks import TASKS

    scored = pq.read_table(next((output_dir / "students").glob("*/stages/parallel-score.parquet"))).to_pylist()
    right: dict[tuple[str, str], list[float]] = defaultdict(list)
    likely: dict[str, list[float]] = defaultdict(list)
    for row in scored:
        right[row["teacher"], row["prompt"].split()[0]].append(row["quality"] or 0.0)
        if row["learnability"] is not None:
            likely[row["teacher"]].append(row["learnability"])
    table = Table(title="teachers: share of right answers; learnability in nats/token", title_justify="left")
    for name in ("teacher", *TASKS, "learnability"):
        table.add_column(name)
    for name, values in likely.items():
        shares = [sum(right[name, task]) / len(right[name, task]) for task in TASKS]
        table.add_row(name, *(f"{share:.2f}" for share in shares), f"{sum(values) / len(values):.2f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/small_world"))
    parser.add_argument("--quick", action="store_true", help="Every stage, but nobody learns anything.")
    arguments = parser.parse_args()
    main(arguments.output_dir, arguments.quick)
