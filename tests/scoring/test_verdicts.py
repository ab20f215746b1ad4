"""The score in a judge's reply: which forms are read, and which could mean something else."""

import pytest

from persyn_hf.errors import RequestError
from persyn_hf.scoring.verdicts import parse_score


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("7", 7.0), ("7.", 7.0), ("7.5", 7.5), ("10", 10.0), ("10.0", 10.0), ("**9**", 9.0), ("__9__", 9.0),
        ("Score: 7", 7.0), ("Score: **7**", 7.0), ("**Score:** 8", 8.0), ("**Score**: 8", 8.0), ("*Score: 8*", 8.0),
        ("Score: 7.", 7.0), ("score 6", 6.0), ("SCORE=6", 6.0), ("Score - 8", 8.0), ("Score – 8", 8.0),
        ("Final score: 8", 8.0), ("Overall rating: 8/10", 8.0), ("Overall Score is 4.", 4.0), ("Grade: 3", 3.0),
        ("My final rating is: 5", 5.0), ("The score is 5", 5.0), ("### Final Score: 9", 9.0), ("- Score: 2", 2.0),
        ("8/10.", 8.0), ("8 / 10", 8.0), ("**8**/10", 8.0), ("7 out of 10", 7.0), ("Score: 7 out of 10.", 7.0),
        ("Score: 7 (out of 10)", 7.0), ("Score (1-10): 7", 7.0), ("Score (out of 10): 7", 7.0), ("8.5/10", 8.5),
        ("Rating: 8.5", 8.5), ("Rating: [[8]]", 8.0), ("[[8]]", 8.0), ("[8]", 8.0), ("(8)", 8.0), ("[[8]].", 8.0),
        ("8 points", 8.0), ("Score: 8/10 (very good)", 8.0), ("\\boxed{8}", 8.0), ("`8`", 8.0), ('"8"', 8.0),
        ("<score>8</score>", 8.0), ("<rating> 8/10 </rating>", 8.0), ("<answer>\n8\n</answer>", 8.0),
        ("分数：8", 8.0), ("评分: 8分", 8.0), ("最终得分：９／１０", 9.0), ("스코어\n점수: 6점", 6.0),
        ("Note : 8/10", 8.0), ("Score: 8<|im_end|>", 8.0), ("Score: 8</s>", 8.0), ("Score: 8 ✅", 8.0),
        ("Score: 8\u200b", 8.0), ('{"score": 8}<|eot_id|>', 8.0), ("8\n<end_of_turn>\n", 8.0),
        ("<|channel|>analysis<|message|>Score: 3<|end|><|start|>assistant<|channel|>final<|message|>Score: 8", 8.0),
        ("Bewertung: 8 von 10", 8.0), ("Puntuación: 7", 7.0), ("Оценка: 7", 7.0), ("スコア：7点", 7.0),
        ('{"score": 8}', 8.0), ('```json\n{"score": 8}\n```', 8.0), ('{"rating": "8/10", "reason": "1 slip"}', 8.0),
        ('{\n "reasoning": "It has {braces} and 3 steps.",\n "overall_score": 8.5\n}', 8.5),
        ('{"score": 8, "final_score": 8}', 8.0), ('{"helpfulness": 3, "score": 8}', 8.0), ('{"Score": "**8**"}', 8.0),
        ('Final: {"score": 8}', 8.0),
        ("<think>Score: 3\n1 or 2?</think>\n\nScore: 7", 7.0), ("Score: 3\nNo, wait.\nScore: 7\n---", 7.0),
    ],
)  # fmt: skip
def test_one_number_is_a_score(line, score):
    assert parse_score(line) == parse_score(f"Reasonable, with 2 slips.\n\n{line}\n") == score


@pytest.mark.parametrize(
    "line",
    [
        "", "7-8", "7–8", "7 to 8", "7 or 8", "Score: 7-8", "Score: 7, 8", "Score: 7 8", "8,5", "Score: 8,5",
        "Score: 7/5", "7/100", "4/5", "7 out of 5", "out of 10", "/10", "Score: /10", "Score: out of 10", "80%",
        "0", "11", "10.5", "100", "-3", "Score: -3", "Score -3", "+7", "7+", "~7", "1e1", "7½", "1⁰", "seven",
        "Helpfulness: 8, correctness: 7", "Score: 7 (was 8)", "Step 7", "Question 7", "I rate it.", "Score: N/A",
        "1. Score: 7", "Score: 7\nbut wait", "2024", "7*8", "7/10/2024", "Score: 7 out of 10 out of 10",
        '{"score": 8, "rating": 7}', '{"score": {"value": 8}}', '{"score": null}', '{"score": true}', '{"score": 11}',
        '{"scores": [7, 8]}', '{"score": "7-8"}', '{"helpfulness": 8}', '{"score": 8} or {"score": 9}', '{"score": 8',
        '{"score": NaN}', '{"score": 1e400}', "[" * 100_000, '{"a":' * 100_000 + "}", "<think>\nScore: 7",
        "<|channel|>analysis<|message|>Score: 7", "Score: <|im_end|>7",
    ],
)  # fmt: skip
def test_what_could_mean_something_else_is_no_score(line):
    with pytest.raises(RequestError, match="not a score from 1 to 10"):
        parse_score(f"Reasonable.\n\n{line}")


def test_the_error_has_the_judges_words_made_fit():
    with pytest.raises(RequestError, match=r"not a score from 1 to 10: 'FINE BY ME'"):
        parse_score("fine by me", str.upper)
