"""Decoders read a prompt in their chat template, and so does whoever loads the checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from persyn_hf import train_router
from persyn_hf.errors import ConfigError
from persyn_hf.routing.backbone import OPENING, as_chat, build_classifier, head_inputs, readable_template
from tests.routing.conftest import make_scored


def test_a_prompt_is_read_as_the_model_reads_a_message(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "SmolLM2-135M-Instruct")
    message = [{"role": "user", "content": "Why is the sea salty?"}]
    asked = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(asked + OPENING, add_special_tokens=False)["input_ids"]
    assert as_chat(tokenizer)("Why is the sea salty?")["input_ids"] == expected
    assert tokenizer("Why")["input_ids"] == tokenizer("Why", add_special_tokens=False)["input_ids"], "it was changed"


def test_a_long_prompt_loses_its_beginning_and_not_the_template(models: Path, tmp_path: Path) -> None:
    tokenizer = as_chat(AutoTokenizer.from_pretrained(models / "SmolLM2-135M-Instruct"))
    tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = "left"
    tokenizer.model_max_length = 48
    tokenizer.save_pretrained(tmp_path)
    for read_by in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        ids = read_by("first " + "sea " * 100 + "last", truncation=True)["input_ids"]
        text = read_by.decode(ids)
        assert len(ids) == 48
        assert text.startswith("<|im_start|>system\n") and "first" not in text
        assert text.endswith(f" last<|im_end|>\n<|im_start|>assistant\n{OPENING}")


def test_a_router_reads_it_so_and_says_so(chat_llama: str, tmp_path: Path) -> None:
    router = train_router(make_scored(60), chat_llama, "s", tmp_path / "r", fallback="none")
    template = router.metadata["prompt_template"]
    assert template == readable_template(router.tokenizer)
    assert template.startswith("[CLS] tax [PAD] ") and " [SEP] law " in template
    assert router.routes(router.scores(["code code law 1 2", "poem poem law 1 2"])) == ["alpha", "beta"]


@pytest.mark.parametrize("backbone", ["tiny_llama", "chat_llama"])
def test_a_saved_decoder_still_cuts_on_the_left(backbone: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    train_router(
        make_scored(20), request.getfixturevalue(backbone), "s", tmp_path / "r", max_length=20, fallback="none"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "r")
    text = tokenizer.decode(tokenizer("code " + "sea " * 60 + "dog", truncation=True)["input_ids"])
    assert "dog" in text and "code" not in text


def test_features_are_those_of_the_last_word_of_the_opening(chat_llama: str) -> None:
    model, tokenizer = build_classifier(chat_llama, ["a", "b"], revision=None, max_length=64, dtype=None, device="cpu")
    texts = ["code sea", "poem " * 20 + "law"]
    for text, features in zip(texts, head_inputs(model, tokenizer, texts), strict=True):
        states = model.base_model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(features, states[0, -1].detach().numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('a system message is needed') }}",
        "{{ messages[1]['content'] }}",
        "{{ messages[0]['content'] + 1 }}",
        {"tool_use": "{{ messages[0]['content'] }}"},
        "{{ messages[0]['content'] + messages[0]['content'] }}",
        "no place for a message",
    ],
)
def test_without_a_template_for_one_message_prompts_are_read_bare(tiny_llama: str, template: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = template
    assert as_chat(tokenizer) is tokenizer


def test_a_template_that_leaves_no_room_is_refused(chat_llama: str) -> None:
    with pytest.raises(ConfigError, match=r"`max_length` must be more than the 7 tokens .* got 5"):
        build_classifier(chat_llama, ["a", "b"], revision=None, max_length=5, dtype=None, device="cpu")
    with pytest.raises(ConfigError, match=r"`max_length` must be at least 16, got 15"):
        train_router(make_scored(20), chat_llama, "s", max_length=15)
