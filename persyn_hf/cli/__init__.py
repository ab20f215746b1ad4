"""The command line, `persyn-hf`: thin commands over the library, one module for each part of the method."""

from __future__ import annotations

import sys

import typer

from persyn_hf.cli import allocate, doctor, hub, ledger, pairs, plan, route, run, schema, students
from persyn_hf.cli.app import app
from persyn_hf.endpoints.event_loop import exit_on_sigterm
from persyn_hf.errors import ConfigError, PersynError
from persyn_hf.packages import explained
from persyn_hf.text import tame_lines

__all__ = ["allocate", "app", "doctor", "hub", "ledger", "main", "pairs", "plan", "route", "run", "schema", "students"]


def main() -> None:
    """Runs the command line. Errors are printed on standard error; SIGTERM exits with code 143."""
    exit_on_sigterm()
    try:
        app()
    except ConfigError as error:
        typer.echo(tame_lines(f"persyn-hf: {error}"), err=True)
        sys.exit(2)
    except PersynError as error:
        typer.echo(tame_lines(f"persyn-hf: {type(error).__name__}: {error}"), err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        missing = explained(error, "run this command")
        if not isinstance(missing, PersynError):
            raise
        typer.echo(f"persyn-hf: {missing}", err=True)
        sys.exit(1)
