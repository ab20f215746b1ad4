"""A finding: one line on what was looked at, and the errors that several of them make together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from persyn_hf.errors import ConfigError, PersynError

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Args:
        topic (`str`): What was looked at.
        state (`"ok"`, `"note"` or `"fail"`): A note is worth knowing and stops nothing; a failure stops a run.
        message (`str`): What was found, and how to mend it.
        key (`str`, *optional*): The key of the configuration to change, as `student.endpoint.url`.
        error (`PersynError`, *optional*): The error that a run raises where this is its only failure.
    """

    topic: str
    state: State
    message: str
    key: str | None = field(default=None, compare=False)
    error: PersynError | None = field(default=None, compare=False, repr=False)


class Findings(list[Finding]):
    """Findings in the order in which they were made."""

    @contextmanager
    def failing(self, topic: str, key: str | None = None) -> Iterator[None]:
        """Takes an error of the block as a failure."""
        try:
            yield
        except PersynError as error:
            self.append(Finding(topic, "fail", str(error), key, error))

    @property
    def failures(self) -> list[Finding]:
        """Those that stop a run."""
        return [finding for finding in self if finding.state == "fail"]


def require_ready(findings: Iterable[Finding], source: str) -> None:
    """Raises what stops a run, all of it in one message.

    Args:
        findings (`Iterable[Finding]`): From the checks.
        source (`str`): Names the configuration in errors.

    Raises:
        PersynError: The error of the only failure, as it is.
        ConfigError: Where there are several: one numbered line for each, with the key to change.
    """
    failures = [finding for finding in findings if finding.state == "fail"]
    if not failures:
        return
    if len(failures) == 1 and failures[0].error is not None:
        raise failures[0].error
    lines = [f"  {number}. {_line(finding, source)}" for number, finding in enumerate(dict.fromkeys(failures), 1)]
    if len(lines) == 1:
        raise ConfigError(f"{source}: {_line(failures[0], source)}")
    raise ConfigError(
        f"{source} has {len(lines)} problems. No requests were sent; fix all of them and run again:\n"
        + "\n".join(lines)
    )


def _line(finding: Finding, source: str) -> str:
    """The message with its key in front, unless it has it already; further lines are indented."""
    message = finding.message.removeprefix(f"{source}: ")
    named = finding.key is None or finding.key in message
    text = message if named else f"`{finding.key}`: {message}"
    return text.replace("\n", "\n     ")
