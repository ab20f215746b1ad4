"""A student in memory: its weights, its tokenizer, and the fast paths that are correct for its architecture.

Nothing is assumed about an architecture. After loading, a few random tokens go through the model's own forward pass
and the packed one, and through its own logits and the tiled ones; a fast path whose numbers differ is not used.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from persyn_hf.errors import ScoringError
from persyn_hf.models.device import choose_device, exact_float32
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_model, load_tokenizer
from persyn_hf.models.rendering import Rendered
from persyn_hf.models.workers import calm_worker
from persyn_hf.scoring.attention import PACKED, register_packed_attention
from persyn_hf.scoring.batches import Sharing, pack_tensors, run_shared, run_sorted, sorted_arrays, upload
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.packing import build_pack, run_packed
from persyn_hf.scoring.parts import has_ragged_kernel
from persyn_hf.scoring.prepacked import prepack, restore

#: Largest relative difference of hidden states and logits that rounding explains, by the weights' type.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 8e-2, torch.float16: 2e-2}

#: Layer types whose attention a packed sequence reproduces (`sliding_attention` by its window).
_KNOWN_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class OutputLayer:
    """The output layer, applied to selected positions and one tile of the vocabulary at a time.

    Args:
        weight (`Tensor`): `(vocabulary, hidden)`.
        bias (`Tensor`, *optional*): `(vocabulary,)`.
        scale (`float`, defaults to 1): Factor on the logits (Cohere, Granite).
        softcap (`float`, *optional*): Soft cap on the logits (Gemma 2).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, logits: Tensor) -> Tensor:
        """Applies scale and soft cap in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def tile(self, hidden: Tensor, start: int, stop: int) -> Tensor:
        """Logits of the entries `[start, stop)` in at least float32, `(tokens, stop - start)`."""
        bias = None if self.bias is None else self.bias[start:stop]
        logits = torch.nn.functional.linear(hidden, self.weight[start:stop], bias)
        return self.finish(logits.to(_wide(logits.dtype)))

    def raw(self, hidden: Tensor) -> Tensor:
        """All logits, `(tokens, vocabulary)`: in the weights' type, or in at least float32 where they are finished."""
        if self.scale != 1.0 or self.softcap is not None:
            return self.tile(hidden, 0, len(self.weight))
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def at(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logits of one entry per position, `(tokens,)`."""
        wide = _wide(hidden.dtype)
        logits = (hidden.to(wide) * self.weight[targets].to(wide)).sum(-1)
        if self.bias is not None:
            logits += self.bias[targets].to(wide)
        return self.finish(logits)


@dataclass(frozen=True)
class StudentModel:
    """A loaded student.

    Args:
        name, revision (`str`): Name as given, and the revision that it resolved to.
        model (`PreTrainedModel`): In evaluation mode, on `device`.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        device (`torch.device`): Where it is.
        context (`int`, *optional*): Tokens it can read at once; `None` if it has no limit.
        packed (`bool`): Whether answers of a prompt share its computation.
        head (`OutputLayer`, *optional*): `None` where only the model's own forward pass knows its logits.
        streamed (`bool`, defaults to `False`): Whether batches are given to the device without waiting for it.
        sharing (`Sharing`, *optional*): Attention that reads packs, where batches are streamed.
        masked (`bool`, defaults to `False`): Whether padding must be masked where batches are streamed.
        growth (`Growth`): The size of batches where they are streamed.
    """

    name: str
    revision: str
    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    packed: bool
    head: OutputLayer | None
    streamed: bool = False
    sharing: Sharing | None = None
    masked: bool = False
    growth: Growth = field(default_factory=Growth, compare=False)

    @property
    def body(self) -> Any:
        """The model without its output layer."""
        return self.model.base_model


def load_student(
    model: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    attn_implementation: str | None = None,
) -> StudentModel:
    """Loads a student once per process.

    Args:
        model (`str`): Hub repository id or local folder.
        revision (`str`, *optional*): Branch, tag or commit; for a folder, the digest that it must have.
        dtype (`str`, defaults to `"auto"`): Type of the weights; `"auto"` keeps the checkpoint's.
        device (`str`, *optional*): Device; defaults to CUDA if available, else the CPU.
        attn_implementation (`str`, *optional*): An attention implementation of transformers. Packing is then off: each
            answer is a sequence of its own in a padded batch.

    Returns:
        `StudentModel`: The loaded student.

    Raises:
        ConfigError: If there is no such model or dtype.
        ScoringError: If the folder has changed since its digest was taken, or weights are missing.
    """
    calm_worker()
    where = choose_device(device)
    resolved = identity(model, revision)
    with LOADING:
        return _load(model, resolved, dtype, where, attn_implementation, streamed=where.type != "cpu")


@lru_cache(maxsize=2)
def _load(
    name: str, revision: str, dtype: str, device: torch.device, attn_implementation: str | None, streamed: bool
) -> StudentModel:
    files = ModelFiles(name, revision, "The student", ScoringError)
    model = load_model(files, "causal-lm", dtype, device, attn_implementation=attn_implementation)
    tokenizer = load_tokenizer(files)
    context, share = context_of(model.config), attn_implementation is None
    if not streamed:
        head, packed = _fast_ways(model, device, share)
        return StudentModel(name, revision, model, tokenizer, device, context, packed, head)
    with exact_float32():
        head, sharing, masked = _streamed_ways(model, device, share)
    packed = sharing is not None
    return StudentModel(
        name, revision, model, tokenizer, device, context, packed, head, head is not None, sharing, masked
    )


#: What a token of a pack costs against one of a sorted batch: with FlashAttention over ragged sequences, and without.
#: Guesses by operations and traffic; no GPU has been asked yet.
_SHARING_COST = {True: 1.1, False: 1.5}


def _streamed_ways(model: Any, device: torch.device, share: bool) -> tuple[OutputLayer | None, Sharing | None, bool]:
    """Tries what `persyn_hf.scoring.streaming` does against the model's own forward pass.

    Returns:
        `tuple`: The head; how packs are read, where they agree; and whether padding must be masked.
    """
    answers, tolerance = _probe(model), _TOLERANCE[model.dtype]
    rows = range(len(answers))
    with torch.inference_mode():
        hidden, logits = zip(*(_reference(model, answer, device) for answer in answers), strict=True)
        own_hidden, own_logits = torch.cat(hidden), torch.cat(logits)
        head = _head(model)
        if head is None or not _close(head.raw(own_hidden), own_logits, tolerance):
            return None, None, True

        def is_right(run: Callable[[], tuple[Tensor, dict[str, Tensor]]]) -> bool:
            try:
                found, inputs = run()
                return _close(found[inputs["sources"]], own_hidden, tolerance)
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, AssertionError):
                return False  # this architecture, or this device, does not run that way

        def in_sorted() -> tuple[Tensor, dict[str, Tensor]]:
            inputs = upload(sorted_arrays(answers, rows), device)
            return run_sorted(model.base_model, inputs), inputs

        def in_pack(sharing: Sharing) -> tuple[Tensor, dict[str, Tensor]]:
            pack = pack_tensors(answers, rows, sharing)
            inputs = upload(pack.arrays, device)
            return run_shared(model.base_model, pack, inputs), inputs

        if share and may_pack(model):
            register_packed_attention()
            plain = model.config._attn_implementation
            try:
                model.set_attn_implementation(PACKED)
                ours = is_right(in_sorted)
            except (TypeError, ValueError):
                ours = False
            if ours:
                kinds = (sharing for sharing in _sharing_of(model, device) if is_right(partial(in_pack, sharing)))
                return head, next(kinds, None), False
            model.set_attn_implementation(plain)
        return head, None, not is_right(in_sorted)


def _sharing_of(model: Any, device: torch.device) -> list[Sharing]:
    """Ways to read packs, the fastest first."""
    config = model.config.get_text_config()
    limited = getattr(config, "sliding_window", None) or getattr(config, "attn_logit_softcapping", None)
    plain = Sharing(_SHARING_COST[False], ragged=False, groups=True)
    if not has_ragged_kernel(device, model.dtype):
        return [plain]
    return [Sharing(_SHARING_COST[True], ragged=True, groups=bool(limited)), plain]


def _probe(model: Any) -> list[Rendered]:
    """Four short answers of unlike lengths, three of them to one prompt."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(min(3, size - 1), size, (16,), generator=generator).tolist()
    answers = [Rendered(tuple(ids[:6]), tuple(part)) for part in (ids[6:10], ids[9:12], ids[11:16])]
    return [*answers, Rendered(tuple(ids[2:5]), tuple(ids[7:12]))]


def _fast_ways(model: Any, device: torch.device, share: bool) -> tuple[OutputLayer | None, bool]:
    """Tries the tiled head and the packed pass on a few tokens against the model's own forward pass."""
    answers = _probe(model)
    tolerance = _TOLERANCE[model.dtype]
    with torch.inference_mode():
        pack = build_pack(answers, range(len(answers)))
        hidden, logits = zip(*(_reference(model, answer, device) for answer in answers), strict=True)
        own_hidden, own_logits = torch.cat(hidden), torch.cat(logits)
        head = _head(model)
        if head is not None and not _close(head.tile(own_hidden, 0, len(head.weight)), own_logits, tolerance):
            head = None
        if head is None or not share or not may_pack(model):
            return head, False
        register_packed_attention()
        plain = model.config._attn_implementation
        try:
            if device.type == "cpu":
                prepack(model.base_model)
            model.set_attn_implementation(PACKED)
            packed = run_packed(model.base_model, pack, device)[torch.tensor(pack.sources, device=device)]
            if _close(packed, own_hidden, tolerance):
                return head, True
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
            pass  # this architecture cannot run packed: every answer gets a sequence of its own
        restore(model.base_model)
        model.set_attn_implementation(plain)
    return head, False


def _reference(model: Any, answer: Rendered, device: torch.device) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([answer.ids], device=device)
    start, end = answer.span
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    return model.base_model(**inputs)[0][0, start - 1 : end - 1], model(**inputs).logits[0, start - 1 : end - 1]


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    return bool(difference < tolerance)


def may_pack(model: Any) -> bool:
    """Returns whether only attention mixes tokens, according to the configuration."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    chunked = getattr(config, "attention_chunk_size", None)
    positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and positions
        and (layers <= _KNOWN_LAYERS and not chunked)
    )


def is_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Returns whether two results differ by no more than the rounding of the weights' type."""
    return _close(found, expected, _TOLERANCE[dtype])


def _head(model: Any) -> OutputLayer | None:
    layer = model.get_output_embeddings()
    if not isinstance(layer, torch.nn.Linear):
        return None
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return OutputLayer(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_scores(
    head: OutputLayer, hidden: Tensor, targets: Tensor, ranks: bool, rows: int = 1024, tile: int = 1024
) -> tuple[Tensor, Tensor | None]:
    """Computes log-probabilities of the target tokens, holding at most `rows × tile` logits at a time.

    Args:
        head (`OutputLayer`): The output layer.
        hidden (`Tensor`): Last hidden states at the predicting positions, `(tokens, hidden)`.
        targets (`Tensor`): Token ids, `(tokens,)`.
        ranks (`bool`): Also compute ranks: 1 + the number of tokens that are strictly more probable.
        rows (`int`, defaults to 1024), tile (`int`, defaults to 1024): The largest block of logits.

    Returns:
        `tuple[Tensor, Tensor | None]`: Natural log-probabilities in float32 (float64 for float64 weights) and ranks
        (int64), each `(tokens,)`.
    """
    size = len(head.weight)
    scores, places = [], []
    for first in range(0, len(targets), rows):
        states, wanted = hidden[first : first + rows], targets[first : first + rows]
        logit = head.at(states, wanted)
        total = torch.full_like(logit, -math.inf)
        above = torch.zeros_like(wanted)
        for start in range(0, size, tile):
            logits = head.tile(states, start, min(start + tile, size))
            if ranks:
                above += _count_above(logits, logit, wanted - start)
            top = logits.amax(dim=1)
            part = logits.sub_(top[:, None]).exp_().sum(dim=1).log_().add_(top)
            total = torch.logaddexp(total, part)
        scores.append(logit - total)
        places.append(above + 1)
    return torch.cat(scores), torch.cat(places) if ranks else None


def _count_above(logits: Tensor, logit: Tensor, own: Tensor) -> Tensor:
    """The number of a tile's logits above the target's; the target itself never counts, even if rounding raises it."""
    above = (logits > logit[:, None]).sum(dim=1)
    inside = (own >= 0) & (own < logits.shape[1])
    itself = logits.gather(1, own.clamp(0, logits.shape[1] - 1)[:, None])[:, 0] > logit
    return above - (inside & itself).long()
