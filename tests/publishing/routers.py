"""A real stock classifier with a `persyn` block, as small as it can be."""

import copy
import json
from pathlib import Path
from typing import Any

PERSYN: dict[str, Any] = {
    "student": "org/student",
    "student_revision": "a" * 40,
    "backbone": "org/backbone",
    "objective": "bradley-terry",
    "seed": 3,
    "reward": {"alpha": 0.4, "normalization": "minmax", "learnability_metric": "mean-logprob"},
    "quality": "math",
    "fallback": None,
    "teachers": [
        {
            "name": "terse",
            "model": "org/small",
            "revision": "b" * 40,
            "license": "apache-2.0",
            "sampling": {"top_p": 0.9},
        },
        {"name": "wordy", "model": "org/large", "license": "mit", "system_prompt": "Use | pipes\n---\nand </details>"},
    ],
    "held_out": {
        "prompts": 50,
        "random": {"mean": 0.4, "low": 0.3, "high": 0.5},
        "best_single": {"mean": 0.5, "low": 0.4, "high": 0.6},
        "router": {"mean": 0.55, "low": 0.45, "high": 0.65},
        "oracle": {"mean": 0.8, "low": 0.7, "high": 0.9},
        "gap_closed": {"mean": 0.17, "low": -0.05, "high": 0.4},
        "reason": "The gain over the best single teacher is not significant.",
    },
}


class TinyRouter:
    """Args: seed of the weights, and what differs in the block."""

    def __init__(self, seed: int = 0, **block: Any) -> None:
        self.seed = seed
        self.metadata: dict[str, Any] = copy.deepcopy(PERSYN) | block

    def save_pretrained(self, folder: str | Path) -> None:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        torch.manual_seed(self.seed)
        words = ["[PAD]", "[UNK]", "Write", "about", "the", "sea", "in", "one", "sentence", "."]
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        names = [teacher["name"] for teacher in self.metadata["teachers"]]
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
        )  # fmt: skip
        config.persyn = json.loads(json.dumps(self.metadata))
        BertForSequenceClassification(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
        ).save_pretrained(folder)
