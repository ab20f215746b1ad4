"""Cost of a teacher's answers, and the amounts that its requests reserve."""

from __future__ import annotations

import json

from persyn_hf.config import Teacher
from persyn_hf.generation.client import Request
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.money import Budget

#: Maximum number of tokens that a chat template adds around one message.
_TEMPLATE_TOKENS = 64


def worst_case(teacher: Teacher, request: Request, most: int = 0) -> float:
    """Returns the maximum cost of a request, in USD; a text has no more tokens than bytes.

    Args:
        teacher (`Teacher`): Teacher with its prices.
        request (`Request`): Request to price.
        most (`int`, defaults to 0): Maximum tokens of an answer, if they can exceed `max_tokens`.
    """
    asked = sum(_bytes(message.get("content")) + _TEMPLATE_TOKENS for message in request.messages)
    per_prompt, per_answer, per_cached, per_thought = teacher.prices
    made = max(most, request.sampling.max_tokens)
    return (asked * max(per_prompt, per_cached) + made * max(per_answer, per_thought)) / 1e6


def _bytes(content: object) -> int:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
    return len(text.encode("utf-8", "replace"))


def cost_of(teacher: Teacher, request: Request, completion: Completion) -> float:
    """Returns the cost of one answer in USD: by its token counts, or the worst case if they are unknown."""
    if completion.prompt_tokens is None or completion.completion_tokens is None:
        return worst_case(teacher, request)
    return teacher.price(
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.cached_tokens or 0,
        completion.reasoning_tokens or 0,
    )


class Purse:
    """The budget for the requests of one teacher.

    Some services do not limit reasoning by `max_tokens`. If there is a cost limit, one request is therefore sent first
    and shows how many tokens the service counts. Once an answer has exceeded `max_tokens`, 1.5 times the tokens of the
    longest answer are reserved for each following request, and for those in flight.

    Args:
        budget (`Budget`): Budget of the run.
        teacher (`Teacher`): Teacher with its prices.
    """

    def __init__(self, budget: Budget, teacher: Teacher) -> None:
        self.budget = budget
        self._teacher = teacher
        self._free = not teacher.has_price
        self._in_flight = 0
        self._shown = budget.limit is None
        self._most = 0
        self._short, self._missing = (
            0,
            0.0,
        )  # requests in flight that reserved too little, and the USD missing for each

    def hold(self, request: Request) -> float | None:
        """Reserves the worst-case cost of a request; returns the amount, or `None` if it does not fit now."""
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
        """Records the cost of an answered request."""
        if not self._free:
            self._landed()
            self._learn(request, completion)
            self.budget.paid(held, cost_of(self._teacher, request, completion))

    def failed(self, held: float, charged: bool) -> None:
        """Releases a failed request; if the server may have charged for it, its worst case counts as lost."""
        if not self._free:
            self._landed()
            self.budget.failed(held, held if charged else 0.0)

    def _landed(self) -> None:
        self._in_flight -= 1
        self._short = max(0, self._short - 1)

    def _learn(self, request: Request, completion: Completion) -> None:
        """Updates the maximum tokens from the counts of an answer."""
        self._shown = True
        made = completion.completion_tokens or 0
        if made > max(self._most, request.sampling.max_tokens):
            before = worst_case(self._teacher, request, self._most)
            self._most = made + made // 2
            self._missing = max(0.0, worst_case(self._teacher, request, self._most) - before)
            self._short = self._in_flight
