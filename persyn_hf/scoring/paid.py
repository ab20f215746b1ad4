"""Requests to a server that scores, sent once and paid once: answers in the ledger are not requested again.

A judge and a student behind a server share this code. The key of a question covers everything its answer depends on;
an answer is written to the ledger as soon as it arrives; questions that another run has claimed are waited for; and
the worst-case cost of requests in flight is reserved from `max_cost`, a limit that teachers and scorers share.
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

#: Seconds between two checks for answers that another run has requested.
_LOOK = 0.2
#: Factor on the patience once a question has been answered.
_PATIENT = 4


@dataclass(frozen=True)
class Account:
    """The ledger that stores answers, and their cost limit.

    Args:
        ledger (`Ledger`): The ledger.
        max_cost (`float`, *optional*): Limit on the cost of all answers in the ledger, in USD.
    """

    ledger: Ledger
    max_cost: float | None = None


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        key (`str`): Key of its answer, from [`question_key`].
        content (`Any`): Content of the request.
        tokens (`int`): Upper bound of its tokens.
        prompt_id (`str`, *optional*): Prompt whose answer is scored.
    """

    key: str
    content: Any
    tokens: int
    prompt_id: str | None = None


@dataclass(frozen=True)
class Asking:
    """The server that is asked, and the functions that send a question and check its answer.

    Args:
        who (`str`): Name of the server in errors.
        endpoint (`Endpoint`), service (`Service`): The server.
        origin (`Origin`): Facts that the ledger records with each answer.
        ask (`Callable`): Function that sends one question's content and returns the answer.
        longest (`int`): Upper bound of an answer's tokens.
        wrong (`Callable[[Completion], str | None]`): Function that says why an answer is invalid, `None` if it is
            valid. The next run asks again after an invalid answer.
        expected (`str`): Expected form of an answer, for errors.
        patience (`int`): Consecutive questions without an answer after which no more are sent.
        alone (`bool`): Whether to send questions one at a time until the first is answered.
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


def question_key(*parts: object) -> str:
    """The key of an answer: SHA-256 of everything it depends on, as JSON.

    Example:
        >>> question_key("judge", "m")[:8]
        'c9361bb5'
    """
    text = json.dumps([1, *parts], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def ask_paid(
    asking: Asking,
    questions: Sequence[Question],
    account: Account | None = None,
    through: Callable[[Question], object] | None = None,
) -> list[Completion | RequestError]:
    """Sends the questions whose answers are not in the ledger; equal questions are sent once.

    If the ledger is a file, Ctrl-C and SIGTERM wait for the requests in flight.

    Args:
        asking (`Asking`): The server.
        questions (`Sequence[Question]`): The questions.
        account (`Account`, *optional*): The ledger that stores answers, and their cost limit. Without it, answers are
            not stored.
        through (`Callable`, *optional*): Called with every question that is done.

    Returns:
        `list[Completion | RequestError]`: In order, the answer, or the error that says why there is none.

    Raises:
        ScoringError: If no request can succeed, or too many questions in a row got no answer.
        LedgerError: If an answer cannot be written.
    """

    async def run(interrupt: Interrupt) -> list[Completion | RequestError]:
        with Claims(book) as claims:
            made = _Run(asking, claims, None if account is None else account.max_cost, through or (lambda one: None))
            return await made.go(questions, interrupt)

    with open_ledger(None if account is None else account.ledger) as book:
        return run_to_end(run)


class Unasked(RequestError):
    """The question was not sent, because the run had stopped sending."""


@dataclass
class _Run:
    """One round of questions."""

    asking: Asking
    claims: Claims
    max_cost: float | None
    through: Callable[[Question], object]
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
        """Sends questions until each has its answer or has failed, or the run stops sending."""
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
            say("Interrupted. All answers received are in the ledger; run again to resume.")
        keys = {question.key for question in questions}
        if self.hopeless and self.asking.patience > 1 and not keys <= self.found.keys() | self.failed.keys():
            raise ScoringError(self._farewell(len(keys)))
        return [self._outcome(question.key) for question in questions]

    def _outcome(self, key: str) -> Completion | RequestError:
        return self.found.get(key) or self.failed.get(key) or Unasked(self.stopped)

    def _farewell(self, count: int) -> str:
        return (
            f"{self.asking.who} gave {self.streak} replies in a row that are not scores, so no more requests are sent "
            f"({len(self.found):,} of {count:,} answers have a score). The last error: {self.hopeless}"
        )

    def _drain(self, interrupt: Interrupt) -> None:
        """Stops sending questions."""
        self.stopped = "the run was interrupted"
        again = "A second one stops at once." if interrupt.terminated else "Press it again to stop at once."
        say(f"{interrupt.name}: waiting for {self.in_flight} requests in flight. {again}")
        self.money.set()
        self._settled()

    def _settled(self) -> None:
        if self.stopped == "the run was interrupted" and not self.in_flight:
            self.drained.set()

    async def _ask(self, questions: Sequence[Question], kept: bool) -> None:
        """Sends the questions that this run has claimed; when it is interrupted, questions to retry are dropped."""
        again = (
            "they are in the ledger, and the next run requests the rest" if kept else "the next run sends all again"
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
        except ScoringError as error:
            named = self.asking.who if self.asking.who not in str(error) else ""
            raise ScoringError(f"{named}: {error}" if named else str(error)) from None
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
        """Makes one attempt at one question."""
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
        except RequestError as error:  # the response is not an answer to this question
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
        except BaseException:  # cancelled: the server may have answered and charged
            self._lost(question, True)
            raise
        finally:
            self.in_flight -= 1
            self._settled()

    async def _affordable(self, question: Question) -> bool:
        """Reserves the worst-case cost; waits while other requests hold the budget."""
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
        # Stored for inspection, under a key that is never looked up.
        beside = question_key("no answer", question.key, time.time_ns())
        self.claims.keep([(beside, answer, replace(origin, kind=f"{origin.kind} (no score)"))], self.budget.written())
        self._unanswered(f"{wrong}. Expected: {self.asking.expected}.")
        return RequestError(wrong)

    def _unanswered(self, words: str) -> None:
        self.streak += 1
        patience = self.asking.patience * (_PATIENT if self.answers and self.asking.patience > 1 else 1)
        if self.streak >= patience and not self.stopped:
            self.hopeless = self.stopped = words
