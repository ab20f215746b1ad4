"""Whatever a server says, it is an answer or a named error, and never anything else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persyn_hf.columns import FINISH_REASONS
from persyn_hf.config import Sampling, Teacher
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.faults import body_error, retry_after, status_error
from persyn_hf.errors import ConfigError, TeacherError
from persyn_hf.generation.answer import presented, split_reasoning
from persyn_hf.generation.chat import ChatClient
from persyn_hf.generation.client import Request
from persyn_hf.generation.describe import _from_models, _limits
from persyn_hf.ledger.completion import Completion

KEY = "sk-canary-0123456789"
ENDPOINT = Endpoint("http://host", "org/model", KEY, "MY_KEY")
CLIENT = ChatClient(Teacher(name="t", model="org/model", endpoint="http://host"))
REQUEST = Request("p", ({"role": "user", "content": "Hi"},), Sampling(max_tokens=9, stop=("END",)), 7)

names = st.sampled_from(
    [
        "choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "completion_tokens", "error",
        "error_type", "detail", "type", "reasoning_content", "reasoning", "data", "id", "root", "aliases",
        "max_model_len", "model_id", "max_total_tokens",
    ]
)  # fmt: skip
text = st.text(max_size=20) | st.sampled_from(["stop", "length", "abort", "<think>a</think>b", "END", KEY])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | text, inner, max_size=4),
    max_leaves=12,
)
answers = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries({"message": st.dictionaries(names, values, max_size=3), "finish_reason": values}),
            max_size=2,
        ),
        "usage": values,
    }
)
thorough = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(st.binary(max_size=200) | (values | answers).map(lambda value: json.dumps(value).encode()))
def test_a_body_is_an_answer_or_a_named_error(content):
    try:
        completion = CLIENT._read(content, REQUEST)
    except TeacherError as error:
        assert str(error)
    else:
        assert completion.text.strip()
        known = completion.finish_reason in FINISH_REASONS
        assert known or (completion.finish_reason.isprintable() and KEY not in completion.finish_reason)
        assert completion.reasoning is None or completion.reasoning.strip()
        for tokens in (completion.prompt_tokens, completion.completion_tokens):
            assert tokens is None or 0 < tokens < 2**53


@thorough
@given(
    st.integers(300, 599),
    text | values.map(json.dumps),
    st.dictionaries(st.sampled_from(["retry-after", "date", "location"]), text),
)
def test_an_error_is_a_named_error_without_the_key(status, body, headers):
    for error in (status_error(ENDPOINT, status, body, headers), body_error(ENDPOINT, f"data: {body}")):
        assert isinstance(error, TeacherError)
        assert KEY not in str(error)
    wait = retry_after(headers)
    assert wait is None or wait >= 0


@thorough
@given(values)
def test_a_list_of_models_is_limits_or_a_configuration_error(listed):
    try:
        limits = _from_models(ENDPOINT, listed)
    except ConfigError as error:
        assert KEY not in str(error)
    else:
        assert limits.max_total_tokens is None or limits.max_total_tokens >= 0
    if isinstance(listed, dict):
        _limits(listed)


@thorough
@given(st.text(st.sampled_from("ab \n"), max_size=10), st.text(st.sampled_from("ab \n"), max_size=10))
def test_reasoning_kept_and_read_again_is_the_same(thoughts, answer):
    whole = split_reasoning(f"<think>{thoughts}</think>{answer}")
    assert whole == split_reasoning(answer.lstrip(), thoughts)
    if whole[0].strip() and whole[1]:
        kept, none = presented(Completion(whole[0], "stop", 1, 1, whole[1]), "keep")
        assert none is None
        assert split_reasoning(kept) == whole


@pytest.mark.parametrize("depth", [10, 100_000])
def test_deep_json_does_no_harm(depth):
    with pytest.raises(TeacherError):
        CLIENT._read(b"[" * depth, REQUEST)
    assert isinstance(status_error(ENDPOINT, 500, "[" * depth, {}), TeacherError)
