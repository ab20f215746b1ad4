"""Headers and query parameters of every request: what may stand there, and that no key does."""

import pytest
from pydantic import ValidationError

from persyn_hf.config import Judge, StudentEndpoint, Teacher
from persyn_hf.config.connection import variables_in

PASTED = "sk-ant-aB3dEf6hIj9lMn2pQr"


def teacher(**settings):
    return Teacher.model_validate({"name": "t", "model": "m", "endpoint": "http://host", **settings})


def refused(**settings):
    with pytest.raises(ValidationError) as caught:
        teacher(**settings)
    return str(caught.value)


def test_a_value_may_name_a_variable_in_two_ways():
    made = teacher(extra_headers={"x-api-key": "${MY_KEY}", "x-other": {"env": "OTHER"}, "x-title": "my app"})
    assert made.extra_headers == {"x-api-key": "${MY_KEY}", "x-other": "${OTHER}", "x-title": "my app"}
    assert list(variables_in(made.extra_headers)) == [("x-api-key", "MY_KEY"), ("x-other", "OTHER")]
    assert teacher(extra_query={"api-version": "2024-10-21"}).extra_query == {"api-version": "2024-10-21"}


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Content-Type", "accept-encoding", "user-agent", "connection", "transfer-encoding"],
)
def test_headers_that_are_set_anyway_are_refused(name):
    assert f"`{name}` is set by persyn_hf" in refused(extra_headers={name: "x"})


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"Authorization": "Bearer ${K}"}, "`Authorization` is set from `api_key_env`"),
        ({"x-api-key": "abc"}, "`x-api-key`: the value may be a secret; put it into an environment variable"),
        ({"x-title": PASTED}, "`x-title`: the value looks like a secret"),
        ({"x-a": "${sk-1234}"}, "`${…}` must hold the name of an environment variable"),
        ({"x-a": "$NAME"}, "write an environment variable as `${NAME}`"),
        ({"x-a": "two\r\nlines"}, "one line of ASCII"),
        ({"x a": "y"}, "not a valid header name"),
        ({"X-A": "1", "x-a": "2"}, "is given twice"),
    ],
)
def test_what_is_no_header_is_said_without_its_value(headers, said):
    words = refused(extra_headers=headers)
    assert said in words
    assert PASTED not in words and "sk-1234" not in words


def test_a_key_in_the_query_is_refused_unless_it_is_a_variable_s():
    assert "may be a secret" in refused(extra_query={"api_key": "abc"})
    assert teacher(extra_query={"key": "${GEMINI_KEY}"}).extra_query == {"key": "${GEMINI_KEY}"}
    assert "empty name" in refused(extra_query={"": "x"})


def test_the_header_of_the_key_is_set_once():
    assert teacher(api_key_header="api-key").api_key_header == "api-key"
    assert "both set `api-key`" in refused(api_key_header="api-key", extra_headers={"Api-Key": "${K}"})
    assert "api_key_header" in refused(api_key_header="Host")


def test_judges_and_students_behind_servers_have_the_same_settings():
    same = {"extra_headers": {"x-org": "${ORG}"}, "extra_query": {"api-version": "1"}, "api_key_header": "api-key"}
    for section, more in ((Judge, {"model": "j"}), (StudentEndpoint, {})):
        made = section.model_validate({"url": "http://host", **same, **more})
        assert made.model_dump(include=set(same)) == same
        assert set(same) <= section.unkeyed
