"""Tiny random students, built in code, with a real fast tokenizer and a chat template."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("Ċ", "Ċ"), ("t", "he"), ("Ġ", "the")]


def tokenizer(
    chat_template: str | None = CHATML,
    eos: str = "<|im_end|>",
    merges: list[tuple[str, str]] = MERGES,
    adds_bos: bool = False,
) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = [*SPECIALS, *letters, *("".join(pair) for pair in MERGES)]
    core = Tokenizer(models.BPE({token: place for place, token in enumerate(vocabulary)}, merges))
    if adds_bos:
        core.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        pad_token=eos,  # as SmolLM2: the padding id is a real token of every answer
        bos_token="<|im_start|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


SIZES = {"vocab_size": 270, "max_position_embeddings": 256}
LLAMA_LIKE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "qwen2": LLAMA_LIKE,
    "gemma": LLAMA_LIKE | {"num_key_value_heads": 1},
    "gemma2": LLAMA_LIKE | {"sliding_window": 8, "query_pre_attn_scalar": 12, "final_logit_softcapping": 3.0},
    "gemma3_text": LLAMA_LIKE | {"sliding_window": 8, "query_pre_attn_scalar": 12, "num_hidden_layers": 6},
    "mistral": LLAMA_LIKE | {"sliding_window": 8},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4},
    "cohere": LLAMA_LIKE | {"logit_scale": 0.5},
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 48, "num_hidden_layers": 2, "state_size": 8},
}


def save(folder: Path, kind: str, text: PreTrainedTokenizerFast | None = None, seed: int = 0, **changes: Any) -> str:
    """Writes a random student whose log-probabilities are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind, **(SIZES | CONFIGS[kind] | changes), bos_token_id=1, eos_token_id=2, pad_token_id=2
    )
    model = AutoModelForCausalLM.from_config(config).float()
    roughen(model)
    model.save_pretrained(folder)
    (text or tokenizer()).save_pretrained(folder)
    return str(folder)


def save_reward_model(folder: Path, kind: str, text: PreTrainedTokenizerFast | None = None, **changes: Any) -> str:
    torch.manual_seed(1)
    sizes = SIZES | CONFIGS.get(kind, {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4})
    settings = sizes | {"num_labels": 1, "pad_token_id": 2} | changes
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **settings)).float()
    roughen(model)
    model.save_pretrained(folder)
    (text or tokenizer()).save_pretrained(folder)
    return str(folder)


def roughen(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)


def reference_logprobs(folder: str, ids: list[int], start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain float64, one sequence, eager attention: log-probabilities of `ids[start:]`, and their ranks."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
    return torch.log_softmax(logits, dim=-1), torch.tensor(ids[start:])
