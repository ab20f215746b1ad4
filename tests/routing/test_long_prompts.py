"""A prompt of any length costs what the router reads of it, and is read as it was."""

from __future__ import annotations

import filecmp
import random
import unicodedata

import pytest

from persyn_hf.routing.backbone import encode
from persyn_hf.routing.router import PersynRouter

WORDS = [
    "code",
    "poem",
    "straße",
    "naïve",
    "e\u0301te\u0301",
    "日本語",
    "x" * 150,
    "🙂🙂",
    "a\u0308",
    "\t",
    "\n\n",
    "don't",
    "3.14",
]


def trained(kind: str):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    elif kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    elif kind == "bpe of one word":  # as Llama 2: no pre-tokenizer, the text is one word
        tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]")
    draw = random.Random(1)
    lines = [" ".join(draw.choices(WORDS, k=12)) for _ in range(80)]
    tokenizer.train_from_iterator(lines, trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", model_max_length=24)


def texts(draw: random.Random):
    for gap in (" ", "", "   ", "\n"):
        yield gap.join(draw.choices(WORDS, k=1500))
    yield unicodedata.normalize("NFD", " ".join(draw.choices(WORDS, k=1500)))
    yield "a" * 20_000
    yield " " * 20_000 + "code poem " * 900
    yield "code poem " * 900 + " " * 20_000
    yield "".join(draw.choices("ab ", k=20_000))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "bpe of one word", "unigram"])
def test_the_tokens_are_those_of_the_whole_text(kind, side):
    tokenizer = trained(kind)
    tokenizer.truncation_side = side
    long = [*texts(random.Random(2)), "code", "code poem " * 12]
    assert encode(tokenizer, long) == tokenizer(long, truncation=True)["input_ids"]


def test_what_lies_beyond_is_not_tokenised(monkeypatch):
    tokenizer = trained("bytes")
    seen = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, text, **how: (seen.append(text), call(self, text, **how))[1]
    )
    assert len(encode(tokenizer, ["code poem " * 500_000])[0]) == 24
    assert sum(len("".join(text)) for text in seen) < 10_000


def test_what_is_saved_does_not_depend_on_what_was_routed(router_folder, tmp_path):
    router = PersynRouter.from_pretrained(router_folder)
    router.save_pretrained(tmp_path / "before")
    router.scores(["code " * 3000, "poem"])
    router.save_pretrained(tmp_path / "after")
    names = ["tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"]
    for other in (tmp_path / "before", router_folder):
        assert filecmp.cmpfiles(other, tmp_path / "after", names, shallow=False)[0] == names
