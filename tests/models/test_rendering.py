"""Which tokens are the completion's, over templates that end, trim and rewrite in their own ways."""

import pytest

from persyn_hf.errors import ScoringError
from persyn_hf.models.rendering import render_answers
from tests.scoring.models import CHATML, tokenizer

TRIMS = CHATML.replace("message['content']", "(message['content'] | trim)")
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = "{% for m in messages %}### {{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
SPACED = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} <|endoftext|>{% endfor %}"
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] | replace('a', 'xyz') }}{% endfor %}<|im_end|>"
)
LOSES = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"


def spans(template, completion, reason="stop", prompt="hello", **settings):
    text = tokenizer(template, **settings)
    found = render_answers(text, [prompt], [completion], [reason])[0]
    return text.decode(found.prompt_ids), text.decode(found.completion_ids)


def test_chatml_ends_with_the_end_of_turn_and_not_its_newline():
    assert spans(CHATML, "hello the") == (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n",
        "hello the<|im_end|>",
    )


def test_a_cut_answer_has_no_end_of_turn():
    assert spans(CHATML, "hello the", "length")[1] == "hello the"


def test_a_token_across_the_boundary_is_split_there():
    prompt, completion = spans(CHATML, "\n\nhello")
    assert (prompt[-10:], completion) == ("assistant\n", "\n\nhello<|im_end|>")


def test_end_of_turn_text_inside_an_answer_does_not_end_it():
    assert spans(CHATML, "a<|im_end|>\nb")[1] == "a<|im_end|>\nb<|im_end|>"


def test_an_empty_answer_is_its_end_of_turn():
    assert spans(CHATML, "")[1] == "<|im_end|>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TRIMS, "hello the<|im_end|>"),
        (SPACED, "  hello the\n <|endoftext|>"),
        (ENDLESS, "  hello the\n<|im_end|>"),
        (REWRITES, "  hello the\n<|im_end|>"),
    ],
)
def test_templates_that_trim_space_or_end_no_turn(template, expected):
    assert spans(template, "  hello the\n")[1] == expected


def test_rewritten_text_is_found():
    assert spans(REWRITES, "ha", prompt="b")[1] == "hxyz<|im_end|>"


def test_text_that_a_template_puts_before_an_answer_is_the_prompts():
    prompt, completion = spans(THINKS, "hello")
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert completion == "hello<|im_end|>"


def test_an_answer_that_cannot_be_found_is_an_error():
    with pytest.raises(ScoringError, match=r"row 0.*does not show"):
        spans(LOSES, "hello")


def test_a_template_that_refuses_names_the_row():
    refuses = "{{ raise_exception('no system role') }}"
    with pytest.raises(ScoringError, match=r"row 0.*no system role"):
        spans(refuses, "hello")


def test_a_base_model_reads_prompt_completion_and_end_of_text():
    assert spans(None, " hello", eos="<|endoftext|>") == ("hello", " hello<|endoftext|>")
    assert spans(None, " hello", "length", eos="<|endoftext|>") == ("hello", " hello")


def test_answers_of_a_prompt_share_its_tokens():
    found = render_answers(tokenizer(), ["hello"] * 2 + ["the"], ["a", "\n\n", "c"], ["stop"] * 3)
    assert found[0].prompt_ids is found[1].prompt_ids
    assert found[0].span == (len(found[0].prompt_ids), len(found[0].ids))


CUTS_THOUGHTS = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
KEEPS_THOUGHTS = CHATML.replace("message['content']", "(message['content'] | replace('\n', ' '))")
FIRST_LINE = CHATML.replace("message['content']", "message['content'].split('\n')[0]")


def test_a_template_that_cuts_thoughts_names_the_row_and_the_way_out():
    with pytest.raises(ScoringError, match=r"row 0: the chat template of the student drops .*'the'.*separate"):
        spans(CUTS_THOUGHTS, "<think>hello hello</think>\n\nthe")
    assert spans(CUTS_THOUGHTS, "hello the")[1] == "hello the<|im_end|>"
    thoughts = "<think>hello</think>\n\nthe"
    assert spans(KEEPS_THOUGHTS, thoughts)[1] == "<think>hello</think>  the<|im_end|>"
    assert spans(CHATML, thoughts)[1] == f"{thoughts}<|im_end|>"


def test_a_template_that_leaves_out_other_text_is_refused_too():
    with pytest.raises(ScoringError, match=r"of 15 characters it shows 5 \('hello'\)\. Use a chat template"):
        spans(FIRST_LINE, "hello\nhello the")
