"""Answers that leave the published set."""

import pytest

from persyn_hf.config import Hygiene
from persyn_hf.hygiene.answers import copied_share, is_refusal, reasons

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with this request",
    "As an AI language model, I cannot provide medical advice.",
    "Sorry, I can't do that",
    "I apologize, but I am unable to provide that information.",
    "I’m unable to help with that.",
    "**I'm sorry**, but as an AI developed by X, I won't write that.",
    "I decline to answer this.",
    "I must decline to help with it.",
    "对不起，我不能帮助您完成这个请求。",
    "Lo siento, pero no puedo ayudar con eso.",
    "I'm afraid I can't do that, Dave.",
    "Unfortunately, I cannot provide that information.",
    "I'm really sorry, but I'm not able to help with that.",
    "My apologies, but I cannot fulfill this request.",
    "I am not able to create that content.",
    "I can't in good conscience write this.",
    "I can't provide instructions for that.",
    "I cannot generate explicit content.",
    "I won't be able to help you with this.",
)
ANSWERS = (
    "I can't help but smile when I hear this song.",
    "I can't help feeling that he is right.",
    "I cannot emphasise enough how good it is.",
    "I can't wait to share it.",
    "Sorry for your loss. Here is what to do.",
    "I'm sorry to hear that. Try to rest.",
    "To refuse politely, say: I can't help with that.",
    "The answer is 5.",
    "I am unable to swim, said the cat.",
    "I can't provide a better answer than 42: 6*7.",
    "I can't make it to the party, wrote Ann.",
    "I apologize for the delay in my reply. Best, Ann",
    "I won't go home before noon.",
    "I do not write poems often, but here is one.",
    "",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_no_refusal(text):
    assert not is_refusal(text)


def test_the_share_that_an_answer_copies():
    prompt = "Explain to a child of seven why the sky looks blue at noon."
    assert copied_share(prompt, prompt.upper()) == 1.0
    assert copied_share(prompt, "Light is scattered by air, and blue light most of all.") == 0.0
    # 9 words, 5 runs of five; the first of them stands in the prompt
    assert copied_share(prompt, "why the sky looks blue is due to scattering") == pytest.approx(1 / 5)
    assert copied_share("Say yes", "yes") == 0.0
    assert copied_share("yes", "Yes!") == 1.0
    assert copied_share("Anything", "…") == 0.0


def test_each_answer_has_the_first_reason_that_holds():
    rows = {
        "prompt": ["Say the words one two three four five."] * 5,
        "completion": [
            "I'm sorry, but I can't help with that.",
            "Say the words one two three four five.",
            "Here you are, a long answer.",
            "Here you are, a better answer.",
            None,
        ],
        "quality": [1.0, 1.0, 0.25, 0.5, None],
    }
    asked = Hygiene(drop_refusals=True, max_copied=0.8, min_quality=0.5)
    assert reasons(rows, asked) == ["refused", "copied", "low_quality", None, None]
    assert reasons(rows, Hygiene()) == [None] * 5


def test_an_unknown_quality_is_below_every_bound():
    rows = {"prompt": ["Hi"], "completion": ["Hello"], "quality": [None]}
    assert reasons(rows, Hygiene(min_quality=-10.0)) == ["low_quality"]
