"""Tiny random models of four kinds, each with the chat template of its kind as TRL ships it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import trl
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)  # fmt: skip

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip

#: kind: config, model, template, special tokens, end of text, begin of text, end of turn
KINDS: dict[str, tuple[Any, ...]] = {
    "smollm": (LlamaConfig, LlamaForCausalLM, SMOLLM, CHATML, "<|im_end|>", None, "<|im_end|>"),
    "qwen": (Qwen2Config, Qwen2ForCausalLM, "qwen2_5", CHATML, "<|im_end|>", None, "<|im_end|>"),
    "llama": (
        LlamaConfig, LlamaForCausalLM, "llama3_2",
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"),
        "<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>",
    ),
    "gemma": (
        Gemma2Config, Gemma2ForCausalLM, "gemma", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>", "<bos>", "<end_of_turn>",
    ),
}  # fmt: skip


def save_kind(folder: str | Path, kind: str) -> str:
    """Writes a tiny random model of a kind with its tokenizer and returns the folder's name."""
    config, model, template, special, eos, bos, _ = KINDS[kind]
    tokenizer = byte_tokenizer(special, eos, bos)
    path = TEMPLATES / f"{template}.jinja"
    tokenizer.chat_template = path.read_text(encoding="utf-8") if len(template) < 40 else template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    more = {"head_dim": 8} if kind == "gemma" else {}
    settings = config(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, **SIZES, **more,
    )  # fmt: skip
    model(settings).save_pretrained(folder)
    return str(folder)


def byte_tokenizer(special: Sequence[str], eos: str, bos: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, so that token boundaries are where characters are."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": [token for token in special if token not in (eos, bos)]})
    return fast
