"""Help of every command, and completion of the shell."""

import re

import pytest
import typer
from typer.testing import CliRunner

from persyn_hf.cli import app

GROUP = typer.main.get_command(app)


def commands():
    yield []
    for name, command in GROUP.commands.items():
        yield [name]
        yield from ([name, inner] for inner in getattr(command, "commands", {}))


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_help_has_an_example_and_a_short_option(command):
    long, short = (CliRunner().invoke(app, [*command, flag], env={"COLUMNS": "80"}) for flag in ("--help", "-h"))
    assert long.exit_code == short.exit_code == 0
    assert long.output == short.output
    assert re.search(r"Example: persyn-hf \w+", long.output), long.output


def test_the_shell_completes():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "--install-completion" in shown and "--show-completion" in shown
