"""`schema`: prints the reference of the run file, as JSON Schema or Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from persyn_hf.cli.app import app
from persyn_hf.config.reference import json_schema, reference_page
from persyn_hf.tables import write_atomically


@app.command(epilog="Example: persyn-hf schema --output run.schema.json")
def schema(
    output: Annotated[Path | None, typer.Option(help="File to write. Default: print.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown page with every key, type, default and meaning.")
    ] = False,
) -> None:
    """Print the JSON Schema of the run file: keys, types, defaults, bounds and meanings.

    Editors with a YAML language server use it if the run file's first line is:
    # yaml-language-server: $schema=run.schema.json
    """
    text = reference_page() if markdown else json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    typer.echo(f"Wrote {output}")
