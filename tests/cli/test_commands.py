"""Every command: its help, an example in it, few parameters, and the former flags."""

import inspect
import re

import pytest
import typer
from typer.testing import CliRunner

from persyn_hf.cli import app
from persyn_hf.config.overrides import read_overridden
from persyn_hf.errors import ConfigError

WIDE = {"COLUMNS": "250", "TERM": "dumb", "NO_COLOR": "1"}


def _commands(application, *names):
    for command in application.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        yield (*names, name), command
    for group in application.registered_groups:
        yield from _commands(group.typer_instance, group.name)


COMMANDS = dict(_commands(app))
#: They read a run file, or what stands in one.
CONFIGURED = {"run", "demo", "plan", "doctor", "push", "compare", "train-student", "allocate"}


def said(*arguments):
    done = CliRunner().invoke(app, list(arguments), env=WIDE)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_the_commands():
    assert [" ".join(name) for name in COMMANDS] == [
        "allocate",
        "doctor",
        "push",
        "pull",
        "pairs",
        "export-routes",
        "plan",
        "route",
        "evaluate",
        "run",
        "demo",
        "schema",
        "train-student",
        "compare",
        "ledger show",
        "ledger export",
        "ledger prune",
        "ledger rescue",
    ]


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(name):
    helped = said(*name, "--help")
    assert helped == said(*name, "-h")
    assert f"Usage: persyn-hf {' '.join(name)} " in helped
    first = inspect.getdoc(COMMANDS[name].callback).partition("\n")[0]
    assert first in helped
    (example,) = re.findall(rf"Example: persyn-hf {' '.join(name)} [^│╭]+$", helped)
    assert len(example) < 140
    assert ("--set KEY=VALUE" in helped) == (name[0] in CONFIGURED)


def test_help_of_the_whole():
    assert said("-h") == said("--help")
    listed = said("--help")
    assert all(name[0] in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_a_command_has_eight_parameters_at_most(name):
    assert len(inspect.signature(COMMANDS[name].callback).parameters) <= 8


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_option_has_words(name):
    for parameter in typer.main.get_command_from_info(
        COMMANDS[name], pretty_exceptions_short=False, rich_markup_mode=None
    ).params:
        assert parameter.help, parameter.name


@pytest.mark.parametrize(
    ("arguments", "instead"),
    [
        (["train-student", "d", "s", "--output-dir", "o", "--epochs", "1"], "training.num_train_epochs=…"),
        (["train-student", "d", "s", "--output-dir", "o", "--lora-r=4"], "training.lora.r=…"),
        (["train-student", "d", "s", "--public", "--output-dir", "o"], "publish.private=false"),
        (["push", "run.yaml", "--tag", "v1"], "publish.tags=[…]"),
        (["push", "run.yaml", "--create-pr"], "publish.create_pr=true"),
        (["allocate", "r", "--output", "o", "--max-share", "0.5"], "allocation.max_share.NAME=0.5"),
        (["allocate", "r", "--output", "o", "--cost", "a=1"], "cost.NAME=0.002"),
    ],
)
def test_a_former_flag_names_what_replaces_it(arguments, instead):
    with pytest.raises(ConfigError) as raised:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    flag = next(one for one in arguments if one.startswith("--") and one != "--output" and one != "--output-dir")
    assert str(raised.value) == f"The option {flag.partition('=')[0]} was replaced; use --set '{instead}'."


def test_every_former_flag_names_a_key_that_there_is():
    from persyn_hf.cli.allocate import _TableSettings
    from persyn_hf.config import RunConfig

    for name, command in COMMANDS.items():
        root = _TableSettings if name == ("allocate",) else RunConfig
        for given in getattr(command.cls, "moved", {}).values():
            with pytest.raises(ConfigError) as raised:  # values are left out
                read_overridden(root, {}, {given.partition("=")[0]: {}}, "here")
            assert " key; " not in str(raised.value), given
