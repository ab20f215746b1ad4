"""Which functions may be verifiers, what they may return, and the verifiers `exact` and `json-schema`."""

import json
from importlib.metadata import EntryPoint

import pytest
from datasets import Dataset

import persyn_hf
from persyn_hf.config import Quality, Teacher
from persyn_hf.doctor.grading import unreadable_references
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.scoring import verifiers
from persyn_hf.scoring.quality import persyn_quality
from persyn_hf.scoring.verifiers import find_verifier, verifier_identity


@persyn_hf.verifier
def half(prompt, completion, answer):
    return 0.5


def unmarked(prompt, completion, answer):
    return 1.0


ROW = {"prompt": "p", "completion": "c", "prompt_id": "abc", "teacher": "t1"}
HERE = "tests.scoring.test_verifiers"


@pytest.mark.parametrize("name", [f"{HERE}:unmarked", "cProfile:run", "os:system", "builtins:eval", "json:dumps"])
def test_functions_that_were_not_made_for_it_are_not_called(name):
    with pytest.raises(ConfigError, match=r"not marked as a verifier.*@persyn_hf\.verifier.*trust_verifier: true"):
        find_verifier(name)
    with pytest.raises(ConfigError, match="not marked"):
        persyn_quality(ROW, verifier=name)
    with pytest.raises(ConfigError, match="not marked"):
        persyn_quality(ROW, sources=[{"verifier": name, "range": [0, 1]}])


def test_marked_trusted_and_own_functions_are_called():
    assert persyn_quality(ROW, verifier=f"{HERE}:half") == {"quality": 0.5}
    assert persyn_quality(ROW, verifier=f"{HERE}:unmarked", trust_verifier=True) == {"quality": 1.0}
    assert persyn_quality(ROW, verifier=unmarked) == {"quality": 1.0}
    trusted = {"verifier": f"{HERE}:unmarked", "trust_verifier": True, "range": [0, 2]}
    found = persyn_quality(ROW, sources=[trusted, {"verifier": f"{HERE}:half", "range": [0, 2]}])
    assert found == {"quality": 0.75, "quality_unmarked": 1.0, "quality_half": 0.5}
    assert verifier_identity(f"{HERE}:unmarked")[0] == f"{HERE}:unmarked"


def test_entry_points_of_installed_packages(monkeypatch):
    points = [
        EntryPoint("mine", f"{HERE}:unmarked", "persyn_hf.verifiers"),
        EntryPoint("gone", "no.such:thing", "persyn_hf.verifiers"),
    ]
    monkeypatch.setattr(
        verifiers, "entry_points", lambda group, name=None: [one for one in points if name in (None, one.name)]
    )
    assert find_verifier("mine")("p", "c", None) == 1.0
    assert find_verifier(f"{HERE}:unmarked") is find_verifier("mine")
    with pytest.raises(ConfigError, match=r"no\.such:thing, which cannot be loaded"):
        find_verifier("gone")
    with pytest.raises(ConfigError, match=r"`math`, `exact`, `reasoning-gym`, `json-schema`, the name of an entry"):
        find_verifier("other")


@pytest.mark.parametrize("bad", ["0.5", None, float("nan"), float("-inf"), [1.0, 2.0], 1j])
def test_results_that_are_no_score_name_the_row(bad):
    with pytest.raises(ScoringError, match="prompt abc, teacher t1: the verifier must return a finite number, got"):
        persyn_quality(ROW, verifier=lambda prompt, completion, answer: bad)


def test_results_that_are_scores():
    for good, score in ((True, 1.0), (3, 3.0), (0.25, 0.25)):
        assert persyn_quality(ROW, verifier=lambda *row, good=good: good) == {"quality": score}
    with pytest.raises(
        ScoringError, match=r"abc, teacher t1: the verifier must return a number from 0.0 to 0.4 \(`range`\), got 0.5"
    ):
        persyn_quality(ROW, sources=[{"verifier": f"{HERE}:half", "range": [0, 0.4]}])
    with pytest.raises(ScoringError, match="abc, teacher t1: the verifier raised KeyError: 'x'"):
        persyn_quality(ROW, verifier=lambda *row: {}["x"])


def test_all_references_that_cannot_be_read_are_named_at_once():
    count = 30
    rows = {
        "prompt": ["p"] * count,
        "completion": ["A: 1"] * count,
        "prompt_id": [f"id{row:02}" for row in range(count)],
        "answer": [None if row == 3 else "words only" if row % 6 else "1" for row in range(count)],
    }
    with pytest.raises(ScoringError) as raised:
        persyn_quality(rows, verifier="math")
    lines = str(raised.value).splitlines()
    assert lines[0] == "25 rows cannot be verified." and lines[-1] == "… and 5 more." and len(lines) == 22
    assert lines[1].startswith("prompt id01: The reference answer 'words only' is not a mathematical expression")
    assert lines[3] == "prompt id03: the verifier needs a reference, but this row's is null."


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        (" Paris\n", "Paris", 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("<think>Rome?</think>\nParis", "Paris", 1.0),
        ("<think>Paris</think>\nRome", "Paris", 0.0),
        ("7", 7, 1.0),
    ],
)
def test_exact(completion, answer, score):
    assert find_verifier("exact")("", completion, answer) == score


PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ('{"age": 7}', 1.0),
        ('<think>{"age": "x"}</think>\n\n{"age": 7}', 1.0),
        ('```json\n{"age": 7}\n```', 1.0),
        ('{"age": "7"}', 0.0),
        ('{"age": 7, "name": "Li"}', 0.0),
        ('Here it is: {"age": 7}', 0.0),
        ('{"age": NaN}', 0.0),
        ('{"age": 7', 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize(
    "schema", [PERSON, json.dumps(PERSON), FORM, json.dumps(FORM)], ids=["object", "text", "form", "form text"]
)
def test_json_under_a_schema(completion, score, schema):
    assert find_verifier("json-schema")("", completion, schema) == score


def test_the_schema_may_stand_in_the_form_that_was_asked_for():
    rows = {"prompt": ["p"] * 3, "completion": ['{"age": 1}', "{}", "[]"]}
    forms = {"response_format": [json.dumps(FORM)] * 2 + ['{"type": "json_object"}']}
    assert persyn_quality(rows | forms, verifier="json-schema") == {"quality": [1.0, 0.0, 0.0]}
    assert persyn_quality(rows | forms | {"answer": [None, "{}", "{}"]}, verifier="json-schema") == {
        "quality": [1.0, 1.0, 1.0]
    }
    arrow = {"answer": [{**PERSON, "items": None, "enum": None}] * 3}
    assert persyn_quality(rows | arrow, verifier="json-schema") == {"quality": [1.0, 0.0, 0.0]}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("{", "must be a JSON schema"),
        ("[1]", "must be a JSON schema, an object"),
        ('{"type": "intger"}', "not a valid JSON schema"),
        ({"type": "json_schema"}, "must be a JSON schema, an object"),
        ({"$ref": "https://example.com/other.json"}, "cannot be applied"),
        (None, "needs a reference"),
    ],
)
def test_references_that_are_no_schema(schema, said):
    with pytest.raises(ScoringError, match=said):
        find_verifier("json-schema")("", "1", schema)


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": FORM},
        {"structured_outputs": {"json": PERSON}},
        {"guided_json": PERSON, "top_k": 5},
        {"grammar": {"type": "json", "value": PERSON}},
    ],
    ids=["response_format", "structured_outputs", "guided_json", "grammar"],
)
def test_a_schema_that_a_teacher_is_asked_for_verifies_where_the_row_has_none(body):
    good, bad = '{"age": 36}', '{"age": "x"}'
    rows = {
        "prompt": ["p"] * 4,
        "completion": [good, bad, bad, bad],
        "answer": [None, None, {"type": "object"}, None],
        "response_format": [None, None, None, '{"type": "json_object"}'],
        "extra_body": [json.dumps(body)] * 4,
    }
    assert persyn_quality(rows, verifier="json-schema")["quality"] == [1.0, 0.0, 1.0, 1.0]
    with pytest.raises(ScoringError, match="`extra_body` must be JSON"):
        persyn_quality(ROW | {"answer": None, "extra_body": "{"}, verifier="json-schema")


def test_references_that_only_some_teachers_replace_are_missed_before_anything_is_asked():
    prompts = Dataset.from_dict({"prompt": ["a", "b"], "answer": [None, json.dumps(PERSON)]})
    quality = Quality(verifier="json-schema")
    common = {"model": "m", "endpoint": "http://h"}
    told = Teacher(name="x", sampling={"extra_body": {"response_format": FORM}}, **common)
    assert unreadable_references(quality, prompts, [told, told]) == {}
    assert list(unreadable_references(quality, prompts, [told, Teacher(name="y", **common)])) == [0]
    broken = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "no such type"}}}
    wrong = Teacher(name="y", sampling={"extra_body": {"response_format": broken}}, **common)
    assert "not a valid JSON schema" in unreadable_references(quality, prompts, [told, wrong])[0]
