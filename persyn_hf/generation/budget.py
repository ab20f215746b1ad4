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


def worst_case(teacher: Teacher, request: Request, most: int = 0) -> float:
    """USD that a request can cost at most.

    Args:
        teacher (`Teacher`): With its prices.
        request (`Request`): A text has no more tokens than bytes.
        most (`int`, defaults to 0): Tokens of an answer, where they may be more than `max_tokens`.
    """
    asked = sum(_bytes(message.get("content")) + _TEMPLATE_TOKENS for message in request.messages)
    per_prompt, per_answer, per_cached, per_thought = teacher.prices
    made = max(most, request.sampling.max_tokens)
    return (asked * max(per_prompt, per_cached) + made * max(per_answer, per_thought)) / 1e6


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

    `max_tokens` does not bound the reasoning of every service. So where there is a limit, one request goes ahead and
    shows how many tokens are counted; and where an answer has had more than `max_tokens`, half as many again as the
    longest had are set aside for each that follows, and for those in flight.

    Args:
        budget (`Budget`): The run's.
        teacher (`Teacher`): With its prices.
    """

    def __init__(self, budget: Budget, teacher: Teacher) -> None:
        self.budget = budget
        self._teacher = teacher
        self._free = not teacher.has_price
        self._in_flight = 0
        self._shown = budget.limit is None
        self._most = 0
        self._short, self._missing = 0, 0.0  # requests in flight for which too little is set aside, USD for each

    def hold(self, request: Request) -> float | None:
        """Sets a request's worst case aside; `None` where it does not fit now."""
        if self._free:
            return 0.0
        if not self._shown and self._in_flight:
            return None
        amount = worst_case(self._teacher, request, self._most) + self._short * self._missing
        if not self.budget.hold(amount):
            return None
        self._in_flight += 1
        return amount

    def paid(self, held: float, request: Request, completion: Completion) -> None:
        """The request was answered."""
        if not self._free:
            self._landed()
            self._learn(request, completion)
            self.budget.paid(held, cost_of(self._teacher, request, completion))

    def failed(self, held: float, charged: bool) -> None:
        """The request was not answered; one that the server may have charged for counts with its worst case."""
        if not self._free:
            self._landed()
            self.budget.failed(held, held if charged else 0.0)

    def _landed(self) -> None:
        self._in_flight -= 1
        self._short = max(0, self._short - 1)

    def _learn(self, request: Request, completion: Completion) -> None:
        """Takes into account how many tokens an answer was counted with."""
        self._shown = True
        made = completion.completion_tokens or 0
        if made > max(self._most, request.sampling.max_tokens):
            before = worst_case(self._teacher, request, self._most)
            self._most = made + made // 2
            self._missing = max(0.0, worst_case(self._teacher, request, self._most) - before)
            self._short = self._in_flight
