"""What a teacher's settings may be."""

import re
from pathlib import Path

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
        ({"endpoint": "http://a:1", "api_key_env": "sk-proj-1"}, "the name of an environment variable"),
    ],
)
def test_what_is_refused(settings, words):
    with pytest.raises(ValidationError) as caught:
        teacher(**settings)
    assert words in str(caught.value)


def test_the_documentation_is_true(monkeypatch):
    monkeypatch.setenv("BIG_KEY", "sk-x")
    text = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
    example = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert Teacher.model_validate(example["teachers"][0]).endpoints == ("https://host/v1",)
    settings = text.split("## Settings")[1].split("\n## ")[0]
    named = dict(re.findall(r"^\| `(\w+)` \| (\S+(?: MiB)?) \|", settings, re.MULTILINE))
    defaults = {name: field.default for name, field in Teacher.model_fields.items()}
    meant = {"none": None, "`true`": True, "16 MiB": 2**24, "120": 120.0}
    assert len(named) == 10
    assert {name: meant.get(shown, shown.strip("`")) for name, shown in named.items()} == {
        name: defaults[name] for name in named
    }
