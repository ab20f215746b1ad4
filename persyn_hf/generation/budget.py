"""Money: what an answer of a teacher costs, and what its requests set aside."""

from __future__ import annotations

import json
from typing import Any

from persyn_hf.config import Teacher
from persyn_hf.generation.client import Request
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.money import Budget

#: Tokens that a chat template adds around one message, at most.
_TEMPLATE_TOKENS = 64


def price(teacher: Teacher, prompt_tokens: int | None, completion_tokens: int | None) -> float:
    """USD for so many tokens of a teacher."""
    return teacher.price(prompt_tokens or 0, completion_tokens or 0)


def worst_case(teacher: Teacher, request: Request) -> float:
    """USD that a request can cost at most: a text has no more tokens than bytes, an answer at most `max_tokens`."""
    asked = sum(_bytes(message.get("content")) + _TEMPLATE_TOKENS for message in request.messages)
    return price(teacher, asked, request.sampling.max_tokens)


def _bytes(content: Any) -> int:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return len(text.encode("utf-8", "replace"))


def cost_of(teacher: Teacher, request: Request, completion: Completion) -> float:
    """USD of one answer: by its usage, or the worst case where nobody could count."""
    if completion.prompt_tokens is None or completion.completion_tokens is None:
        return worst_case(teacher, request)
    return teacher.price(
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.cached_tokens or 0,
        completion.reasoning_tokens or 0,
    )


class Purse:
    """The budget as one teacher's requests see it.

    Args:
        budget (`Budget`): The run's.
        teacher (`Teacher`): With its prices.
    """

    def __init__(self, budget: Budget, teacher: Teacher) -> None:
        self.budget = budget
        self._teacher = teacher
        self._free = not teacher.has_price

    def hold(self, request: Request) -> float | None:
        """Sets a request's worst case aside; `None` where it does not fit."""
        if self._free:
            return 0.0
        amount = worst_case(self._teacher, request)
        return amount if self.budget.hold(amount) else None

    def paid(self, held: float, request: Request, completion: Completion) -> None:
        """The request was answered."""
        if not self._free:
            self.budget.paid(held, cost_of(self._teacher, request, completion))

    def failed(self, held: float, charged: bool) -> None:
        """The request was not answered; one that the server may have charged for counts with its worst case."""
        if not self._free:
            self.budget.failed(held, held if charged else 0.0)
