"""Scoring by a student behind a server, from the log-probabilities that it reports for a prompt and its completion.

The server must read exactly the tokens of the student's own tokenizer, so the tokens of every answer are compared with
ours: a score of other tokens would not be a score of this answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from persyn_hf.config import StudentEndpoint
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.requests import Send
from persyn_hf.errors import ConfigError, RequestError, RetryableError, ScoringError
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Origin
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_config, load_tokenizer
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.paid import Account, Asking, Question, Unasked, ask_paid, question_key
from persyn_hf.scoring.reward import RANK_LIMIT, AnswerScore

Progress = Callable[[int], object]


@dataclass(frozen=True)
class RemoteStudent:
    """A student that a server runs.

    Args:
        name (`str`): Hub repository id or local folder that provides the tokenizer, template and context length.
        revision (`str`): Resolved commit, or a folder's digest.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        context (`int`, *optional*): Context length in tokens.
        endpoint (`StudentEndpoint`): The server.
    """

    name: str
    revision: str
    tokenizer: Any
    context: int | None
    endpoint: StudentEndpoint


@dataclass(frozen=True)
class _Token:
    """One token as a server reports it: its id or text, its log-probability and its rank."""

    token: object
    logprob: object
    rank: object = None


def load_remote_student(model: str, revision: str | None, endpoint: StudentEndpoint) -> RemoteStudent:
    """Loads the tokenizer and the context length of a student that a server runs.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Revision that the server runs; this is not checked with the server.
        endpoint (`StudentEndpoint`): The server.
    """
    resolved = identity(model, revision)
    with LOADING:
        tokenizer, context = _load(model, resolved)
    return RemoteStudent(model, resolved, tokenizer, context, endpoint)


@lru_cache(maxsize=2)
def _load(name: str, revision: str) -> tuple[Any, int | None]:
    files = ModelFiles(name, revision, "The student", ScoringError)
    return load_tokenizer(files), context_of(load_config(files))


def score_remotely(
    student: RemoteStudent,
    answers: Sequence[Rendered],
    names: Sequence[str],
    ranks: bool = False,
    progress: Progress | None = None,
    account: Account | None = None,
) -> list[AnswerScore]:
    """Scores rendered answers with the student's server; scores in the ledger are not requested again.

    The ledger stores an answer's summed log-probability, its number of tokens and the sum of their ranks. The key
    covers the student, the server's name for it, the API and the answer's tokens.

    Args:
        student (`RemoteStudent`): From `load_remote_student`.
        answers (`Sequence[Rendered]`): Answers with at least one completion token.
        names (`Sequence[str]`): Names of the answers in errors.
        ranks (`bool`, defaults to `False`): Also sum the tokens' ranks.
        progress (`Callable[[int], object]`, *optional*): Called after every answer with its number of tokens.
        account (`Account`, *optional*): The ledger that stores scores, and their cost limit. Without it, scores are
            not stored.

    Returns:
        `list[AnswerScore]`: In order.

    Raises:
        ConfigError: If ranks are requested from an API that does not report them.
        ScoringError: If the server cannot be reached, reads other tokens or reports no log-probabilities.
    """
    if ranks and student.endpoint.api != "prompt_logprobs":
        raise ConfigError(
            f"`rsr` needs ranks, which `api: {student.endpoint.api}` does not report. Set `api: prompt_logprobs`, or "
            "run the student in this process."
        )
    questions = [_question(student, answer, ranks) for answer in answers]
    through = None if progress is None else lambda question: progress(len(question.content.ids))
    found = ask_paid(_asking(student, ranks), questions, account, through)
    failed = [(name, one) for name, one in zip(names, found, strict=True) if isinstance(one, RequestError)]
    for name, error in sorted(failed, key=lambda one: isinstance(one[1], Unasked)):  # a cause before its effects
        raise ScoringError(f"{name}: {error}") from error
    return [_read(one) for one in found if isinstance(one, Completion)]


def _question(student: RemoteStudent, answer: Rendered, ranks: bool) -> Question:
    service = student.endpoint
    served, span = service.served_model or student.name, list(answer.span)
    key = question_key("student", student.name, student.revision, served, service.api, list(answer.ids), span, ranks)
    return Question(key, answer, len(answer.ids))


def _asking(student: RemoteStudent, ranks: bool) -> Asking:
    service = student.endpoint
    endpoint = Endpoint.of(service, model=service.served_model or student.name)
    reader = _READERS[service.api](student, endpoint)

    async def ask(send: Send, answer: Rendered) -> Completion:
        score = _summed(answer, await reader(send, answer), ranks)
        text = json.dumps([score.logprob, score.tokens, score.rank])
        return Completion(text, "stop", len(answer.ids), 1)

    return Asking(
        who=f"the student's server {endpoint.address}",
        endpoint=endpoint,
        service=service,
        origin=Origin(model=student.name, revision=student.revision, kind="student"),
        ask=ask,
        longest=1,
        wrong=lambda answer: None,
        expected="the log-probability of every token",
        patience=1,
    )


def _read(answer: Completion) -> AnswerScore:
    return AnswerScore(*json.loads(answer.text))


def _summed(answer: Rendered, tokens: Sequence[_Token], ranks: bool) -> AnswerScore:
    start, end = answer.span
    own = tokens[start:end]
    logprobs = [_number(token.logprob) for token in own]
    if not all(map(math.isfinite, logprobs)):
        raise RequestError("the server reports log-probabilities that are missing or not finite.")
    rank = None
    if ranks:
        found = [_number(token.rank) for token in own]
        if not all(rank >= 1 for rank in found):
            raise RequestError("the server reports no ranks, which `rsr` needs.")
        rank = int(sum(min(rank, RANK_LIMIT) for rank in found))
    return AnswerScore(math.fsum(logprobs), len(own), rank)


def _number(value: object) -> float:
    """A number from a server; NaN if it is not one."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    return float(value) if known else math.nan  # type: ignore[arg-type] # mypy loses what `known` says


@dataclass(frozen=True)
class _Reader:
    """Requests the log-probabilities of one answer's tokens from a server."""

    student: RemoteStudent
    endpoint: Endpoint

    def _aligned(self, answer: Rendered, tokens: list[_Token]) -> list[_Token]:
        return _aligned(self.student, self.endpoint, answer, tokens)


class _Generate(_Reader):
    """`/generate` with `decoder_input_details`: it takes text, which must tokenize to exactly the answer's tokens."""

    async def __call__(self, send: Send, answer: Rendered) -> list[_Token]:
        parameters = {"details": True, "decoder_input_details": True, "max_new_tokens": 1}
        body = {"inputs": self._text(answer), "parameters": parameters}
        output = await send(self.endpoint.url("/generate"), body)
        details = _mapping(output[0] if isinstance(output, list) and output else output).get("details")
        if not isinstance(details, dict):
            raise RetryableError("the response has no `details`")
        prefill = details.get("prefill")
        tokens = [
            _Token(one.get("id"), one.get("logprob"))
            for one in map(_mapping, prefill if isinstance(prefill, list) else ())
        ]
        if len(tokens) < len(answer.ids) and len(tokens) <= 1:
            raise ScoringError(
                f"{self.endpoint.address} reports no prompt log-probabilities. Start the server with "
                "--enable-prefill-logprobs."
            )
        return self._aligned(answer, tokens)

    def _text(self, answer: Rendered) -> str:
        """A text that the server, which adds special tokens, tokenizes to the answer's tokens."""
        tokenizer = self.student.tokenizer
        for skipped in (0, 1):  # a tokenizer that adds a first token to every text must not get it twice
            text = tokenizer.decode(answer.ids[skipped:], clean_up_tokenization_spaces=False)
            if tuple(tokenizer(text, verbose=False)["input_ids"]) == answer.ids:
                return str(text)
        raise RequestError(
            "no text tokenizes to this answer's tokens (a token straddles the end of the prompt, or the answer is "
            "cut within a character). Set `api: prompt_logprobs` or `api: echo`, which send tokens."
        )


class _Completions(_Reader):
    """`/v1/completions`: it takes token ids."""

    async def _choice(self, send: Send, answer: Rendered, **asked: Any) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "prompt": list(answer.ids),
            "max_tokens": 1,  # for some servers, 0 means no limit
            "temperature": 1.0,
            **asked,
        }
        output = await send(self.endpoint.url("/v1/completions"), body)
        choices = output.get("choices") if isinstance(output, dict) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise RetryableError("the response is not a completion")
        return choices[0]


class _PromptLogprobs(_Completions):
    """The parameter `prompt_logprobs`: it reports the log-probability and the rank of every prompt token by its id."""

    async def __call__(self, send: Send, answer: Rendered) -> list[_Token]:
        choice = await self._choice(send, answer, prompt_logprobs=0)
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list):
            raise ScoringError(
                f"{self.endpoint.address} does not support `prompt_logprobs`. Set `api: echo` or `api: generate`."
            )
        tokens = []
        for entry, own in zip(entries, answer.ids, strict=False):
            found = _mapping(entry).get(str(own))
            if entry is None:  # the first token: nothing predicts it
                tokens.append(_Token(own, None))
            elif not isinstance(found, dict):
                tokens.append(_Token(_id(next(iter(_mapping(entry)), "")), None))
            else:
                tokens.append(_Token(own, found.get("logprob"), found.get("rank")))
        return self._aligned(answer, tokens + [_Token(-1, None)] * (len(entries) - len(tokens)))


class _Echo(_Completions):
    """`echo` with `logprobs`: it returns the prompt's tokens as texts, or as `token_id:N` if the server can."""

    async def __call__(self, send: Send, answer: Rendered) -> list[_Token]:
        choice = await self._choice(send, answer, echo=True, logprobs=1, return_tokens_as_token_ids=True)
        found = _mapping(choice.get("logprobs"))
        names, values = found.get("tokens"), found.get("token_logprobs")
        if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
            raise ScoringError(f"{self.endpoint.address} reports no `logprobs` of an echoed prompt.")
        read = [_Token(_named(name), value) for name, value in zip(names, values, strict=True)]
        generated = len(read) - len(answer.ids)  # the one generated token comes after the prompt
        return self._aligned(answer, read[: len(answer.ids)] if generated in (0, 1) else read)


_READERS: Mapping[str, Callable[[RemoteStudent, Endpoint], Callable[[Send, Rendered], Awaitable[list[_Token]]]]] = {
    "generate": _Generate,
    "prompt_logprobs": _PromptLogprobs,
    "echo": _Echo,
}


def _named(name: object) -> object:
    prefix, _, number = str(name).partition(":")
    return _id(number) if prefix == "token_id" else name


def _id(digits: str) -> int:
    """Reads a token's id; -1, which is no id, if it cannot be read."""
    return int(digits) if digits.isdecimal() and len(digits) < 16 else -1


def _mapping(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _aligned(student: RemoteStudent, endpoint: Endpoint, answer: Rendered, tokens: list[_Token]) -> list[_Token]:
    """Checks that the server's tokens are ours, and returns them.

    Raises:
        RequestError: If they are not; the message names the first difference.
    """
    tokenizer = student.tokenizer
    for place, (token, own) in enumerate(zip(tokens, answer.ids, strict=False)):
        texts = () if isinstance(token.token, int) else (tokenizer.decode([own]), tokenizer.convert_ids_to_tokens(own))
        if token.token != own and token.token not in texts:
            raise RequestError(
                f"the server reads other tokens than the tokenizer of {student.name}: token {place} is "
                f"{endpoint.clean(repr(token.token))} there and {own} ({tokenizer.decode([own])!r}) here. Check that "
                "the server runs the same model and revision."
            )
    if len(tokens) != len(answer.ids):
        raise RequestError(
            f"the server reads {len(tokens)} tokens, but the tokenizer of {student.name} gives {len(answer.ids)}. "
            "Check that the server runs the same model and that its context is long enough."
        )
    return tokens
