"""Teachers in this process: batched `generate`, with sampling by each row's seed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from persyn_hf.config import Sampling, Teacher
from persyn_hf.errors import RowError, TeacherDownError, TeacherError
from persyn_hf.generation.answer import Said, read_answer
from persyn_hf.generation.client import Request
from persyn_hf.generation.tokens import render
from persyn_hf.generation.usage import Usage
from persyn_hf.ledger.completion import Completion
from persyn_hf.models import loading
from persyn_hf.models.device import choose_device
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.workers import calm_worker

#: Tokens between two checks for finished rows, which then leave the batch.
_CHUNK = 16
#: Number of most likely tokens examined for `top_p` before the whole vocabulary is sorted.
_TOP = 512


Outcome = Completion | RowError


@dataclass
class LocalModel:
    """A loaded model with its tokenizer, context length and end-of-sequence tokens."""

    model: Any
    tokenizer: Any
    context: int
    ends: frozenset[int]
    lock: threading.Lock = field(default_factory=threading.Lock)


def load_local_model(model: str, revision: str | None, dtype: str, device: str | None, identity: str) -> LocalModel:
    """Loads a teacher once per process, also for parallel calls; see [`_load_once`]."""
    calm_worker()
    with loading.LOADING:
        return _load_once(model, revision, dtype, device, identity)


@lru_cache(maxsize=2)
def _load_once(model: str, revision: str | None, dtype: str, device: str | None, identity: str) -> LocalModel:
    """Loads a teacher once per process, for all teachers with the same model.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Branch, tag or commit of a repository; `identity` determines what is loaded.
        dtype (`str`): Data type; `auto` is that of the checkpoint.
        device (`str`, *optional*): Device; defaults to CUDA if available.
        identity (`str`): Identity from `resolve_revision`, so that a replaced folder is loaded again.

    Raises:
        TeacherDownError: If the model cannot be loaded.
    """
    files = ModelFiles(model, identity, "The teacher", TeacherDownError)
    tokenizer = loading.load_tokenizer(files)
    loaded: Any = loading.load_model(files, "causal-lm", dtype, choose_device(device))
    if not tokenizer.chat_template:
        raise TeacherDownError(f"`{model}` has no chat template; a teacher must be a chat model")
    named = loaded.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    # Only the configured sampling applies, not the checkpoint's defaults, which are not part of the ledger's key.
    loaded.generation_config = GenerationConfig()
    context = getattr(loaded.config.get_text_config(), "max_position_embeddings", None) or 2**31
    return LocalModel(loaded, tokenizer, context, frozenset(ends))


@dataclass
class _Row:
    """One request in a batch."""

    position: int
    request: Request
    ids: list[int]
    budget: int
    draws: torch.Tensor
    tokens: list[int] = field(default_factory=list)


def complete_batch(
    local: LocalModel, requests: Sequence[Request], stop: threading.Event
) -> list[Completion | RowError]:
    """Answers requests, possibly of several teachers, in one batch.

    Rows are padded on the left, with a mask computed from their lengths (the pad id may be a real token, as in
    SmolLM2), and leave the batch when they have ended. Each row has its own random generator: `uniform(seed)[t]` picks
    token `t` by inverting the distribution, so a row's text depends on the other rows only through rounding in the
    matrix products.

    Args:
        local (`LocalModel`): Model.
        requests (`Sequence[Request]`): Requests, as many as fit in memory.
        stop (`threading.Event`): Event that cancels the batch; unfinished rows then get a `RowError`.

    Returns:
        `list[Outcome]`: Results in the order of `requests`.
    """
    results: list[Outcome | None] = [None] * len(requests)
    rows = []
    for position, request in enumerate(requests):
        made = _row(local, position, request)
        if isinstance(made, RowError):
            results[position] = made
        else:
            rows.append(made)
    if rows:
        with local.lock, torch.inference_mode():
            _decode(local, rows, results, stop)
    return [RowError("the run was stopped") if result is None else result for result in results]


def _row(local: LocalModel, position: int, request: Request) -> _Row | RowError:
    try:
        text = render(local.tokenizer, request.messages, request.more)
    except RowError as error:
        return error
    ids = local.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = local.context - len(ids)
    if room < 1:
        return RowError(
            f"the prompt has {len(ids)} tokens, but the context is {local.context} tokens, answer included; shorten it"
        )
    budget = min(request.sampling.max_tokens, room)
    generator = torch.Generator()
    if request.seed is None:
        generator.seed()
    else:
        generator.manual_seed(request.seed)
    return _Row(position, request, ids, budget, torch.rand(budget, generator=generator, dtype=torch.float64))


def _decode(local: LocalModel, rows: list[_Row], results: list[Outcome | None], stop: threading.Event) -> None:
    device = local.model.device
    longest = max(len(row.ids) for row in rows)
    pad = local.tokenizer.pad_token_id if local.tokenizer.pad_token_id is not None else min(local.ends, default=0)
    ids = torch.tensor([[pad] * (longest - len(row.ids)) + row.ids for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows], device=device)
    cache = DynamicCache(config=local.model.config)
    while rows and not stop.is_set():
        steps = min(_CHUNK, max(row.budget - len(row.tokens) for row in rows))
        settings = GenerationConfig(
            do_sample=False, max_new_tokens=steps, pad_token_id=pad, eos_token_id=sorted(local.ends) or None
        )
        before = ids.shape[1]
        ids = local.model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=settings,
            logits_processor=LogitsProcessorList([_RowSampler(rows)]),
        )
        mask = torch.cat([mask, mask.new_ones(len(rows), ids.shape[1] - before)], dim=1)
        for row, new in zip(rows, ids[:, before:].tolist(), strict=True):
            results[row.position] = _advance(local, row, new)
        keep = [index for index, row in enumerate(rows) if results[row.position] is None]
        if len(keep) < len(rows):
            rows = [rows[index] for index in keep]
            kept = torch.tensor(keep, device=device, dtype=torch.long)
            ids, mask = ids[kept], mask[kept]
            cache.batch_select_indices(kept)


def _advance(local: LocalModel, row: _Row, new: list[int]) -> Completion | RowError | None:
    """Adds new tokens to a row; returns its result once it has ended."""
    for token in new[: row.budget - len(row.tokens)]:
        row.tokens.append(token)
        if token in local.ends:
            return _result(local, row, "stop")
    cut = _stop_position(local, row)
    if cut is not None or len(row.tokens) >= row.budget:
        return _result(local, row, "length" if cut is None else "stop", cut)
    return None


def _text(local: LocalModel, row: _Row) -> str:
    return str(local.tokenizer.decode(row.tokens, skip_special_tokens=True))


def _stop_position(local: LocalModel, row: _Row) -> int | None:
    if not row.request.sampling.stop:
        return None
    text = _text(local, row)
    return min((at for at in map(text.find, row.request.sampling.stop) if at >= 0), default=None)


def _result(local: LocalModel, row: _Row, reason: str, cut: int | None = None) -> Completion | RowError:
    if cut is None and reason == "stop":
        cut = _stop_position(local, row)
    try:
        said = Said(_text(local, row)[:cut], reason, usage=Usage(len(row.ids), len(row.tokens)))
        return read_answer(said, row.request)
    except TeacherError as error:
        return RowError(str(error))


class _RowSampler(LogitsProcessor):  # type: ignore[misc] # transformers ships no types
    """Applies penalty, temperature, limits and the draw to each row, and leaves one token for greedy decoding.

    `do_sample=True` would draw all rows from one stream, so a row's text would depend on the other rows.
    """

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._steps = 0  # tokens of this chunk that have not been added to the rows yet
        self._penalties = [float(row.request.more.get("repetition_penalty", 1.0)) for row in rows]
        self._sampled = [index for index, row in enumerate(rows) if not row.request.sampling.is_greedy]
        samplings: list[Sampling] = [rows[index].request.sampling for index in self._sampled]
        self._temperature = torch.tensor([s.temperature for s in samplings])[:, None]
        self._top_p = torch.tensor([s.top_p for s in samplings])[:, None]
        self._top_k = [int(s.extra_body.get("top_k", 0)) for s in samplings]
        self._min_p = torch.tensor([float(s.extra_body.get("min_p", 0.0)) for s in samplings])[:, None]
        longest = max(len(row.draws) for row in rows) + _CHUNK
        self._draws = torch.zeros(len(self._sampled), longest, dtype=torch.float64)
        self._at = torch.tensor([len(rows[index].tokens) for index in self._sampled], dtype=torch.long)
        for place, index in enumerate(self._sampled):
            self._draws[place, : len(rows[index].draws)] = rows[index].draws

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leaves, in each sampled row of `scores` (batch, vocabulary), only the drawn token finite."""
        scores = self._penalised(scores, input_ids)
        self._steps += 1
        if not self._sampled:
            return scores
        where = torch.tensor(self._sampled, device=scores.device)
        logits = self._limited(scores[where].float() / self._temperature.to(scores.device))
        draws = self._draws.gather(1, self._at[:, None]).to(scores.device)
        chosen = _draw(logits, self._top_p.to(scores.device), draws)
        self._at += 1
        scores = scores.clone()
        scores[where] = float("-inf")
        scores[where, chosen] = 0.0
        return scores

    def _penalised(self, scores: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """Lowers the logits of tokens that already occur in a row, prompt included, by its repetition penalty."""
        if all(penalty == 1.0 for penalty in self._penalties):
            return scores
        scores = scores.clone()
        for index, (row, penalty) in enumerate(zip(self._rows, self._penalties, strict=True)):
            if penalty != 1.0:  # padding does not belong to the row
                own = len(row.ids) + len(row.tokens) + self._steps
                seen = torch.unique(input_ids[index, input_ids.shape[1] - own :])
                logits = scores[index, seen]
                scores[index, seen] = torch.where(logits > 0, logits / penalty, logits * penalty)
        return scores

    def _limited(self, logits: torch.Tensor) -> torch.Tensor:
        """Keeps the `top_k` most likely tokens that are at least `min_p` times as likely as the first."""
        for place, top_k in enumerate(self._top_k):
            if 0 < top_k < logits.shape[-1]:
                least = logits[place].topk(top_k).values[-1]
                logits[place] = logits[place].masked_fill(logits[place] < least, float("-inf"))
        least = logits.max(dim=-1, keepdim=True).values + self._min_p.to(logits.device).log()
        return logits.masked_fill(logits < least, float("-inf"))


def _draw(logits: torch.Tensor, top_p: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Inverts the nucleus distribution of (rows, vocabulary) at `draws` (rows, 1) in [0, 1); token ids (rows,)."""
    norm = logits.logsumexp(dim=-1, keepdim=True)
    values, indices = logits.topk(min(_TOP, logits.shape[-1]), dim=-1)
    cumulative = (values - norm).exp().double().cumsum(dim=-1)
    chosen = _invert(cumulative, indices, top_p, draws)
    # If the examined tokens have less mass than top_p, the nucleus requires sorting the whole vocabulary.
    short = (cumulative[:, -1:] < torch.where(top_p < 1, top_p, draws))[:, 0].nonzero()[:, 0]
    if len(short) and values.shape[-1] < logits.shape[-1]:
        values, indices = logits[short].sort(dim=-1, descending=True)
        cumulative = (values - norm[short]).exp().double().cumsum(dim=-1)
        chosen[short] = _invert(cumulative, indices, top_p[short], draws[short])
    return chosen


def _invert(cumulative: torch.Tensor, indices: torch.Tensor, top_p: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    # The nucleus is the smallest set that reaches top_p; its mass may exceed top_p, and the draw is over all of it.
    last = (cumulative < torch.minimum(top_p, cumulative[:, -1:])).sum(dim=-1, keepdim=True)
    mass = torch.where(top_p < 1, cumulative.gather(1, last), 1.0)
    place = torch.searchsorted(cumulative, draws * mass, right=True)
    return indices.gather(1, torch.minimum(place, last))[:, 0]


class LocalBatcher:
    """Collects the requests of all teachers with one model and answers them in batches of similar length.

    Args:
        teachers (`Sequence[Teacher]`): Teachers with equal model, revision, dtype and device.
        identity (`str`): Identity of the model from `resolve_revision`.
    """

    def __init__(self, teachers: Sequence[Teacher], identity: str) -> None:
        first = teachers[0]
        self._load = (first.model, first.revision, first.dtype, first.device, identity)
        self._size = max(teacher.batch_size for teacher in teachers)
        self._pending: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._stop = threading.Event()

    async def complete(self, request: Request) -> Completion:
        """Answers one request in a batch with others; see [`TeacherClient`]."""
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._pending.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def aclose(self) -> None:
        """Cancels the current batch."""
        self._stop.set()
        if self._worker is not None:
            await asyncio.gather(self._worker, return_exceptions=True)

    async def _work(self) -> None:
        await asyncio.sleep(0.01)  # requests that are sent together arrive before the first batch is formed
        while self._pending and not self._stop.is_set():
            # Long answers first, in common batches, so that the last batches are short.
            self._pending.sort(key=lambda item: (item[0].sampling.max_tokens, _length(item[0])), reverse=True)
            batch, self._pending = self._pending[: self._size], self._pending[self._size :]
            try:
                results = await asyncio.to_thread(self._run, [request for request, _ in batch])
            except Exception as error:  # noqa: BLE001 - any error of the model stops its teachers, not the run
                results = [TeacherDownError(f"{type(error).__name__}: {error}")] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Completion):
                    future.set_result(result)
                else:
                    future.set_exception(result)
            await asyncio.sleep(0)

    def _run(self, requests: list[Request]) -> Sequence[Completion | RowError | TeacherDownError]:
        return complete_batch(load_local_model(*self._load), requests, self._stop)


def _length(request: Request) -> int:
    return sum(len(str(message.get("content"))) for message in request.messages)
