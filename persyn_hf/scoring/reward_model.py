"""Reward models: one-label sequence classifiers, evaluated so that an answer's score does not depend on its batch."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from torch import Tensor

from persyn_hf.columns import Prompt, canonical_messages, prompt_text
from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.errors import DataError, PromptTooLongError, ScoringError
from persyn_hf.messages import answer_message
from persyn_hf.models.device import Timeline, choose_device, exact_float32, free_cache, is_out_of_memory
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_model, load_tokenizer
from persyn_hf.models.readable import apply_template
from persyn_hf.models.rendering import require_kept
from persyn_hf.models.workers import calm_worker
from persyn_hf.scoring.attention import PACKED, register_packed_attention
from persyn_hf.scoring.batches import upload
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.student import is_close, may_pack


@dataclass(frozen=True)
class RewardModel:
    """A loaded reward model; see `load_reward_model`.

    Where it is `streamed`, batches are given to the device without waiting for it, and the size of them grows; then
    `masked` says whether it must be told where the padding is.
    """

    name: str
    revision: str
    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None
    streamed: bool = False
    masked: bool = True
    growth: Growth = field(default_factory=Growth, compare=False)


def load_reward_model(
    model: str, revision: str | None = None, dtype: str = "auto", device: str | None = None
) -> RewardModel:
    """Loads a reward model once per process.

    Args:
        model (`str`): Hub repository id or local folder of a sequence classifier with one label.
        revision (`str`, *optional*): Commit, tag or branch.
        dtype (`str`, defaults to `"auto"`), device (`str`, *optional*): As in transformers.

    Raises:
        ConfigError: If there is no such model or dtype.
        ScoringError: If the model has more than one label or its head is missing.
    """
    calm_worker()
    resolved, where = identity(model, revision), choose_device(device)
    with LOADING:
        return _load(model, resolved, dtype, where, streamed=where.type != "cpu")


@lru_cache(maxsize=2)
def _load(name: str, revision: str, dtype: str, device: torch.device, streamed: bool) -> RewardModel:
    files = ModelFiles(name, revision, "The reward model", ScoringError)
    model = load_model(files, "classifier", dtype, device)
    if model.config.num_labels != 1:
        raise ScoringError(
            f"A reward model must have one label, but `{name}` has {model.config.num_labels}: it is a classifier and "
            "its labels have no order. Use a model with one output, such as one trained with TRL's `RewardTrainer`."
        )
    with exact_float32():
        masked = not (streamed and _needs_no_mask(model, device))
    context = context_of(model.config)
    return RewardModel(name, revision, model, load_tokenizer(files), device, context, streamed, masked)


def _needs_no_mask(model: Any, device: torch.device) -> bool:
    """Tries a few tokens, right-padded and unmasked, against one sequence at a time under the model's own mask."""
    if not _reads_last(model):
        return False
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    draw = torch.randint(min(3, size - 1), size, (3, 12), generator=generator).tolist()
    rows = [{"input_ids": row[:length]} for row, length in zip(draw, (12, 7, 3), strict=True)]
    plain = model.config._attn_implementation
    with torch.inference_mode():
        expected = torch.cat([_logits(model, _inputs(model, [row]), device, masked=True) for row in rows])
        for implementation in (PACKED, plain) if may_pack(model) else (plain,):
            try:
                register_packed_attention()
                model.set_attn_implementation(implementation)
                found = _logits(model, _inputs(model, rows), device, masked=False)
                if is_close(found, expected, model.dtype):
                    return True
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
                pass  # this architecture does not run that way
        model.set_attn_implementation(plain)
    return False


def reward_scores(
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    names: Sequence[str],
    token_budget: int | None = None,
    progress: Callable[[int], Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> list[float | str]:
    """Scores answers; a score does not depend on the other answers.

    Args:
        reward_model (`RewardModel`): From `load_reward_model`.
        prompts (list of `str` or of chat messages), completions (`Sequence[str]`): The answers. The model's own chat
            template renders them; without one they are its tokenizer's text pair.
        names (`Sequence[str]`): Names of the answers in errors.
        token_budget (`int`, *optional*): Tokens of one batch, padding included. Default: 8,192 on a CPU; elsewhere
            what `persyn_hf.scoring.growth` finds.
        progress (`Callable[[int], Any]`, *optional*): Called with the tokens of every batch.
        tools (`Sequence`, *optional*): The definitions of functions that each prompt offers, which the template is
            given too.

    Returns:
        `list[float | str]`: In order, the score on the model's own scale, higher is better; or, if it is not finite, a
        text that says so.

    Raises:
        PromptTooLongError: If an answer does not fit the model's context.
        ScoringError: If a template refuses a conversation or cuts an answer's thoughts, or no score is finite.
    """
    nothing = [None] * len(prompts)
    rows = zip(prompts, completions, names, tools or nothing, strict=True)
    encoded = [_encode(reward_model, *row) for row in rows]
    growth = Growth(token_budget or ScorerOptions.cpu_tokens, settled=True)
    if reward_model.streamed and token_budget is None:
        growth = reward_model.growth
    with exact_float32():
        found = _all_rows(reward_model, encoded, growth, progress)
    scores: list[float | str] = [
        score if math.isfinite(score) else f"the reward model `{reward_model.name}` gives {score}" for score in found
    ]
    if len(scores) > 1 and all(isinstance(score, str) for score in scores):
        raise ScoringError(
            f"{names[0]} and the {len(scores) - 1} answers after it: {scores[0]}. Its weights overflow in "
            f"{reward_model.model.dtype} or are corrupt: set another `revision`, or use another reward model."
        )
    return scores


def _encode(reward_model: RewardModel, prompt: Prompt, completion: str, name: str, tools: Any) -> dict[str, list[int]]:
    tokenizer = reward_model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        messages = [*canonical_messages(prompt), answer_message(completion)]
        try:
            text = apply_template(tokenizer, messages, tools)
        except TemplateError as error:
            raise ScoringError(f"{name}: the reward model's chat template refuses this: {error}.") from error
        except DataError as error:
            raise ScoringError(f"{name}: the reward model cannot read this conversation: {error}.") from error
        # The text includes the prompt, so its length shows nothing; only cut thoughts can be detected.
        if "</think>" in completion:
            require_kept(completion, text, "the reward model", name)
        found = tokenizer(text, add_special_tokens=False, verbose=False)
    else:
        found = tokenizer(prompt_text(prompt), completion, verbose=False)
    encoded = {key: list(found[key]) for key in ("input_ids", "token_type_ids") if key in found}
    if reward_model.context is not None and len(encoded["input_ids"]) > reward_model.context:
        raise PromptTooLongError(
            f"{name}: {len(encoded['input_ids'])} tokens, but the reward model's context is {reward_model.context}."
        )
    return encoded


def _all_rows(
    reward_model: RewardModel,
    encoded: Sequence[dict[str, list[int]]],
    growth: Growth,
    progress: Callable[[int], Any] | None,
) -> list[float]:
    """The scores of all rows, the longest first, brought to the host at the end.

    Raises:
        ScoringError: If a single answer does not fit in memory.
    """
    model, device = reward_model.model, reward_model.device
    lengths = [len(row["input_ids"]) for row in encoded]
    order = sorted(range(len(encoded)), key=lambda row: -lengths[row])
    scores = torch.full((len(encoded),), math.nan, dtype=_wide(model.dtype), device=device)
    line = Timeline(device)
    before: Any = None
    while order:
        size = growth.size
        batch = order[: max(size // lengths[order[0]], 1)]
        tokens = len(batch) * lengths[batch[0]]
        try:
            with torch.inference_mode():
                found = _logits(model, _inputs(model, [encoded[row] for row in batch]), device, reward_model.masked)
                at = upload({"rows": np.array(batch, dtype=np.int64)}, device)["rows"]
                scores.index_copy_(0, at, found.to(scores.dtype))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ScoringError(f"One answer does not fit in the memory of {device}: {error}") from error
            growth.halve(tokens)
            gc.collect()
            free_cache(device)
            before = None
            continue
        order = order[len(batch) :]
        if progress is not None:
            progress(sum(lengths[row] for row in batch))
        if not growth.settled:
            mark = line.mark()
            if before is not None:  # waits for the device: only while the size is looked for
                growth.record(size, tokens, line.seconds(before, mark), lambda: line.has_room(2.0))
            before = mark
    return [float(score) for score in scores.tolist()]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _reads_last(model: Any) -> bool:
    """Returns whether a model is a decoder whose score is a linear function of its last token's state."""
    return isinstance(getattr(model, "score", None), torch.nn.Linear)


def _inputs(model: Any, rows: Sequence[dict[str, list[int]]]) -> dict[str, NDArray[np.int64]]:
    """Padded tensors, and `last`: where decoders read."""
    lengths = [len(row["input_ids"]) for row in rows]
    fill = model.config.get_text_config().pad_token_id
    arrays = {key: _pad([row[key] for row in rows], (fill or 0) if key == "input_ids" else 0) for key in rows[0]}
    arrays["attention_mask"] = _pad([[1] * length for length in lengths], 0)
    # transformers looks for the last token by the padding id, refuses batches without one, and takes a real last
    # token for padding where both have one id: here lengths decide.
    arrays["last"] = np.array([_last(row["input_ids"], fill) for row in rows], dtype=np.int64)
    return arrays


def _logits(model: Any, arrays: dict[str, NDArray[np.int64]], device: torch.device, masked: bool) -> Tensor:
    """Scores of a batch, `(rows,)`."""
    inputs = upload(arrays, device)
    last = inputs.pop("last")
    if not masked:
        del inputs["attention_mask"]
    if not _reads_last(model):
        logits: Tensor = model(**inputs).logits
    else:
        hidden = model.base_model(**inputs, use_cache=False)[0]
        logits = model.score(hidden[torch.arange(len(last), device=device), last])
    return logits.reshape(len(last))


def _last(ids: list[int], fill: int | None) -> int:
    """The position that transformers reads for a single answer: the last one whose id is not the padding id."""
    if fill is None:
        return len(ids) - 1
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] != fill), 0)


def _pad(rows: Sequence[list[int]], value: int) -> NDArray[np.int64]:
    width = max(len(row) for row in rows)
    return np.array([row + [value] * (width - len(row)) for row in rows], dtype=np.int64)
