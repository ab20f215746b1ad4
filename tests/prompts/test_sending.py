"""A prompt as a request carries it: one system message, and the form of the answer."""

import pytest

from persyn_hf.errors import DataError
from persyn_hf.prompts.sending import canonical_format, joined_system

USER = {"role": "user", "content": "Hello"}


def system(content, role="system"):
    return {"role": role, "content": content}


def test_the_first_system_messages_become_one_the_first_text_first():
    assert joined_system([system("Be brief."), system("You are a poet."), USER]) == [
        system("Be brief.\n\nYou are a poet."), USER,
    ]  # fmt: skip
    assert joined_system([system("A"), system("B", "developer"), USER])[0] == system("A\n\nB", "developer")
    assert joined_system([system("A"), system(""), system("C"), USER])[0]["content"] == "A\n\nC"


def test_parts_stay_parts():
    parts = [{"type": "text", "text": "B"}]
    assert joined_system([system("A"), system(parts), USER])[0]["content"] == [{"type": "text", "text": "A"}, *parts]


@pytest.mark.parametrize("messages", [[USER], [system("A"), USER], [system("A"), USER, system("B"), USER], []])
def test_other_conversations_stay_as_they_are(messages):
    before = [dict(message) for message in messages]
    assert joined_system(messages) == before == messages


def test_a_form_is_json_or_an_object_without_what_arrow_added():
    assert canonical_format(None) is canonical_format("") is canonical_format({"type": None}) is None
    assert canonical_format("null") is None
    json_text = '{"type": "json_schema", "json_schema": {"schema": {"enum": [null, 1], "default": null}}}'
    assert canonical_format(json_text)["json_schema"]["schema"] == {"enum": [None, 1], "default": None}
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": None, "schema": {"properties": {"b": None}}}}
    assert canonical_format(form) == {
        "type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": {}}},
    }  # fmt: skip


@pytest.mark.parametrize("value", ["{", "[1]", '"json"', '{"schema": {}}', {"schema": {}}, 3])
def test_what_is_no_form_is_an_error(value):
    with pytest.raises(DataError, match="`response_format`"):
        canonical_format(value)
