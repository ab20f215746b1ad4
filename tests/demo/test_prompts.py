import json

import pytest

from persyn_hf.demo.prompts import demo_prompts, meets, share_met
from persyn_hf.demo.strengths import constraint_shares
from persyn_hf.errors import ScoringError

CASES = [
    ({"kind": "one_sentence"}, "It rains.", "It rains. It pours."),
    ({"kind": "one_sentence"}, "Pi is 3.14 and more.", "No end"),
    ({"kind": "numbered_list", "items": 3}, "1. a\n2. b\n3) c", "1. a\n2. b"),
    ({"kind": "at_least_words", "words": 3}, "a b c", "a b"),
    ({"kind": "at_most_words", "words": 2}, "don't go", "a b c"),
    ({"kind": "two_paragraphs"}, "a\n\nb", "a\nb"),
    ({"kind": "json"}, '```json\n{"a": 1}\n```', "[1]"),
    ({"kind": "all_lower"}, "bread is good.", "Bread is good."),
    ({"kind": "no_commas"}, "a b", "a, b"),
    ({"kind": "includes", "word": "light"}, "The Light.", "Lightning"),
    ({"kind": "excludes", "word": "is"}, "this", "it is"),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), CASES)
def test_checks(constraint, good, bad):
    assert meets(constraint, good) is True
    assert meets(constraint, bad) is False
    assert meets(constraint, "  ") is False


def test_share():
    assert share_met("", "Bread, warm.", '[{"kind": "one_sentence"}, {"kind": "no_commas"}]') == 0.5


@pytest.mark.parametrize("answer", ["", "[]", "{", '[{"kind": "zap"}]', '[{"kind": "includes"}]', None])
def test_bad_references_are_errors(answer):
    with pytest.raises(ScoringError):
        share_met("", "x", answer)


def test_prompts_are_seeded_distinct_and_checkable():
    rows = demo_prompts(480)
    assert rows == demo_prompts(480) and rows != demo_prompts(480, seed=1)
    assert len({row["prompt"] for row in rows}) == 480
    assert demo_prompts(100) == rows[:100]
    for row in rows:
        assert 0 <= share_met(row["prompt"], "Some text.", row["answer"]) <= 1
    assert len({c["kind"] for row in rows for c in json.loads(row["answer"])}) == 10


def test_strengths_count_only_answers():
    answer = '[{"kind": "one_sentence"}, {"kind": "no_commas"}]'
    rows = [
        {"teacher": "a", "completion": "One.", "answer": answer},
        {"teacher": "a", "completion": "One, two. Three.", "answer": answer},
        {"teacher": "b", "completion": None, "answer": answer},
    ]
    assert constraint_shares(rows) == {"no_commas": {"a": 0.5}, "one_sentence": {"a": 0.5}}
