"""`ledger`: shows, exports, prunes and rescues the answers of a run."""

from __future__ import annotations

import itertools
import json
import sys
import time
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from persyn_hf.cli.app import app
from persyn_hf.errors import ConfigError, LedgerError
from persyn_hf.tables import replaced
from persyn_hf.text import markup

if TYPE_CHECKING:
    from collections.abc import Iterator

    from persyn_hf.ledger.ledger import Ledger

ledger_app = typer.Typer(
    no_args_is_help=True,
    epilog="Example: persyn-hf ledger show runs/demo/ledger.sqlite",
    help="Show, export, prune and rescue the answers that a run has paid for.",
)
app.add_typer(ledger_app, name="ledger")

LedgerArgument = Annotated[Path, typer.Argument(help="Path of the ledger: `ledger.sqlite` in a run folder.")]
_DAY = 86_400


class Format(StrEnum):
    """File formats of `export`."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@ledger_app.command(epilog="Example: persyn-hf ledger show runs/demo/ledger.sqlite")
def show(ledger: LedgerArgument) -> None:
    """Show answers, tokens and cost by model: teachers, judges, and students behind a server."""
    from rich.console import Console
    from rich.table import Table

    with _existing(ledger) as opened:
        totals, lost = opened.totals(), opened.lost()
    table = Table(box=None)
    kinds = any(line["kind"] != "teacher" for line in totals)
    if kinds:
        table.add_column("kind")
    counted = ["answers", "truncated", "prompt_tokens", "completion_tokens"]
    counted += [name for name in ("cached_tokens", "reasoning_tokens") if any(line[name] for line in totals)]
    for name in ("model", "revision", *[name.replace("_", " ") for name in counted], "USD", "last"):
        table.add_column(name, justify="left" if name in ("model", "revision") else "right")
    for line in totals:
        counts = [f"{line[name]:,}" for name in counted]
        last = datetime.fromtimestamp(line["last"]).strftime("%Y-%m-%d %H:%M")
        names = [line["kind"]] if kinds else []
        names += [markup(line["model"] or "(unknown)"), markup(line["revision"][:20])]
        table.add_row(*names, *counts, f"{line['cost']:.4f}", last)
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    answers, cost = sum(line["answers"] for line in totals), sum(line["cost"] for line in totals)
    typer.echo(f"{ledger}: {answers:,} answers, {cost:.4f} USD, {ledger.stat().st_size / 2**20:.1f} MiB")
    if lost:
        typer.echo(
            f"Up to {lost:.4f} USD more for requests without an answer (timed out, or in flight when a process was "
            "killed); they count towards `max_cost`."
        )


@ledger_app.command(epilog="Example: persyn-hf ledger export runs/demo/ledger.sqlite answers.parquet --format parquet")
def export(
    ledger: LedgerArgument,
    output: Annotated[Path, typer.Argument(help="Path of the file to write.")],
    format: Annotated[Format, typer.Option(help="File format.")] = Format.JSONL,
) -> None:
    """Export every answer with its prompt id, model, sampling parameters, tokens and cost to one file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with _existing(ledger) as opened, replaced(output) as staged:
        count = _write_parquet(opened, staged) if format is Format.PARQUET else _write_jsonl(opened, staged)
    typer.echo(f"{output}: {count:,} answers")


@ledger_app.command(epilog="Example: persyn-hf ledger prune runs/demo/ledger.sqlite --truncated --dry-run")
def prune(
    ledger: LedgerArgument,
    model: Annotated[str | None, typer.Option(help="Only answers of this model.")] = None,
    older_than: Annotated[float | None, typer.Option(help="Only answers older than this many days.", min=0)] = None,
    truncated: Annotated[bool, typer.Option("--truncated", help="Only truncated answers.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the answers without removing them.")] = False,
) -> None:
    """Remove answers. A later run would request (and pay for) them again. At least one condition is required."""
    conditions: list[tuple[str, list[object]]] = []
    if model is not None:
        conditions.append(("model = ?", [model]))
    if older_than is not None:
        conditions.append(("created < ?", [time.time() - older_than * _DAY]))
    if truncated:
        conditions.append(("finish_reason <> 'stop'", []))
    if not conditions:
        raise ConfigError("`ledger prune` needs a condition: --model, --older-than or --truncated.")
    where = " AND ".join(text for text, _ in conditions)
    with _existing(ledger) as opened:
        count = opened.prune(where, [value for _, values in conditions for value in values], dry_run)
    typer.echo(f"{ledger}: {count:,} answers {'would be removed' if dry_run else 'removed'}")


@ledger_app.command(epilog="Example: persyn-hf ledger rescue damaged.sqlite new.sqlite")
def rescue(
    ledger: LedgerArgument,
    output: Annotated[Path, typer.Argument(help="Path of the new ledger, which must not exist.")],
) -> None:
    """Copy the readable answers of a damaged ledger, or of one in an older format, to a new ledger.

    Exit code 3 if some answers could not be read.
    """
    from persyn_hf.ledger.rescue import PARTS
    from persyn_hf.ledger.rescue import rescue as take_over

    count, damaged = take_over(ledger, output)
    typer.echo(f"{output}: {count:,} answers")
    if damaged:
        typer.echo(f"{damaged:,} of {PARTS:,} parts of {ledger} could not be read completely.", err=True)
        raise typer.Exit(3)


def _existing(path: Path) -> Ledger:
    from persyn_hf.ledger.ledger import Ledger

    if not path.is_file():  # `Ledger` would create it
        raise LedgerError(f"{path} does not exist; give the path of a ledger.")
    return Ledger(path)


def _plain(ledger: Ledger) -> Iterator[dict[str, object]]:
    for row in ledger.rows():
        yield {**row, "sampling": json.loads(row["sampling"]) if row["sampling"] else None}


def _write_jsonl(ledger: Ledger, path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in _plain(ledger):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(ledger: Ledger, path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from persyn_hf.ledger.schema import COLUMN_TYPES

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMN_TYPES.items()])
    rows, count = ledger.rows(), 0
    with pq.ParquetWriter(path, schema) as writer:
        while part := list(itertools.islice(rows, 1000)):
            writer.write_table(pa.Table.from_pylist(part, schema))
            count += len(part)
    return count
