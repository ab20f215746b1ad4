"""Backbones as stock sequence classifiers: building one, reading its features, and writing a head into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from persyn_hf.errors import ConfigError, RouterError
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import build_model, load_config, load_model, load_tokenizer
from persyn_hf.routing.heads import Array, Head

#: Weight of the mean over tokens against the token's own state in the pooling layer; float16 must hold their product.
_MEAN_OVER_SELF = 1e4
#: Keeps the pooler's tanh in its linear part.
_POOLER_SCALE = 0.02
#: Share of an encoder's layers that a frozen router reads: embedding models forget form (a list, a question, a length)
#: towards their last layers, and form is what decides between teachers. Chosen on one set of real answers.
DEPTH = 2 / 3
#: Principal components that heads are fitted on; with the weaker ones shrunk, those beyond change nothing.
MAX_COMPONENTS = 128
#: Characters that are tokenised for each token that is read, and how many tokens beside a cut it may have changed: a
#: word that is cut in two has other tokens.
_CHARACTERS_PER_TOKEN = 8
_BESIDE_A_CUT = 256


def build_classifier(
    backbone: str,
    teachers: Sequence[str],
    *,
    revision: str | None,
    max_length: int,
    dtype: Any,
    device: Any,
    depth: float = DEPTH,
) -> tuple[Any, Any]:
    """Loads a backbone as a stock sequence classifier with one label per teacher, its head not trained yet.

    BERT's stock head reads the first token through the pooler, and its mean embedding is known to say more. So the
    layers up to two thirds of the depth are kept, and one more stock layer with uniform attention is appended, which
    turns the first token into the mean over the tokens. A decoder reads the prompt in its chat template, where it has
    one (see `template`).

    Args:
        backbone (`str`): Hub repository id or local folder.
        teachers (`Sequence[str]`): Labels, in order.
        revision (`str`, *optional*), dtype, device: As in `from_pretrained`.
        max_length (`int`): Tokens of a prompt that are read.
        depth (`float`, defaults to 2/3): Share of BERT's layers that are kept.

    Returns:
        `(model, tokenizer)`: In evaluation mode.

    Raises:
        RouterError: If the backbone cannot be loaded.
        ConfigError: If `max_length` leaves no room for a prompt.
    """
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(teachers)),
        "label2id": {t: i for i, t in enumerate(teachers)},
    }
    files = ModelFiles(backbone, revision, "The backbone", RouterError)
    config = load_config(files, num_labels=len(teachers), **labels)
    tokenizer = load_tokenizer(files)
    if config.model_type == "bert":
        model = _bert_with_mean_pooling(files, config, depth)
    else:
        if config.model_type == "modernbert":
            config.classifier_pooling = "mean"
        model = load_model(files, "classifier", "float32", "cpu", config=config, trainable=True, new_head=True)
    tokenizer = _prepared(model, tokenizer, max_length)
    return model.to(device=device, dtype=dtype).eval(), tokenizer


def _bert_with_mean_pooling(files: ModelFiles, config: Any, depth: float) -> Any:
    # The pooler is left out on purpose; transformers would report it as unexpected.
    encoder = load_model(files, "encoder", "float32", "cpu", trainable=True, add_pooling_layer=False)
    config.num_hidden_layers = math.ceil(config.num_hidden_layers * depth) + 1
    model = build_model("classifier", config)
    wanted = model.base_model.state_dict()
    model.base_model.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in wanted}, strict=False)
    layer, pooler = model.base_model.encoder.layer[-1], model.base_model.pooler.dense
    identity = torch.eye(config.hidden_size)
    with torch.no_grad():
        for parameter in [*layer.parameters(), *pooler.parameters(), *model.classifier.parameters()]:
            parameter.zero_()  # zero queries and keys: every token is attended to alike
        layer.attention.self.value.weight.copy_(identity)
        layer.attention.output.dense.weight.copy_(identity * _MEAN_OVER_SELF)
        layer.attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
        pooler.weight.copy_(identity * _POOLER_SCALE)
    return model


def _prepared(model: Any, tokenizer: Any, max_length: int) -> Any:
    is_decoder = not final_linear(model)[0]
    if is_decoder:
        tokenizer = as_chat(tokenizer)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    limit = getattr(model.config, "max_position_embeddings", None)
    tokenizer.model_max_length = min(max_length, limit or max_length)
    tokenizer.padding_side = "right"
    if is_decoder:  # it reads its last token: the end of a long prompt is what it keeps
        tokenizer.truncation_side = "left"
    for side in ("padding_side", "truncation_side"):  # only what it was made with is saved
        tokenizer.init_kwargs[side] = getattr(tokenizer, side)
    length, around = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add()
    if length <= around:
        raise ConfigError(f"`max_length` is {length}, and what the model reads around a prompt has {around} tokens.")
    return tokenizer


def final_linear(model: Any) -> tuple[bool, nn.Linear]:
    """The linear map that makes the logits, and whether it has a bias (decoders' `score` has none).

    Raises:
        RouterError: If there is none, so that this architecture cannot carry a head.
    """
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
            return module.bias is not None, module
    raise RouterError(f"{type(model).__name__} ends in no linear head, so it cannot be a router's backbone.")


def run_batches(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    read: Callable[[dict[str, Tensor]], Tensor],
    token_budget: int,
    progress: bool = False,
) -> Any:
    """Runs a model over texts in batches of similar length, and puts the results back in order.

    Args:
        model, tokenizer: A classifier and its tokenizer; `tokenizer.model_max_length` cuts long texts.
        texts (`Sequence[str]`): At least one.
        read (`Callable`): From a batch to a tensor of shape `(batch, width)`.
        token_budget (`int`): Tokens of one batch, padding included.
        progress (`bool`, defaults to `False`): Show a progress bar.

    Returns:
        `ndarray` of float32, shape `(texts, width)`.
    """
    encoded = encode(tokenizer, texts)
    lengths = np.array([len(ids) for ids in encoded])
    order = np.argsort(-lengths, kind="stable")
    pending: list[tuple[Any, Tensor]] = []
    start = 0
    bar = tqdm(total=len(order), desc="backbone", unit="prompt", disable=not progress)
    while start < len(order):
        size = max(1, token_budget // max(1, int(lengths[order[start]])))
        rows = order[start : start + size]
        batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            pending.append((rows, read(dict(batch)).float()))  # stays where it is: a GPU is not waited for
        start += size
        bar.update(len(rows))
    bar.close()
    values = torch.cat([part for _, part in pending]).cpu().numpy()
    output = np.empty_like(values)
    output[np.concatenate([rows for rows, _ in pending])] = values
    return output


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, as many as the router reads; what lies far beyond them is not tokenised.

    Args:
        tokenizer: `model_max_length` and `truncation_side` say what is read.
        texts (`Sequence[str]`): At least one.
    """
    near = [_near(tokenizer, text) for text in texts]
    encoded: list[list[int]] = tokenizer(near, truncation=True, return_attention_mask=False)["input_ids"]
    return encoded


def _near(tokenizer: Any, text: str) -> str:
    """The part of a long text that the router reads, and more than a cut can change of the tokens beside it."""
    wanted = tokenizer.model_max_length + _BESIDE_A_CUT
    size = _CHARACTERS_PER_TOKEN * wanted
    while size < len(text):
        part = text[-size:] if tokenizer.truncation_side == "left" else text[:size]
        ids = tokenizer(part, add_special_tokens=False, truncation=False, return_attention_mask=False, verbose=False)
        if len(ids["input_ids"]) >= wanted:
            return part
        size *= 4
    return text


def logits(model: Any, tokenizer: Any, texts: Sequence[str], token_budget: int) -> Any:
    """Logits of shape `(texts, teachers)`, float32."""
    return run_batches(model, tokenizer, texts, lambda batch: cast(Tensor, model(**batch).logits), token_budget)


def head_inputs(
    model: Any, tokenizer: Any, texts: Sequence[str], token_budget: int = 8192, progress: bool = False
) -> Array:
    """The inputs of the final linear map: shape `(texts, hidden)`. For decoders, the state of the last token."""
    _, linear = final_linear(model)
    seen: list[Tensor] = []
    handle = linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))

    def read(batch: dict[str, Tensor]) -> Tensor:
        seen.clear()
        model(**batch)
        states = seen[0]
        if states.ndim == 2:
            return states
        mask = batch["attention_mask"]
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), last]

    try:
        return cast(Array, run_batches(model, tokenizer, texts, read, token_budget, progress).astype(np.float64))
    finally:
        handle.remove()


class FeatureMap:
    """From what the final linear map reads to features that heads are fitted on, and back into its weights.

    Principal components, with the weaker ones shrunk (`power` above 1), of mean square length 1. Where there is no
    bias, the component along the mean plays its part: over prompts it hardly varies.

    Args:
        inputs (`ndarray` of shape `(prompts, hidden)`): Inputs of the final linear map over the probe.
        bias (`bool`): True where the final linear map has one.
        power (`float`, defaults to 2.0): Exponent of the singular values; 1 is plain PCA.
    """

    def __init__(self, inputs: Array, bias: bool, power: float = 2.0) -> None:
        self.bias = bias
        self.center = inputs.mean(axis=0)
        _, values, right = np.linalg.svd(self._residual(inputs), full_matrices=False)
        kept = values > 1e-6 * values[0] if values.size and values[0] > 0 else values > 0
        kept[MAX_COMPONENTS:] = False
        values, right = values[kept], right[kept]
        shrink = values ** (power - 1) if values.size else values
        length = np.sqrt((values**2 * shrink**2).sum() / len(inputs)) if values.size else 1.0
        self.basis: Array = right.T * (shrink / length)

    def _constant(self, inputs: Array) -> Array:
        """1 with a bias; without one, how far each input reaches along the mean, about 1. Shape `(prompts,)`."""
        if self.bias:
            return np.ones(len(inputs))
        constant: Array = inputs @ self.center / max(float(self.center @ self.center), 1e-12)
        return constant

    def _residual(self, inputs: Array) -> Array:
        residual: Array = inputs - self._constant(inputs)[:, None] * self.center
        return residual

    def __call__(self, inputs: Array) -> Array:
        """Features of shape `(prompts, features)`."""
        features: Array = self._residual(inputs) @ self.basis
        return features

    def write(self, head: Head, linear: nn.Linear) -> None:
        """Makes the final linear map give the head's scores."""
        weight = self.basis @ head.weight  # (hidden, teachers)
        if self.bias:
            constant = head.means - self.center @ weight
        else:
            unit = self.center / max(float(self.center @ self.center), 1e-12)
            weight = weight + np.outer(unit, head.means - self.center @ weight)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight.T))
            if self.bias:
                linear.bias.copy_(torch.from_numpy(constant))


#: The answer's first words.
OPENING = "Here is"
#: Stands for the prompt where the template is taken apart; templates strip blanks, so it has none at its ends.
_MARK = "<<persyn prompt>>"


def as_chat(tokenizer: Any) -> Any:
    """A tokenizer that puts every text where the user speaks in the model's chat template, and begins the answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of a decoder; stays as it is.

    Returns:
        `PreTrainedTokenizerBase`: The given one where that has no chat template, or one that cannot be had (it is not
            a fast tokenizer, or its template takes no single message).
    """
    around = _around(tokenizer)
    if around is None:
        return tokenizer
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    pieces, special = [], []
    for name, text in zip(("<before>", "<after>"), around, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids:
            pieces.append(name)
            special.append({"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)})
    pieces.insert(pieces.index("<after>"), "$A")
    backend.post_processor = TemplateProcessing(single=" ".join(pieces), special_tokens=special)
    # The plain class: a model's own may make a post-processor of its own when it is loaded.
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **named)


def _around(tokenizer: Any) -> tuple[str, str] | None:
    """The text before and behind a prompt."""
    from jinja2 import TemplateError

    if not tokenizer.is_fast or not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError):  # one for other messages, or several of which none is the default
        return None
    before, found, after = text.partition(_MARK)
    return (before, after + OPENING) if found and _MARK not in after else None


def readable_template(tokenizer: Any) -> str:
    """The text that a router reads, for people: `"<|im_start|>user\\n{prompt}<|im_end|>…"`."""
    whole: str = tokenizer.decode(tokenizer("{prompt}")["input_ids"])
    return whole
