"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table.

    Args:
        topic (`str`): What was looked at.
        state (`"ok"`, `"note"` or `"fail"`): A note is worth knowing and stops nothing; a failure stops a run.
        message (`str`): What was found, and how to mend it.
    """

    topic: str
    state: State
    message: str
