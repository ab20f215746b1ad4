"""What a teacher's settings may be."""

import pytest
import yaml
from pydantic import ValidationError

from persyn_hf.config import Teacher


def teacher(**settings):
    return Teacher.model_validate({"name": "t", "model": "m", **settings})


def test_one_endpoint_or_several():
    assert teacher(endpoint="http://a:1/").endpoints == ("http://a:1",)
    assert teacher(endpoint=["http://a:1/v1/", "https://b"]).endpoints == ("http://a:1/v1", "https://b")
    assert teacher(backend="local").endpoints == ()


def test_what_is_left_out():
    made = teacher(endpoint="http://a:1")
    assert (made.api, made.reasoning, made.on_teacher_down, made.preflight) == ("chat", "separate", "error", True)
    assert (made.max_concurrency, made.hedge_after, made.max_response_bytes) == (None, None, 2**24)


def test_yaml_and_json_give_the_same_teacher_back():
    made = teacher(endpoint=["http://a:1", "http://b:1"], reasoning="keep", hedge_after=2.5)
    assert Teacher.model_validate(yaml.safe_load(yaml.safe_dump(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "`endpoint` is required"),
        ({"endpoint": []}, "`endpoint` is required"),
        ({"endpoint": ["http://a:1", "http://a:1/"]}, "more than once"),
        ({"endpoint": "a:1"}, "starts with http"),
        ({"endpoint": ["http://a:1", "http://"]}, "starts with http"),
        ({"endpoint": "http://a:1", "backend": "local"}, "must be left out"),
        ({"endpoint": "http://a:1", "api": "grpc"}, "'chat' or 'tgi'"),
        ({"endpoint": "http://a:1", "reasoning": "hide"}, "'separate', 'keep' or 'drop'"),
        ({"endpoint": "http://a:1", "on_teacher_down": "panic"}, "'error', 'wait' or 'reroute'"),
        ({"endpoint": "http://a:1", "max_concurrency": 0}, "greater than or equal to 1"),
        ({"endpoint": "http://a:1", "hedge_after": 0}, "greater than 0"),
        ({"endpoint": "http://a:1", "max_response_bytes": 10}, "greater than or equal to 1024"),
        ({"endpoint": "http://a:1", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(ValidationError) as caught:
        teacher(**settings)
    assert words in str(caught.value)
