"""The verifier `math`: references and answers as people and models write them, and expressions that never end."""

import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persyn_hf.errors import ScoringError
from persyn_hf.scoring import grader
from persyn_hf.scoring.grader import compare_expressions
from persyn_hf.scoring.mathematics import math_verifier
from persyn_hf.scoring.notation import as_latex, plain_letters
from tests.scoring.math_pairs import BOXED, WHOLE


@pytest.mark.parametrize(("pairs", "count"), [(BOXED, 222), (WHOLE, 48)])
def test_pairs_by_hand_made_rules(pairs, count):
    wrong = [(gold, said, right) for gold, said, right in pairs if math_verifier("", said, gold) != right]
    assert wrong == [] and len(pairs) == count


@pytest.mark.parametrize("gold", ["none of these", "undefined", "", "  ", True, ["1", "2"], float("nan"), "x" * 3000])
def test_references_that_are_no_expression(gold):
    with pytest.raises(ScoringError, match="is not a mathematical expression"):
        math_verifier("", "\\boxed{1}", gold)


@pytest.mark.parametrize(
    ("text", "latex"),
    [
        ("2√5", r"2\sqrt{5}"),
        ("18 dollars", "18"),
        ("$1,234.00", "1,234.00"),
        ("3½", r"3\frac{1}{2}"),
        ("x = 2 or x = 3", "x = 2, x = 3"),
        ("3*6 = 18", "18"),
        ("1.5 million", r"1.5 \cdot 10^{6}"),
        ("2e-3", r"2 \cdot 10^{-3}"),
        (r"\textbf{(C)}\ 12", "C"),
        ("the area is $2x$ square units", "2x"),
        ("the area is between $2x$ and $3x$", None),
        ("3 hours 20 minutes", None),
        ("(" * 51 + "1" + ")" * 51, None),
    ],
)
def test_notation(text, latex):
    assert as_latex(text) == latex


def test_letters_of_unicode():
    assert plain_letters("x² ≤ −10⁻³ · π") == r"x^{2} \leq  -10^{-3} \cdot  \pi "


@pytest.mark.parametrize("tower", ["9^{9^{9^{9}}}", "(x+1)^{1000000}(x-1)^{1000000}"])
def test_an_expression_that_never_ends_is_wrong_and_the_next_one_is_judged(tower, monkeypatch):
    monkeypatch.setattr(grader, "_PROCESSOR_SECONDS", 0.4)
    assert compare_expressions("\\boxed{x^2+1}", [f"\\boxed{{{tower}}}"]) is False
    assert compare_expressions("\\boxed{x^2+1}", ["\\boxed{1+x^2}"]) is True


def test_the_wall_clock_ends_what_takes_no_processor_time(monkeypatch):
    compare_expressions("\\boxed{1}", ["\\boxed{1}"])
    monkeypatch.setattr(grader, "_WALL_SECONDS", 0.05)
    process = grader._Grader.process
    os.kill(process.pid, 19)  # SIGSTOP
    began = time.monotonic()
    assert grader._ask("\\boxed{1}", []) is None
    assert time.monotonic() - began < 5 and process.poll() is not None


@settings(max_examples=60, deadline=None)
@given(
    st.text(
        alphabet="\\{}()[]$^_=+-*/.,!|%&:;<>#~ \n019xiAansweroxdfctqrlm\u2212\u00b2\u221a\u00bd\ud800\x00", max_size=60
    )
)
def test_no_text_makes_it_raise(text):
    assert math_verifier("", text, "x^2 + 1") in (0.0, 1.0)
    assert math_verifier("", f"\\boxed{{{text}}}", "17") in (0.0, 1.0)
    try:
        math_verifier("", "\\boxed{17}", text)
    except ScoringError as error:
        assert "is not a mathematical expression" in str(error)


def test_long_texts_take_no_long_time():
    began = time.process_time()
    for text in (
        " " * 200_000,
        "*" * 200_000,
        "\\boxed{" * 30_000,
        "answer is " * 20_000,
        "a:\n" * 60_000,
        "$" * 200_000,
    ):
        assert math_verifier("", text, "17") == 0.0
    assert time.process_time() - began < 5
