"""Warnings about a teacher's server, derived from its answers, each given once."""

from __future__ import annotations

import logging

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.generation.finish import NOT_GIVEN
from persyn_hf.ledger.completion import Completion
from persyn_hf.text import tame

_log = logging.getLogger(__name__)
#: Maximum number of unknown finish reasons of one teacher to warn about.
_REASONS = 5


class Notices:
    """Warns once about each anomaly in one teacher's answers.

    Args:
        teacher (`Teacher`): Teacher that gives the answers.
    """

    def __init__(self, teacher: Teacher) -> None:
        self._name = tame(teacher.name)
        self._max_tokens = teacher.sampling.max_tokens
        self._told: set[str] = set()

    def heed(self, completion: Completion) -> None:
        """Checks one answer."""
        reason, made = completion.finish_reason, completion.completion_tokens
        if reason == NOT_GIVEN:
            self._tell(
                reason,
                "sends no finish reason and no token counts, so truncated answers cannot be recognised; its longer "
                "answers count as truncated",
            )
        elif reason not in columns.FINISH_REASONS and len(self._told) < _REASONS:
            self._tell(reason, f"ended an answer for the unknown reason `{tame(reason)}`; it counts as truncated")
        if reason == "length" and made is not None and made < self._max_tokens:
            self._tell(
                "length below `max_tokens`",
                f"was cut off after {made:,} tokens, although `max_tokens` is {self._max_tokens:,}: its server has a "
                "lower limit, or the context was full",
            )

        if made is not None and made > self._max_tokens and completion.usage_source == "server":
            self._tell(
                "more than `max_tokens`",
                f"counts {made:,} tokens for an answer, although `max_tokens` is {self._max_tokens:,}: reasoning is "
                "charged in addition to it; `max_cost` reserves more from now on",
            )

    def _tell(self, what: str, words: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("teacher %s %s", self._name, words)
