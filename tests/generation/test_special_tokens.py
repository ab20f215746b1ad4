"""Special tokens and invented turns in answers: what is cut, what is marked, and what is left alone."""

import pytest

from persyn_hf.columns import LEAKS
from persyn_hf.generation.special_tokens import without_leaks

ASKED = [{"role": "user", "content": "What is 6 times 7?"}]


def found(text, prompt="What is 6 times 7?", mode="cut"):
    cleaned = without_leaks(text, [{"role": "user", "content": prompt}], mode)
    assert cleaned.leak is None or cleaned.leak in LEAKS
    return cleaned.text, cleaned.leak


@pytest.mark.parametrize(
    "end",
    [
        "<|im_end|>", " <|im_end|>\n", "</s>", "<|eot_id|><|eot_id|>", "<end_of_turn>\n<eos>", "<|endoftext|>",
        "<|end|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "<|user|>", " [/INST]", "\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>", "<|return|>", "<|eot_id|>assistant",
    ],
)  # fmt: skip
def test_end_tokens_at_the_end_are_cut(end):
    assert found(f"It is 42.{end}") == ("It is 42.", "end-token")


@pytest.mark.parametrize(
    "turn",
    [
        "<|im_end|>\n<|im_start|>user\nAnd 7 times 8?<|im_end|>\n<|im_start|>assistant\n56",
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd 7 times 8?",
        "<|eot_id|>assistant\n\nIs there more?",
        "<end_of_turn>\n<start_of_turn>user\nNext",
        "</s><s>[INST] And 7 times 8? [/INST] 56",
        " \n<|user|>\nAnd?",
        "<｜User｜>And?",
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>And?",
        "<|end|><|start|>assistant<|channel|>final",
        "\n<|im_start|>user\nAnd?",
    ],
)
def test_an_invented_turn_is_cut_where_it_begins(turn):
    assert found(f"It is 42.{turn}") == ("It is 42.", "invented-turn")


@pytest.mark.parametrize("own", ["<|im_start|>assistant\n", "<|assistant|>\n", "[/INST] ", "<start_of_turn>model\n"])
def test_the_marker_of_the_answer_itself_is_taken_off(own):
    assert found(f"{own}It is 42.") == ("It is 42.", "special-token")
    assert found(f"{own}It is 42.<|im_end|>") == ("It is 42.", "end-token")


@pytest.mark.parametrize(
    "text",
    [
        "ChatML ends a turn with `<|im_end|>`",
        "```\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n```",
        "```\n<|im_start|>user\nHi<|im_end|>",  # an example that `max_tokens` cut
        "For example:\n\n    <|im_start|>user\n    Hi<|im_end|>",
        "It ends with the token <|im_end|>",
        "The tokens <|im_start|> and <|im_end|> frame a turn.",
        "Llama 2 puts a question between [INST] and [/INST]",
        "HTML strikes a text with <s>old</s>",
        "mov eax, mem[INST] ; load",
        "List<User> users = new List<>(); a < b > c",
        "User: is the first word of this answer",
        "A plain answer.",
        "",
    ],
)
def test_an_answer_that_speaks_of_tokens_stays_as_it_is(text):
    assert found(text) == (text, None)


def test_what_the_prompt_shows_or_asks_for_is_no_leak():
    assert found("It is <|im_end|>.<|im_end|>", "What does <|im_end|> do?") == ("It is <|im_end|>.<|im_end|>", None)
    assert found("<|eot_id|>", "Which token ends a turn in Llama 3?")[0] == "<|eot_id|>"
    example = "It looks so:\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
    assert found(example, "Explain the ChatML format.") == (example, "invented-turn")  # marked, and not cut


def test_code_before_a_leak_does_not_hide_it():
    code = "```py\nprint('<|im_end|>')\n```"
    assert found(f"{code}\nDone.<|im_end|>") == (f"{code}\nDone.", "end-token")
    assert found("```\n1 + 1\n```<|im_end|>") == ("```\n1 + 1\n```", "end-token")
    assert found("```\n1 + 1<|im_end|>") == ("```\n1 + 1", "end-token")


def test_a_token_in_the_middle_is_marked_only():
    text = "It is 42.<|endoftext|>Another document"
    assert found(text) == (text, "special-token")


@pytest.mark.parametrize(
    "turn", ["\nUser: And 7 times 8?\nAssistant: 56", "\n\n### Instruction:\nNext", "assistant\n\nAnd?"]
)
def test_turns_in_plain_words_are_marked_and_cut_only_where_that_is_configured(turn):
    text = f"It is 42.{turn}"
    assert found(text) == (text, "turn-words")
    assert found(text, mode="cut-words") == ("It is 42.", "turn-words")
    assert found(f"```{turn}\n```", mode="cut-words")[1] is None


def test_nothing_is_cut_where_it_is_only_to_be_marked():
    for text in ("42<|im_end|>", "42\n<|user|>\nAnd?", "<|assistant|>\n42"):
        assert found(text, mode="mark")[0] == text
        assert found(text, mode="mark")[1] is not None
