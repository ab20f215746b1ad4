import json

import pytest
from datasets import Dataset, Features, List, Value

PERSYN = {
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
    },
}


class TinyRouter:
    """A real stock classifier with a `persyn` block, as small as it can be."""

    metadata = PERSYN

    def save_pretrained(self, folder):
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

        torch.manual_seed(0)
        words = ["[PAD]", "[UNK]", "Write", "about", "the", "sea", "in", "one", "sentence", "."]
        tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        names = [teacher["name"] for teacher in PERSYN["teachers"]]
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)},
        )  # fmt: skip
        config.persyn = json.loads(json.dumps(PERSYN))
        BertForSequenceClassification(config).save_pretrained(folder)
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
        ).save_pretrained(folder)


@pytest.fixture
def router():
    return TinyRouter()


@pytest.fixture
def answers():
    features = Features(
        {
            "prompt_id": Value("string"), "prompt": Value("string"), "route": Value("string"),
            "route_scores": List(Value("float32")), "teacher": Value("string"), "completion": Value("string"),
            "finish_reason": Value("string"), "prompt_tokens": Value("int64"), "completion_tokens": Value("int64"),
            "error": Value("string"),
        }
    )  # fmt: skip
    rows = [
        ("1", "one?", "terse", "One.", "stop", 4, 2, None),
        ("2", "two?", "wordy", "Two, that is.", "stop", 4, 5, None),
        ("3", "three?", "wordy", "Three and", "length", 4, 3, None),
        ("4", "four?", "terse", None, None, None, None, "refused"),
        ("5", "five?", "terse", "  ", "stop", 4, 1, None),
    ]
    return Dataset.from_list(
        [
            {
                "prompt_id": i, "prompt": p, "route": t, "route_scores": [0.5, -0.5], "teacher": t, "completion": c,
                "finish_reason": f, "prompt_tokens": n, "completion_tokens": m, "error": e,
            }
            for i, p, t, c, f, n, m, e in rows
        ],
        features=features,
    )  # fmt: skip
