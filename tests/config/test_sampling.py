"""What is sent, as the configuration says it: parameters, more keys of the body, dialects."""

import datetime

import pytest
from pydantic import ValidationError

from persyn_hf.config import Sampling, Teacher
from persyn_hf.config.dialects import DIALECTS
from persyn_hf.config.students import Decoding

BASE = {"name": "t", "model": "m", "endpoint": "http://host"}
LOCAL = {"name": "t", "model": "m", "backend": "local"}


def teacher(**settings):
    return Teacher.model_validate(BASE | settings)


def refused(data, section=Teacher):
    with pytest.raises(ValidationError) as caught:
        section.model_validate(data)
    return str(caught.value)


def test_options_that_are_not_set_leave_the_parameters_as_they_were():
    old = '{"max_tokens":1024,"stop":[],"temperature":1.0,"top_p":1.0}'
    assert Sampling().canonical == old
    assert Sampling(seed="per-row", extra_body={}, max_tokens_field="max_tokens").canonical == old
    assert Sampling(max_tokens=9, stop=("x",)).values == {
        "temperature": 1.0, "top_p": 1.0, "max_tokens": 9, "stop": ["x"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"temperature": None}, {"temperature": None, "top_p": 1.0}),
        ({"top_p": None, "seed": None}, {"temperature": 1.0, "top_p": None, "seed": None}),
        ({"seed": 0}, {"temperature": 1.0, "top_p": 1.0, "seed": 0}),
        ({"extra_body": {"top_k": 20}}, {"temperature": 1.0, "top_p": 1.0, "extra_body": {"top_k": 20}}),
        (
            {"max_tokens_field": "max_completion_tokens", "seed_field": "random_seed"},
            {
                "temperature": 1.0,
                "top_p": 1.0,
                "max_tokens_field": "max_completion_tokens",
                "seed_field": "random_seed",
            },
        ),
    ],
)
def test_what_is_set_is_a_part_of_the_parameters(settings, values):
    made = Sampling(**settings)
    assert made.values == values | {"max_tokens": 1024, "stop": []}
    assert Sampling.model_validate(made.model_dump()) == made
    assert hash(Sampling(**settings)) == hash(made)


def test_numbers_of_unlike_kinds_are_other_parameters():
    assert len({Sampling(extra_body={"x": value}).canonical for value in (1, 1.0, True, "1")}) == 4


@pytest.mark.parametrize("seed", [True, 1.5, "7", "random", -1, 2**53])
def test_a_seed_is_per_row_null_or_a_whole_number(seed):
    assert "seed" in refused({"seed": seed}, Sampling)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"top_k": float("nan")}, "`extra_body.top_k` is nan, which is not a JSON number"),
        ({"a": [{"b": float("-inf")}]}, "`extra_body.a[0].b` is -inf"),
        ({"a": {2: "x"}}, "`extra_body.a` has the key 2, but JSON keys are strings"),
        ({"day": datetime.date(2026, 1, 2)}, "`extra_body.day` is a date, which is not a JSON type"),
        ({"model": "x"}, "`extra_body.model` is set by persyn_hf; use the teacher's `model`"),
        ({"messages": []}, "`extra_body.messages` is set by persyn_hf; use the prompt"),
        ({"stream": True}, "`extra_body.stream` is set by persyn_hf; use `stream`"),
        ({"n": 3}, "`extra_body.n` is set by persyn_hf; use the column `sample`"),
        ({"temperature": 1}, "use `sampling.temperature`"),
        ({"max_completion_tokens": 5}, "`sampling.max_tokens_field: max_completion_tokens`"),
        ({"seed": 1, "stop": []}, "`extra_body.stop` is set by persyn_hf; use `sampling.stop`"),
    ],
)
def test_what_cannot_be_sent_is_named_by_its_path(extra, said):
    assert said in refused({"extra_body": extra}, Sampling)


def test_keys_of_the_body_have_one_name_each():
    assert "another key of the request" in refused({"max_tokens_field": "messages"}, Sampling)
    assert "another key of the request" in refused({"seed_field": "k", "extra_body": {"k": 1}}, Sampling)
    assert "are both `seed`" in refused({"max_tokens_field": "seed"}, Sampling)
    assert "max_tokens_field" in refused({"max_tokens_field": "max tokens"}, Sampling)


def test_a_dialect_sets_defaults_and_what_is_explicit_wins():
    made = teacher(dialect="openai-reasoning", sampling={"max_tokens": 50, "seed": 3})
    assert made.sampling == Sampling(
        temperature=None, top_p=None, max_tokens=50, seed=3, max_tokens_field="max_completion_tokens"
    )
    assert teacher(dialect="azure").api_key_header == "api-key"
    assert teacher(dialect="azure", api_key_header="x-key").api_key_header == "x-key"
    assert teacher(dialect="mistral").sampling.seed_field == "random_seed"
    assert not teacher(dialect="mistral").stream_usage and teacher(dialect="mistral", stream_usage=True).stream_usage
    assert teacher(dialect="gemini").sampling.seed is None
    assert teacher(dialect="anthropic", sampling={"top_p": 0.9}).sampling.top_p == 0.9
    assert teacher(dialect="anthropic").sampling == Sampling(top_p=None, seed=None)
    assert teacher().sampling == Sampling()


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_a_dialect_survives_being_written_down(name):
    made = teacher(dialect=name)
    assert Teacher.model_validate(made.model_dump()) == made
    assert Teacher.model_validate(BASE | {"dialect": name, "sampling": Sampling()}) == made


@pytest.mark.parametrize(
    ("dialect", "sampling", "said"),
    [
        ("openai-reasoning", {"temperature": 0.7}, "`sampling.temperature` is set, but `dialect: openai-reasoning`"),
        (
            "azure-reasoning",
            {"stop": ["x"]},
            "`sampling.stop` is set, but `dialect: azure-reasoning` does not take it",
        ),
        ("openai", {"stop": list("abcde")}, "`sampling.stop` has 5 strings, but `dialect: openai` takes at most 4"),
        ("gemini", {"stop": list("abcdef")}, "takes at most 5"),
        ("anthropic", {"temperature": 1.5}, "`sampling.temperature` is 1.5, but `dialect: anthropic` takes at most 1"),
    ],
)
def test_a_setting_that_contradicts_its_dialect_is_told_at_once(dialect, sampling, said):
    assert said in refused(BASE | {"dialect": dialect, "sampling": sampling})
    assert said in refused(BASE | {"dialect": dialect, "sampling": Sampling(**sampling)})


def test_an_unknown_dialect_is_named_with_those_there_are():
    assert "'openai-reasoning'" in refused(BASE | {"dialect": "open-ai"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sampling": {"extra_body": {"reasoning_effort": "low"}}}, "`backend: local` supports chat_template_kwargs"),
        ({"sampling": {"temperature": None}}, "`sampling.temperature: null` uses the server"),
        ({"sampling": {"extra_body": {"top_k": 1.5}}}, "`sampling.extra_body.top_k` must be an integer"),
        ({"sampling": {"extra_body": {"min_p": 2}}}, "`sampling.extra_body.min_p` must be a number between 0 and 1"),
        ({"sampling": {"extra_body": {"chat_template_kwargs": []}}}, "must be a mapping"),
        ({"stream": True}, "`stream` is a setting of endpoints"),
        ({"extra_headers": {"x-title": "mine"}}, "`extra_headers` is a setting of endpoints"),
    ],
)
def test_what_generation_in_this_process_cannot_honour_is_refused(settings, said):
    assert said in refused(LOCAL | settings)


def test_what_generation_in_this_process_honours_is_taken():
    extra = {"top_k": 20, "min_p": 0, "repetition_penalty": 1.05, "chat_template_kwargs": {"enable_thinking": False}}
    assert Teacher.model_validate(LOCAL | {"sampling": {"extra_body": extra}}).sampling.extra_body == extra
    assert "`extra_body.typical_p`" in refused({"name": "d", "extra_body": {"typical_p": 1}}, Decoding)


def test_tgi_s_own_protocol_has_names_of_its_own():
    assert teacher(api="tgi", sampling={"extra_body": {"typical_p": 0.9, "grammar": {"type": "json", "value": {}}}})
    assert "`sampling.extra_body.min_p`: `api: tgi` supports" in refused(
        BASE | {"api": "tgi", "sampling": {"extra_body": {"min_p": 0.1}}}
    )
    assert "`stream` is for `api: chat`" in refused(BASE | {"api": "tgi", "stream": True})
    assert "is for `api: chat`" in refused(BASE | {"api": "tgi", "dialect": "mistral"})


@pytest.mark.parametrize("key", ["api_key", "Authorization", "access_token", "client_secret"])
def test_a_key_in_extra_body_is_refused_and_not_repeated(key):
    said = refused(BASE | {"sampling": {"extra_body": {key: "sk-not-to-be-shown"}}})
    assert f"`extra_body.{key}` is a key by its name" in said
    assert "not-to-be-shown" not in said
    assert teacher(sampling={"extra_body": {"prompt_cache_key": "a", "tokenizer_mode": "auto", "max_tokens_x": 1}})
