"""Findings of the checks, and the error that reports several of them."""

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
        topic (`str`): Subject of the check.
        state (`"ok"`, `"note"` or `"fail"`): State of the subject. A failure stops a run; a note does not.
        message (`str`): Description of the finding, and how to fix it.
        key (`str`, *optional*): Key of the configuration to change, such as `student.endpoint.url`.
        error (`PersynError`, *optional*): Error that a run raises if this is its only failure.
    """

    topic: str
    state: State
    message: str
    key: str | None = field(default=None, compare=False)
    error: PersynError | None = field(default=None, compare=False, repr=False)


class Findings(list[Finding]):
    """List of findings, in the order of the checks."""

    @contextmanager
    def failing(self, topic: str, key: str | None = None) -> Iterator[None]:
        """Records a `PersynError` of the block as a failure."""
        try:
            yield
        except PersynError as error:
            self.append(Finding(topic, "fail", str(error), key, error))

    @property
    def failures(self) -> list[Finding]:
        """Findings that stop a run."""
        return [finding for finding in self if finding.state == "fail"]


def require_ready(findings: Iterable[Finding], source: str, requested: str = "No requests were sent") -> None:
    """Raises one error with all failures, if there are any.

    Args:
        findings (`Iterable[Finding]`): Findings of the checks.
        source (`str`): Name of the configuration in errors.
        requested (`str`, defaults to `"No requests were sent"`): What was requested before the checks failed.

    Raises:
        PersynError: If there is one failure: its own error.
        ConfigError: If there are several: one numbered line for each, with the key to change.
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
        f"{source} has {len(lines)} problems. {requested}; fix all of them and run again:\n" + "\n".join(lines)
    )


def _line(finding: Finding, source: str) -> str:
    """Returns the message, preceded by its key unless it names the key, with continuation lines indented."""
    message = finding.message.removeprefix(f"{source}: ")
    named = finding.key is None or finding.key in message
    text = message if named else f"`{finding.key}`: {message}"
    return text.replace("\n", "\n     ")
