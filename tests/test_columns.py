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
    with pytest.raises(MissingColumnError, match="score needs the column `teacher`; the table has prompt, x"):
        columns.require_columns(["prompt", "x"], ["prompt", "teacher"], "score")


def test_duplicates_are_counted_and_the_first_is_named():
    with pytest.raises(DuplicatePromptError, match="2 rows repeat an earlier prompt, first b"):
        columns.require_unique(["a", "b", "b", "b"], "prompts")
