import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from persyn_hf import columns
from persyn_hf.errors import DataError, DuplicatePromptError, MissingColumnError


def test_prompt_id_is_the_sha256_of_the_canonical_messages():
    # sha256('[{"content":"Hi","role":"user"}]')[:16], computed with sha256sum
    assert columns.prompt_id("Hi") == "557f6d9586f57ae7"
    assert columns.prompt_id("Hi") == columns.prompt_id([{"role": "user", "content": "Hi"}])
    assert columns.prompt_id("Hi") != columns.prompt_id("Hi ")


def test_prompt_id_survives_arrow():
    prompts = [[{"role": "user", "content": "a", "name": "bo"}], [{"role": "user", "content": "b"}]]
    back = Dataset.from_dict({"prompt": prompts})["prompt"]
    assert [columns.prompt_id(p) for p in back] == [columns.prompt_id(p) for p in prompts]


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_has_a_stable_id_of_16_hex_digits(text):
    identity = columns.prompt_id(text)
    assert identity == columns.prompt_id(text)
    assert len(identity) == 16 and set(identity) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "bad", ["", " \n", [], [{"role": "user", "content": " "}], [{"content": "x"}], 7, None, ["x"]]
)
def test_bad_prompts_are_refused(bad):
    with pytest.raises(DataError):
        columns.canonical_messages(bad)


def test_prompt_text_shows_roles_only_where_there_is_more_than_one_message():
    assert columns.prompt_text("Hi") == "Hi"
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert columns.prompt_text(talk) == "system: Be brief.\n\nuser: Hi"


def test_missing_columns_are_named_with_those_that_are_there():
    with pytest.raises(MissingColumnError, match="score needs the column `teacher`, but the table has prompt, x"):
        columns.require_columns(["prompt", "x"], ["prompt", "teacher"], "score")


def test_duplicates_are_counted_and_the_first_is_named():
    with pytest.raises(DuplicatePromptError, match="2 rows repeat an earlier prompt, first b"):
        columns.require_unique(["a", "b", "b", "b"], "prompts")


def test_a_row_without_numbers_has_zeros():
    rows = {"prompt_id": ["p", "p", "q"], "teacher": ["a", "b", "a"]}
    wanted = [("p", "a", 0, 0, 0), ("p", "b", 0, 0, 0), ("q", "a", 0, 0, 0)]
    assert columns.row_keys(rows) == columns.row_keys(Dataset.from_dict(rows)) == wanted
    nulls = rows | {"turn": [None] * 3, "sample": [0, 0, None], "attempt": [0.0] * 3}
    assert columns.row_keys(nulls) == columns.row_keys(Dataset.from_dict(nulls)) == wanted
    assert columns.ROW_KEY == ("prompt_id", "teacher", "turn", "sample", "attempt")
    assert columns.row_numbers({}) == columns.row_numbers(Dataset.from_dict({"turn": []})) == []


def test_numbers_keep_their_places_in_the_key():
    rows = {
        "prompt_id": ["p"] * 3,
        "teacher": ["a"] * 3,
        "attempt": [3, 0, 0],
        "sample": [2.0, 0, 7],
        "turn": [1, 1, 0],
    }
    wanted = [("p", "a", 1, 2, 3), ("p", "a", 1, 0, 0), ("p", "a", 0, 7, 0)]
    assert columns.row_keys(rows) == columns.row_keys(Dataset.from_dict(rows)) == wanted
    assert all(type(number) is int for key in columns.row_keys(rows) for number in key[2:])
    assert [columns.numbered(key[2:]) for key in wanted] == [", turn 1, sample 2, attempt 3", ", turn 1", ", sample 7"]


@pytest.mark.parametrize("bad", [-1, 1.5, True, "1", float("nan"), float("inf"), 2**63, [1]])
def test_what_is_no_number_of_a_row_is_refused(bad):
    with pytest.raises(DataError, match=r"Row 1: `sample` must be a whole number of at least 0, got .*rename the col"):
        columns.row_numbers({"sample": [0, bad]})
