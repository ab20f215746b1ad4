"""A student in memory: its weights, its tokenizer, and the fast paths that are correct for its architecture.

Nothing is assumed about an architecture. After loading, a few random tokens go through the model's own forward pass
and the packed one, and through its own logits and the tiled ones; a fast path whose numbers differ is not used.
"""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from persyn_hf.errors import ScoringError
from persyn_hf.models.device import choose_device
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_model, load_tokenizer
from persyn_hf.models.rendering import Rendered
from persyn_hf.models.workers import calm_worker
from persyn_hf.scoring.attention import PACKED, register_packed_attention
from persyn_hf.scoring.packing import build_pack, run_packed
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
        name (`str`): Hub repository id or local folder.
        revision (`str`): Resolved commit, or a folder's digest.
        model (`PreTrainedModel`): The model in evaluation mode, on `device`.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        device (`torch.device`): Device of the weights.
        context (`int`, *optional*): Context length in tokens; `None` if there is no limit.
        packed (`bool`): Whether to compute a prompt once for all its answers.
        head (`OutputLayer`, *optional*): The output layer; `None` if only the model's own forward pass gives correct
            logits.
    """

    name: str
    revision: str
    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    packed: bool
    head: OutputLayer | None

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
        return _load(model, resolved, dtype, where, attn_implementation)


@lru_cache(maxsize=2)
def _load(name: str, revision: str, dtype: str, device: torch.device, attn_implementation: str | None) -> StudentModel:
    files = ModelFiles(name, revision, "The student", ScoringError)
    model = load_model(files, "causal-lm", dtype, device, attn_implementation=attn_implementation)
    tokenizer = load_tokenizer(files)
    head, packed = _fast_ways(model, device, share=attn_implementation is None)
    return StudentModel(name, revision, model, tokenizer, device, context_of(model.config), packed, head)


def _fast_ways(model: Any, device: torch.device, share: bool) -> tuple[OutputLayer | None, bool]:
    """Tries the tiled head and the packed pass on a few tokens against the model's own forward pass."""
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(min(3, size - 1), size, (16,), generator=generator).tolist()
    answers = [Rendered(tuple(ids[:6]), tuple(part)) for part in (ids[6:10], ids[9:12], ids[11:16])]
    answers.append(Rendered(tuple(ids[2:5]), tuple(ids[7:12])))
    tolerance = _TOLERANCE[model.dtype]
    with torch.inference_mode():
        pack = build_pack(answers, range(len(answers)))
        hidden, logits = zip(*(_reference(model, answer, device) for answer in answers), strict=True)
        own_hidden, own_logits = torch.cat(hidden), torch.cat(logits)
        head = _head(model)
        if head is not None and not _close(head.tile(own_hidden, 0, len(head.weight)), own_logits, tolerance):
            head = None
        if head is None or not share or not _may_pack(model):
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


def _may_pack(model: Any) -> bool:
    """Tells whether only attention mixes tokens, according to the model's configuration."""
    config = model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    chunked = getattr(config, "attention_chunk_size", None)
    positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and positions
        and (layers <= _KNOWN_LAYERS and not chunked)
    )


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
