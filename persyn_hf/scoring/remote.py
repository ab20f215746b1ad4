"""The student behind a server: the log-probabilities that it reports of a prompt with its completion.

The server must read exactly the tokens that the student's own tokenizer gives, so every answer's tokens are held
against ours; a score that belongs to other tokens would be no score of this answer.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import httpx2
from huggingface_hub import AsyncInferenceClient

from persyn_hf.config import StudentEndpoint
from persyn_hf.endpoints.requests import ask_all, run_to_end, service_key
from persyn_hf.errors import ConfigError, PassingError, RequestError, ScoringError
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_config, load_tokenizer
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.reward import RANK_LIMIT, AnswerScore

Progress = Callable[[int], Any]


@dataclass(frozen=True)
class RemoteStudent:
    """A student that a server runs.

    Args:
        name, revision (`str`): Whose tokenizer, template and context count, and what that resolved to.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        context (`int`, *optional*): Tokens it can read at once.
        endpoint (`StudentEndpoint`): The server.
    """

    name: str
    revision: str
    tokenizer: Any
    context: int | None
    endpoint: StudentEndpoint


@dataclass(frozen=True)
class _Token:
    """What a server says of one token: which it is (id or text), its log-probability and its rank."""

    token: int | str
    logprob: float | None
    rank: int | None = None


def load_remote_student(model: str, revision: str | None, endpoint: StudentEndpoint) -> RemoteStudent:
    """Loads what scoring needs of a student that a server runs: its tokenizer and the size of its context.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): As the server runs it; the server is not asked.
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
) -> list[AnswerScore]:
    """Scores rendered answers through the student's server.

    Args:
        student (`RemoteStudent`): From `load_remote_student`.
        answers (`Sequence[Rendered]`): Answers with at least one completion token.
        names (`Sequence[str]`): How errors name the answers.
        ranks (`bool`, defaults to `False`): Also sum the tokens' ranks.
        progress (`Callable[[int], Any]`, *optional*): Called with the tokens of every answer.

    Returns:
        `list[AnswerScore]`: In order.

    Raises:
        ConfigError: If ranks are asked of an API that has none.
        ScoringError: If the server cannot be asked, reads other tokens or reports no log-probabilities.
    """
    if ranks and student.endpoint.api != "prompt_logprobs":
        raise ConfigError(
            f'`rsr` needs ranks, which `api: {student.endpoint.api}` does not report; use "prompt_logprobs", or run '
            "the student in process."
        )
    found = run_to_end(_ask(student, answers, names, progress))
    return [_summed(answer, tokens, name, ranks) for answer, tokens, name in zip(answers, found, names, strict=True)]


async def _ask(
    student: RemoteStudent, answers: Sequence[Rendered], names: Sequence[str], progress: Progress | None
) -> list[list[_Token]]:
    endpoint = student.endpoint
    key = service_key(endpoint)
    client: Any
    ask: Callable[[Rendered], Awaitable[list[_Token]]]
    if endpoint.api == "generate":
        client = AsyncInferenceClient(api_key=key, timeout=endpoint.timeout)
        ask = _Generate(student, client)
        close = client.close
    else:
        client = httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=endpoint.timeout)
        ask = (_PromptLogprobs if endpoint.api == "prompt_logprobs" else _Echo)(student, client)
        close = client.aclose
    try:
        found = await ask_all(
            endpoint, answers, ask, None if progress is None else lambda answer: progress(len(answer.ids))
        )
    finally:
        await close()
    tokens = []
    for name, one in zip(names, found, strict=True):
        if isinstance(one, RequestError):
            raise ScoringError(f"{name}: {one}") from one
        tokens.append(one)
    return tokens


def _summed(answer: Rendered, tokens: Sequence[_Token], name: str, ranks: bool) -> AnswerScore:
    start, end = answer.span
    own = tokens[start:end]
    logprobs = [math.nan if token.logprob is None else token.logprob for token in own]
    if not all(map(math.isfinite, logprobs)):
        raise ScoringError(f"{name}: the server reports log-probabilities that are missing or not finite.")
    rank = None
    if ranks:
        if any(token.rank is None for token in own):
            raise ScoringError(f"{name}: the server reports no ranks, which `rsr` needs.")
        rank = sum(min(token.rank or 0, RANK_LIMIT) for token in own)
    return AnswerScore(math.fsum(logprobs), len(own), rank)


@dataclass(frozen=True)
class _Generate:
    """`/generate` with `decoder_input_details`: text goes in, so it must tokenise to exactly the answer's tokens."""

    student: RemoteStudent
    client: AsyncInferenceClient

    async def __call__(self, answer: Rendered) -> list[_Token]:
        output = await self.client.text_generation(
            self._text(answer),
            model=f"{self.student.endpoint.url.rstrip('/')}/generate",
            details=True,
            decoder_input_details=True,
            max_new_tokens=1,
        )
        prefill = output.details.prefill if output.details is not None else []
        if len(prefill) < len(answer.ids) and len(prefill) <= 1:
            raise ScoringError(
                f"{self.student.endpoint.url} reports no prompt log-probabilities; start the server with "
                "--enable-prefill-logprobs."
            )
        return _aligned(self.student, answer, [_Token(token.id, token.logprob) for token in prefill])

    def _text(self, answer: Rendered) -> str:
        """A text that the server tokenises, special tokens added by itself, to the answer's tokens."""
        tokenizer = self.student.tokenizer
        for skipped in (0, 1):  # a tokenizer that puts a first token before every text must not get it twice
            text = tokenizer.decode(answer.ids[skipped:], clean_up_tokenization_spaces=False)
            if tuple(tokenizer(text, verbose=False)["input_ids"]) == answer.ids:
                return str(text)
        raise RequestError(
            "no text tokenises to this answer's tokens (a token straddles the end of the prompt, or the answer is "
            'cut within a character); `api: "prompt_logprobs"` and `"echo"` send tokens.'
        )


@dataclass(frozen=True)
class _Completions:
    """`/v1/completions`: token ids go in."""

    student: RemoteStudent
    client: httpx2.AsyncClient

    async def _choice(self, answer: Rendered, **asked: Any) -> dict[str, Any]:
        endpoint = self.student.endpoint
        base = endpoint.url.rstrip("/").removesuffix("/v1")
        body = {
            "model": endpoint.served_model or self.student.name,
            "prompt": list(answer.ids),
            "max_tokens": 1,  # 0 means no limit to some servers
            "temperature": 1.0,
            **asked,
        }
        response = await self.client.post(f"{base}/v1/completions", json=body)
        response.raise_for_status()
        try:
            choice = response.json()["choices"][0]
        except (ValueError, KeyError, IndexError, TypeError):
            raise PassingError(f"{endpoint.url}: the answer is no completion.") from None
        if not isinstance(choice, dict):
            raise PassingError(f"{endpoint.url}: the answer is no completion.")
        return choice


class _PromptLogprobs(_Completions):
    """The parameter `prompt_logprobs`: for every prompt token the log-probability and the rank, by token id."""

    async def __call__(self, answer: Rendered) -> list[_Token]:
        choice = await self._choice(answer, prompt_logprobs=0)
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list):
            raise ScoringError(
                f'{self.student.endpoint.url} does not know `prompt_logprobs`; use `api: "echo"` or `"generate"`.'
            )
        tokens = []
        for entry, own in zip(entries, answer.ids, strict=False):
            found = (entry or {}).get(str(own))
            if entry is None:  # the first token: nothing predicts it
                tokens.append(_Token(own, None))
            elif found is None:
                tokens.append(_Token(int(next(iter(entry), "-1")), None))
            else:
                tokens.append(_Token(own, found.get("logprob"), found.get("rank")))
        return _aligned(self.student, answer, tokens + [_Token(-1, None)] * (len(entries) - len(tokens)))


class _Echo(_Completions):
    """`echo` with `logprobs`: the prompt's tokens come back as texts, or as `token_id:N` where the server can."""

    async def __call__(self, answer: Rendered) -> list[_Token]:
        choice = await self._choice(answer, echo=True, logprobs=1, return_tokens_as_token_ids=True)
        found = choice.get("logprobs") or {}
        names, values = found.get("tokens"), found.get("token_logprobs")
        if not isinstance(names, list) or not isinstance(values, list) or len(names) != len(values):
            raise ScoringError(f"{self.student.endpoint.url} reports no `logprobs` of an echoed prompt.")
        read = [_Token(_named(name), value) for name, value in zip(names, values, strict=True)]
        generated = len(read) - len(answer.ids)  # the one token that was asked for stands behind the prompt
        return _aligned(self.student, answer, read[: len(answer.ids)] if generated in (0, 1) else read)


def _named(name: str) -> int | str:
    prefix, _, number = name.partition(":")
    return int(number) if prefix == "token_id" and number.isdigit() else name


def _aligned(student: RemoteStudent, answer: Rendered, tokens: list[_Token]) -> list[_Token]:
    """The server's tokens, if they are ours.

    Raises:
        RequestError: At the first that differs.
    """
    tokenizer = student.tokenizer
    for place, (token, own) in enumerate(zip(tokens, answer.ids, strict=False)):
        texts = () if isinstance(token.token, int) else (tokenizer.decode([own]), tokenizer.convert_ids_to_tokens(own))
        if token.token != own and token.token not in texts:
            raise RequestError(
                f"the server reads other tokens than the tokenizer of {student.name}: token {place} is "
                f"{token.token!r} there, here {own} ({tokenizer.decode([own])!r}). Is it the same model and revision?"
            )
    if len(tokens) != len(answer.ids):
        raise RequestError(
            f"the server reads {len(tokens)} tokens, the tokenizer of {student.name} gives {len(answer.ids)}. Is it "
            "the same model, and is its context long enough?"
        )
    return tokens
