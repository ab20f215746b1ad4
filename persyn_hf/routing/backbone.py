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

#: Weight of the mean over tokens relative to the token's own state in the pooling layer; must fit float16.
_MEAN_OVER_SELF = 1e4
#: Keeps the pooler's tanh in its linear part.
_POOLER_SCALE = 0.02
#: Share of an encoder's layers that a frozen router uses: embedding models lose form (a list, a question, a length) in
#: their last layers, and form decides between teachers. Chosen on one set of real answers.
DEPTH = 2 / 3
#: Maximum number of principal components that heads are fitted on; weaker ones are shrunk, so more have no effect.
MAX_COMPONENTS = 128
#: Characters tokenised per token that is read.
_CHARACTERS_PER_TOKEN = 8
#: Tokens next to a cut that the cut may have changed: half a word has different tokens.
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
    """Loads a backbone as a stock sequence classifier with one label per teacher and an untrained head.

    BERT's stock head reads the first token through the pooler, but the mean embedding is known to be more informative.
    So the first two thirds of the layers are kept, and one more stock layer with uniform attention is appended; it
    turns the first token into the mean over the tokens. A decoder reads the prompt in its chat template if it has one
    (see [`as_chat`]).

    Args:
        backbone (`str`): Hub repository id or local folder.
        teachers (`Sequence[str]`): Labels, in order.
        revision (`str`, *optional*), dtype, device: As in `from_pretrained`.
        max_length (`int`): Maximum prompt length, in tokens.
        depth (`float`, defaults to 2/3): Share of BERT's layers to keep.

    Returns:
        `(model, tokenizer)`: Classifier in evaluation mode, and its tokenizer.

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
    # Without the pooler: transformers would report its weights as unexpected.
    encoder = load_model(files, "encoder", "float32", "cpu", trainable=True, add_pooling_layer=False)
    config.num_hidden_layers = math.ceil(config.num_hidden_layers * depth) + 1
    model = build_model("classifier", config)
    wanted = model.base_model.state_dict()
    model.base_model.load_state_dict({k: v for k, v in encoder.state_dict().items() if k in wanted}, strict=False)
    layer, pooler = model.base_model.encoder.layer[-1], model.base_model.pooler.dense
    identity = torch.eye(config.hidden_size)
    with torch.no_grad():
        for parameter in [*layer.parameters(), *pooler.parameters(), *model.classifier.parameters()]:
            parameter.zero_()  # zero queries and keys: uniform attention over all tokens
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
    if is_decoder:  # the head reads the last token, so a long prompt keeps its end
        tokenizer.truncation_side = "left"
    for side in ("padding_side", "truncation_side"):  # only `init_kwargs` are saved
        tokenizer.init_kwargs[side] = getattr(tokenizer, side)
    length, around = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add()
    if length <= around:
        raise ConfigError(
            f"`max_length` must be more than the {around} tokens that the model adds around a prompt, got {length}."
        )
    return tokenizer


def final_linear(model: Any) -> tuple[bool, nn.Linear]:
    """Returns `(has_bias, layer)` for the linear layer that produces the logits; decoders' `score` has no bias.

    Raises:
        RouterError: If the model has no such layer, so that it cannot be a router's backbone.
    """
    for module in reversed(list(model.modules())):
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels:
            return module.bias is not None, module
    raise RouterError(
        f"{type(model).__name__} has no linear head, so it cannot be a router's backbone; choose another model."
    )


def run_batches(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    read: Callable[[dict[str, Tensor]], Tensor],
    token_budget: int,
    progress: bool = False,
) -> Any:
    """Runs a model over texts in batches of similar length and returns the results in the order of the texts.

    Args:
        model, tokenizer: Classifier and its tokenizer; texts are truncated to `tokenizer.model_max_length`.
        texts (`Sequence[str]`): At least one text.
        read (`Callable`): Function from a batch to a tensor of shape `(batch, width)`.
        token_budget (`int`): Maximum number of tokens in a batch, padding included.
        progress (`bool`, defaults to `False`): Whether to show a progress bar.

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
    """Returns the token ids of each text, truncated to what the router reads. Text far beyond that is not tokenised.

    Args:
        tokenizer: Tokenizer whose `model_max_length` and `truncation_side` define the part that is read.
        texts (`Sequence[str]`): At least one text.
    """
    near = [_near(tokenizer, text) for text in texts]
    encoded: list[list[int]] = tokenizer(near, truncation=True, return_attention_mask=False)["input_ids"]
    return encoded


def _near(tokenizer: Any, text: str) -> str:
    """Returns the part of a long text that the router reads, with a margin for the tokens that a cut changes."""
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
    """Returns logits of shape `(texts, teachers)`, float32."""
    return run_batches(model, tokenizer, texts, lambda batch: cast(Tensor, model(**batch).logits), token_budget)


def head_inputs(
    model: Any, tokenizer: Any, texts: Sequence[str], token_budget: int = 8192, progress: bool = False
) -> Array:
    """Returns the inputs of the final linear layer, shape `(texts, hidden)`. For decoders: the last token's state."""
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
    """Maps inputs of the final linear layer to features for fitting a head, and writes a fitted head into the layer.

    Features are principal components of mean square length 1; with `power` above 1 the weaker ones are shrunk. In a
    layer without bias, the component along the mean input replaces it, because it hardly varies between prompts.

    Args:
        inputs (`ndarray` of shape `(prompts, hidden)`): Inputs of the final linear layer on the probe.
        bias (`bool`): Whether the final linear layer has a bias.
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
        """Returns 1 with a bias, else each input's projection on the mean (about 1). Shape `(prompts,)`."""
        if self.bias:
            return np.ones(len(inputs))
        constant: Array = inputs @ self.center / max(float(self.center @ self.center), 1e-12)
        return constant

    def _residual(self, inputs: Array) -> Array:
        residual: Array = inputs - self._constant(inputs)[:, None] * self.center
        return residual

    def __call__(self, inputs: Array) -> Array:
        """Returns features of shape `(prompts, features)`."""
        features: Array = self._residual(inputs) @ self.basis
        return features

    def write(self, head: Head, linear: nn.Linear) -> None:
        """Writes the head into the final linear layer, which then outputs the head's scores."""
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


#: First words of the answer, appended to the chat template.
OPENING = "Here is"
#: Placeholder for the prompt when a template is split; templates strip whitespace, so it has none at its ends.
_MARK = "<<persyn prompt>>"


def as_chat(tokenizer: Any) -> Any:
    """Returns a tokenizer that wraps every text in the model's chat template and adds the answer's first words.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of a decoder; it is not changed.

    Returns:
        `PreTrainedTokenizerBase`: New tokenizer. The given one if it has no chat template, is not a fast tokenizer, or
            its template rejects a single user message.
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
    # The base class: a model-specific class may replace the post-processor when it is loaded.
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=tokenizer.model_max_length, **named)


def _around(tokenizer: Any) -> tuple[str, str] | None:
    """Returns the template's text before and after a prompt, or `None` if the template cannot be used."""
    from jinja2 import TemplateError

    if not tokenizer.is_fast or not tokenizer.chat_template:
        return None
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARK}], tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, ValueError):  # it needs other messages, or has named templates and no default
        return None
    before, found, after = text.partition(_MARK)
    return (before, after + OPENING) if found and _MARK not in after else None


def readable_template(tokenizer: Any) -> str:
    """Returns the router's prompt template in readable form: `"<|im_start|>user\\n{prompt}<|im_end|>…"`."""
    whole: str = tokenizer.decode(tokenizer("{prompt}")["input_ids"])
    return whole
