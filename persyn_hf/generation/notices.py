"""What a teacher's answers say of its server that a person should know, each thing once."""

from __future__ import annotations

import logging

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.generation.finish import NOT_GIVEN
from persyn_hf.ledger.completion import Completion
from persyn_hf.text import tame

_log = logging.getLogger(__name__)
#: Different unknown reasons of one teacher that are told.
_REASONS = 5


class Notices:
    """Warns once of each oddity in one teacher's answers.

    Args:
        teacher (`Teacher`): Whose answers.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._name = tame(teacher.name)
        self._max_tokens = teacher.sampling.max_tokens
        self._told: set[str] = set()

    def heed(self, completion: Completion) -> None:
        """Looks at one answer."""
        reason, made = completion.finish_reason, completion.completion_tokens
        if reason == NOT_GIVEN:
            self._tell(
                reason,
                "gives no finish reason and no token counts, so that a cut answer cannot be told from a whole one; "
                "its longer answers count as cut",
            )
        elif reason not in columns.FINISH_REASONS and len(self._told) < _REASONS:
            self._tell(reason, f"ended an answer for the unknown reason `{tame(reason)}`; such answers count as cut")
        if reason == "length" and made is not None and made < self._max_tokens:
            self._tell(
                "length below `max_tokens`",
                f"was cut after {made:,} tokens, though `max_tokens` is {self._max_tokens:,}: its server has a limit "
                "of its own, or the context was full",
            )

        if made is not None and made > self._max_tokens and completion.usage_source == "server":
            self._tell(
                "more than `max_tokens`",
                f"counts {made:,} tokens for an answer, though `max_tokens` is {self._max_tokens:,}: reasoning stands "
                "outside of it, and is paid for; `max_cost` sets more aside from now on",
            )

    def _tell(self, what: str, words: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("teacher %s %s", self._name, words)
