"""Reward models: one-label sequence classifiers, read so that a batch gives what a single answer gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from persyn_hf.columns import Prompt, canonical_messages, prompt_text
from persyn_hf.config import Student, default_of
from persyn_hf.errors import DataError, PromptTooLongError, ScoringError
from persyn_hf.messages import answer_message
from persyn_hf.models.device import choose_device
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import LOADING, context_of, identity, load_model, load_tokenizer
from persyn_hf.models.readable import apply_template
from persyn_hf.models.rendering import require_kept
from persyn_hf.models.workers import calm_worker


@dataclass(frozen=True)
class RewardModel:
    """A loaded reward model; see `load_reward_model`."""

    name: str
    revision: str
    model: Any
    tokenizer: Any
    device: torch.device
    context: int | None


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
        ScoringError: If it has more than one label or its head is missing.
    """
    calm_worker()
    resolved, where = identity(model, revision), choose_device(device)
    with LOADING:
        return _load(model, resolved, dtype, where)


@lru_cache(maxsize=2)
def _load(name: str, revision: str, dtype: str, device: torch.device) -> RewardModel:
    files = ModelFiles(name, revision, "The reward model", ScoringError)
    model = load_model(files, "classifier", dtype, device)
    if model.config.num_labels != 1:
        raise ScoringError(
            f"A reward model must have one label, `{name}` has {model.config.num_labels}: a classifier, whose labels "
            "have no order. Give a model with one output, such as those trained by TRL's `RewardTrainer`."
        )
    return RewardModel(name, revision, model, load_tokenizer(files), device, context_of(model.config))


def reward_scores(
    reward_model: RewardModel,
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    names: Sequence[str],
    token_budget: int = default_of(Student, "token_budget"),
    progress: Callable[[int], Any] | None = None,
    *,
    tools: Sequence[Any] | None = None,
) -> list[float | str]:
    """Scores answers; each score is what the model gives the answer alone.

    Args:
        reward_model (`RewardModel`): From `load_reward_model`.
        prompts (list of `str` or of chat messages), completions (`Sequence[str]`): The answers. The model's own chat
            template renders them; without one they are its tokenizer's text pair.
        names (`Sequence[str]`): How errors name the answers.
        token_budget (`int`, defaults to 8192): Tokens of one batch, padding included.
        progress (`Callable[[int], Any]`, *optional*): Called with the tokens of every batch.
        tools (`Sequence`, *optional*): The definitions of functions that each prompt offers, which the template is
            given too.

    Returns:
        `list[float | str]`: In order, higher is better, on the model's own scale; words where a score is not finite.

    Raises:
        PromptTooLongError: If an answer does not fit the model's context.
        ScoringError: If a template refuses a conversation or cuts an answer's thoughts, or no score is finite.
    """
    nothing = [None] * len(prompts)
    rows = zip(prompts, completions, names, tools or nothing, strict=True)
    encoded = [_encode(reward_model, *row) for row in rows]
    scores: list[float | str] = [math.nan] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row]["input_ids"]))
    while order:
        longest = len(encoded[order[0]]["input_ids"])
        batch, order = order[: max(token_budget // longest, 1)], order[max(token_budget // longest, 1) :]
        for row, score in zip(batch, _forward(reward_model, [encoded[row] for row in batch]), strict=True):
            scores[row] = score if math.isfinite(score) else f"the reward model `{reward_model.name}` gives {score}"
        if progress is not None:
            progress(sum(len(encoded[row]["input_ids"]) for row in batch))
    if len(scores) > 1 and all(isinstance(score, str) for score in scores):
        raise ScoringError(
            f"{names[0]} and the {len(scores) - 1} answers after it: {scores[0]}. Its weights overflow in "
            f"{reward_model.model.dtype}, or are damaged: give another `revision`, or another reward model."
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
        # The prompt stands in the text too, so that its length says nothing: only cut thoughts are looked for.
        if "</think>" in completion:
            require_kept(completion, text, "the reward model", name)
        found = tokenizer(text, add_special_tokens=False, verbose=False)
    else:
        found = tokenizer(prompt_text(prompt), completion, verbose=False)
    encoded = {key: list(found[key]) for key in ("input_ids", "token_type_ids") if key in found}
    if reward_model.context is not None and len(encoded["input_ids"]) > reward_model.context:
        raise PromptTooLongError(
            f"{name}: {len(encoded['input_ids'])} tokens, the reward model reads {reward_model.context}."
        )
    return encoded


def _forward(reward_model: RewardModel, rows: Sequence[dict[str, list[int]]]) -> list[float]:
    model, device = reward_model.model, reward_model.device
    lengths = [len(row["input_ids"]) for row in rows]
    fill = model.config.get_text_config().pad_token_id
    inputs = {
        key: _pad([row[key] for row in rows], (fill or 0) if key == "input_ids" else 0).to(device) for key in rows[0]
    }
    inputs["attention_mask"] = _pad([[1] * length for length in lengths], 0).to(device)
    with torch.inference_mode():
        if not isinstance(getattr(model, "score", None), torch.nn.Linear):
            logits = model(**inputs).logits
        else:
            # Decoders read the last token. transformers looks for it by the padding id, refuses batches without one,
            # and takes a real last token for padding where both have one id: here lengths decide.
            hidden = model.base_model(**inputs, use_cache=False)[0]
            last = torch.tensor([_last(row["input_ids"], fill) for row in rows], device=device)
            logits = model.score(hidden[torch.arange(len(rows), device=device), last])
    return [float(value) for value in logits.reshape(len(rows))]


def _last(ids: list[int], fill: int | None) -> int:
    """The position that transformers reads when the answer is alone: the last one that is not the padding id."""
    if fill is None:
        return len(ids) - 1
    return next((place for place in range(len(ids) - 1, -1, -1) if ids[place] != fill), 0)


def _pad(rows: Sequence[list[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])
