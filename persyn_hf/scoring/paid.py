"""Questions to a server that scores, asked once and paid once: what the ledger has is not asked again.

A judge and a student behind a server are asked alike: the key of a question says all that its answer depends on, an
answer is in the ledger the moment it arrives, another run's questions are waited for, and what is in flight is set
aside from `max_cost`, which covers teachers and those that score together.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from persyn_hf.config import Service
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.event_loop import Interrupt, run_to_end, say
from persyn_hf.endpoints.requests import Send, ask_service
from persyn_hf.errors import LedgerError, RequestError, RetryableError, ScoringError, TeacherError
from persyn_hf.ledger.claims import Claims
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger, Origin, open_ledger
from persyn_hf.ledger.money import Budget

#: Seconds between two looks for answers that another run is to bring.
_LOOK = 0.2
#: How many times more patience there is once a question was answered.
_PATIENT = 4


@dataclass(frozen=True)
class Account:
    """Where answers are kept, and what they may cost.

    Args:
        ledger (`Ledger`): The ledger.
        max_cost (`float`, *optional*): USD that all of its answers may cost.
    """

    ledger: Ledger
    max_cost: float | None = None


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        key (`str`): The key of its answer, from [`question_key`].
        content (`Any`): What is asked.
        tokens (`int`): Tokens that it has at most.
        prompt_id (`str`, *optional*): The prompt whose answer is scored.
    """

    key: str
    content: Any
    tokens: int
    prompt_id: str | None = None


@dataclass(frozen=True)
class Asking:
    """Who is asked, and how an answer is read.

    Args:
        who (`str`): Names it in errors.
        endpoint (`Endpoint`), service (`Service`): The server.
        origin (`Origin`): What the ledger says of its answers.
        ask (`Callable`): Sends one question's content and gives the answer.
        longest (`int`): Tokens of an answer, at most.
        wrong (`Callable[[Completion], str | None]`): Why an answer is none; such a question is asked again by the
            next run.
        expected (`str`): What an answer should be, for errors.
        patience (`int`): Questions in a row without an answer after which nothing more is asked.
        alone (`bool`): Whether the first questions are asked one by one, until one is answered.
    """

    who: str
    endpoint: Endpoint
    service: Service
    origin: Origin
    ask: Callable[[Send, Any], Awaitable[Completion]]
    longest: int
    wrong: Callable[[Completion], str | None]
    expected: str
    patience: int
    alone: bool = False


def question_key(*parts: Any) -> str:
    """The key of an answer: SHA-256 of all that it depends on, as JSON.

    Example:
        >>> question_key("judge", "m")[:8]
        'eef8c17f'
    """
    text = json.dumps([1, *parts], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ask_paid(
    asking: Asking,
    questions: Sequence[Question],
    account: Account | None = None,
    through: Callable[[Question], Any] | None = None,
) -> list[Completion | RequestError]:
    """Asks what the ledger has no answer for; equal questions are asked once.

    Ctrl-C and SIGTERM let what is in flight end, where the ledger is a file.

    Args:
        asking (`Asking`): Who is asked.
        questions (`Sequence[Question]`): What is asked.
        account (`Account`, *optional*): Where answers are kept, and what they may cost; without, nothing is kept.
        through (`Callable`, *optional*): Called with every question that is through.

    Returns:
        `list[Completion | RequestError]`: In order, the answers, or why there is none.

    Raises:
        ScoringError: If nothing can succeed, or no question was answered for so long that none will be.
        LedgerError: If an answer cannot be kept.
    """

    async def run(interrupt: Interrupt) -> list[Completion | RequestError]:
        with Claims(book) as claims:
            made = _Run(asking, claims, None if account is None else account.max_cost, through or (lambda one: None))
            return await made.go(questions, interrupt)

    with open_ledger(None if account is None else account.ledger) as book:
        return run_to_end(run)


class Unasked(RequestError):
    """The question was not asked, since nothing more is."""


@dataclass
class _Run:
    """One round of questions."""

    asking: Asking
    claims: Claims
    max_cost: float | None
    through: Callable[[Question], Any]
    found: dict[str, Completion] = field(default_factory=dict)
    failed: dict[str, RequestError] = field(default_factory=dict)
    last_words: dict[str, str] = field(default_factory=dict)
    answers: bool = False
    stopped: str = ""
    hopeless: str = ""
    in_flight: int = 0
    streak: int = 0

    def __post_init__(self) -> None:
        self.budget = Budget(self.max_cost, self.claims)
        self.money, self.drained, self.turn = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self.budget.watch(self.money.set)
        self.priced = self.asking.service.has_price

    async def go(self, questions: Sequence[Question], interrupt: Interrupt) -> list[Completion | RequestError]:
        """Asks until every question has its answer, has failed, or nothing more is asked."""
        kept = self.claims.ledger.on_disk
        if kept:
            interrupt.attach(lambda: self._drain(interrupt))
        waiting = {question.key: question for question in questions}
        while waiting and not self.stopped:
            found, own = self.claims.take(waiting)
            self.found |= found
            self.answers = self.answers or bool(found)
            for key in found:
                self.through(waiting.pop(key))
            if own:
                await self._ask([waiting.pop(key) for key in own], kept)
            elif waiting and not found:
                await asyncio.sleep(_LOOK)
        if interrupt.pressed and kept:
            say("Interrupted. What was answered is in the ledger; run again to go on.")
        keys = {question.key for question in questions}
        if self.hopeless and self.asking.patience > 1 and not keys <= self.found.keys() | self.failed.keys():
            raise ScoringError(self._farewell(len(keys)))
        return [self._outcome(question.key) for question in questions]

    def _outcome(self, key: str) -> Completion | RequestError:
        return self.found.get(key) or self.failed.get(key) or Unasked(self.stopped)

    def _farewell(self, count: int) -> str:
        return (
            f"{self.asking.who} gave {self.streak} replies in a row that are no scores, and nothing more is asked "
            f"({len(self.found):,} of {count:,} answers have a score). The last: {self.hopeless}"
        )

    def _drain(self, interrupt: Interrupt) -> None:
        """Asks nothing more."""
        self.stopped = "the run was interrupted"
        again = "A second one stops at once." if interrupt.terminated else "Press it again to stop at once."
        say(f"{interrupt.name}: {self.in_flight} requests in flight are waited for. {again}")
        self.money.set()
        self._settled()

    def _settled(self) -> None:
        if self.stopped == "the run was interrupted" and not self.in_flight:
            self.drained.set()

    async def _ask(self, questions: Sequence[Question], kept: bool) -> None:
        """Asks questions that are this run's; those that wait for another try when the run is drained are left."""
        again = (
            "they are in the ledger, and the next run asks for the rest" if kept else "the next run sends all again"
        )
        work = ask_service(self.asking.endpoint, self.asking.service, questions, self._one, self._passed, again)
        asking = asyncio.ensure_future(work)
        drained = asyncio.ensure_future(self.drained.wait())
        try:
            await asyncio.wait({asking, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking
                return
            for question, outcome in zip(questions, asking.result(), strict=True):
                if isinstance(outcome, RequestError):
                    self.failed[question.key] = outcome
        finally:
            drained.cancel()
            asking.cancel()
            await asyncio.gather(asking, drained, return_exceptions=True)
            self.claims.release([question.key for question in questions if question.key not in self.found])

    def _passed(self, question: Question) -> None:
        """A question is asked no more."""
        words = self.last_words.pop(question.key, None)
        if words is not None and question.key not in self.found:
            self._unanswered(words)
        self.through(question)

    async def _one(self, send: Send, question: Question) -> RequestError | None:
        """One try of one question."""
        if self.asking.alone and not self.answers:
            async with self.turn:
                if not self.answers:
                    return await self._try(send, question)
        return await self._try(send, question)

    async def _try(self, send: Send, question: Question) -> RequestError | None:
        if self.stopped or not await self._affordable(question):
            return None
        self.in_flight += 1
        try:
            return self._keep(question, await self.asking.ask(send, question.content))
        except RequestError as error:  # what came is no answer of this question
            self._lost(question, True)
            self._unanswered(str(error))
            return error
        except TeacherError as error:
            self._lost(question, error.maybe_charged)
            if isinstance(error, RetryableError):  # it is asked again, unless it has been for too long
                self.last_words[question.key] = str(error)
            else:
                self._unanswered(str(error))
            raise
        except LedgerError:
            raise
        except BaseException:  # given up, so that it may have been answered
            self._lost(question, True)
            raise
        finally:
            self.in_flight -= 1
            self._settled()

    async def _affordable(self, question: Question) -> bool:
        """Sets the worst case aside; waits for money that is set aside by others."""
        while self.priced and not self.budget.hold(self._worst(question)):
            if self.budget.idle:
                self.stopped = self.stopped or self.budget.exceeded
            if self.stopped:
                return False
            self.money.clear()
            await self.money.wait()
        return True

    def _worst(self, question: Question) -> float:
        return self.asking.service.price(question.tokens, self.asking.longest)

    def _lost(self, question: Question, charged: bool) -> None:
        if self.priced:
            worst = self._worst(question)
            self.budget.failed(worst, worst if charged else 0.0)

    def _keep(self, question: Question, answer: Completion) -> RequestError | None:
        cost = worst = self._worst(question)
        if answer.prompt_tokens is not None and answer.completion_tokens is not None:
            cost = self.asking.service.price(answer.prompt_tokens, answer.completion_tokens)
        if self.priced:
            self.budget.paid(worst, cost)
        origin = replace(self.asking.origin, prompt_id=question.prompt_id, cost=cost)
        wrong = self.asking.wrong(answer)
        if wrong is None:
            self.claims.keep([(question.key, answer, origin)], self.budget.written())
            self.found[question.key], self.streak, self.answers = answer, 0, True
            return None
        # Kept to be looked at, under a key that nothing is looked up by.
        beside = question_key("no answer", question.key, time.time_ns())
        self.claims.keep([(beside, answer, replace(origin, kind=f"{origin.kind} (no score)"))], self.budget.written())
        self._unanswered(f"{wrong}. Expected: {self.asking.expected}.")
        return RequestError(wrong)

    def _unanswered(self, words: str) -> None:
        self.streak += 1
        patience = self.asking.patience * (_PATIENT if self.answers and self.asking.patience > 1 else 1)
        if self.streak >= patience and not self.stopped:
            self.hopeless = self.stopped = words
