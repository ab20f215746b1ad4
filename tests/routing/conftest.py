from __future__ import annotations

import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from persyn_hf.columns import prompt_id

TEACHERS = ["alpha", "beta", "gamma"]
WORDS = ["code", "poem", "list", "sea", "sun", "tax", "law", "dog", "cat", "run"]


def tokenizer_files(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *string.ascii_lowercase, *string.digits]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer_files(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_files(folder)
    return str(folder)


@pytest.fixture(scope="session")
def chat_llama(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same decoder with a chat template; it ends in the token that is used for padding, as SmolLM2's does."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ '[CLS] tax [PAD] ' + messages[0]['content'] | trim + ' [SEP] law ' }}"
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_scored(prompts: int = 120, seed: int = 0, learnable: bool = True, noise: float = 0.05) -> Dataset:
    """Prompts about code go to alpha, poems to beta; gamma is second everywhere. Without `learnable`, pure noise."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(prompts):
        topic = "code" if number % 2 else "poem"
        text = " ".join([topic, topic, *random.choice(WORDS[2:], 3), *str(number)])
        means = (
            {"alpha": 0.9, "beta": 0.2, "gamma": 0.6} if topic == "code" else {"alpha": 0.2, "beta": 0.9, "gamma": 0.6}
        )
        if not learnable:
            means = {"alpha": 0.3, "beta": 0.5, "gamma": 0.4}
        for teacher in TEACHERS:
            reward = float(means[teacher] + noise * random.normal())
            rows.append(
                {"prompt_id": prompt_id(text), "prompt": text, "teacher": teacher, "reward": reward, "quality": reward}
            )
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def scored() -> Dataset:
    return make_scored()


@pytest.fixture(scope="session")
def router_folder(tiny_bert: str, scored: Dataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    from persyn_hf.routing.training import train_router

    folder = tmp_path_factory.mktemp("router")
    train_router(scored, tiny_bert, "org/student", folder, reward_settings={"alpha": 0.4})
    return str(folder)
