"""The small world's models: a character tokenizer, a Llama of a few million weights, and training from scratch."""

from __future__ import annotations

import random
from pathlib import Path

from datasets import Dataset

from examples.small_world import tasks
from persyn_hf.students.train import train_student

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 +=:,."
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def save_untrained(folder: Path, hidden_size: int, layers: int, seed: int) -> None:
    """Writes a Llama with random weights and the tokenizer that all models of the world share."""
    import torch
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE(vocab={letter: place for place, letter in enumerate(CHARACTERS)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=hidden_size, intermediate_size=3 * hidden_size, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=384, tie_word_embeddings=True,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def lessons(rows: int, shares: dict[str, float], styles: dict[str, float], easy: float, seed: int) -> Dataset:
    """Right answers to random prompts: what a model of the world is trained on, from scratch.

    Args:
        rows: How many.
        shares: Of the tasks; a model is good at what it has seen often.
        styles: Shares of the ways to answer.
        easy: Share of easy prompts.
        seed: Of the draw.
    """
    draw = random.Random(seed)
    chosen = draw.choices(list(shares), weights=list(shares.values()), k=rows)
    prompts = [tasks.ask(task, draw, easy=draw.random() < easy) for task in chosen]
    ways = draw.choices(list(styles), weights=list(styles.values()), k=rows)
    answers = [tasks.solve(prompt, style) for prompt, style in zip(prompts, ways, strict=True)]
    return Dataset.from_dict({"prompt": prompts, "completion": answers})


def train_from_scratch(folder: Path, data: Dataset, hidden_size: int, layers: int, recipe: dict, seed: int) -> None:
    """Trains a model of the world unless an earlier call has, and leaves its weights in `folder`."""
    untrained = folder.with_name(f".{folder.name}.untrained")
    if not (folder / "training.json").exists():
        save_untrained(untrained, hidden_size, layers, seed)
        train_student(data, str(untrained), folder, recipe, seed=seed, progress=False)
