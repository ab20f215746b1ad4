"""Where keys are looked up, when, and what is never said of them."""

import traceback

import pytest
from pydantic import ValidationError

from persyn_hf.config import Judge, Quality, QualitySource, RunConfig, Service, Student, Teacher
from persyn_hf.config.settings import names_a_variable
from persyn_hf.demo.settings import demo_settings
from persyn_hf.endpoints.endpoint import Endpoint
from persyn_hf.endpoints.keys import find_key, require_keys
from persyn_hf.errors import ConfigError

KEY = "sk-canary-0123456789"
#: Keys as they are issued: pasted in place of a variable's name they are never repeated.
PASTED = [KEY, "hf_aB3dEf6hIj9lMn2pQr5tUv8xYz", "gsk_0123456789abcdefghij", "0123456789abcdef", "key with space"]


@pytest.mark.parametrize("name", ["NO_SUCH_KEY", "no_such_key", "NoSuchKey", "MY_AZURE_EASTUS2_KEY", "K2"])
def test_a_variable_that_is_not_set_is_named_with_what_needs_it(name):
    teacher = Teacher(name="t", model="m", endpoint="http://h", api_key_env=name)  # reads no environment
    with pytest.raises(ConfigError, match=f"^teacher `t`: the environment variable {name} is not set"):
        Endpoint.of(teacher)
    with pytest.raises(ConfigError, match=f"^http://h: the environment variable {name} is not set"):
        Endpoint.of(Service(url="http://h", api_key_env=name))


@pytest.mark.parametrize("pasted", PASTED)
def test_a_pasted_key_is_refused_and_not_repeated(pasted):
    assert not names_a_variable(pasted)
    for make in (
        lambda: Teacher(name="t", model="m", endpoint="http://h", api_key_env=pasted),
        lambda: Service(url="http://h", api_key_env=pasted),
        lambda: find_key(pasted, False, "this"),
    ):
        with pytest.raises(
            (ValidationError, ConfigError), match="must be the name of an environment variable"
        ) as caught:
            make()
        assert pasted not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_line_break_that_a_file_left_behind_a_key_is_taken_off(monkeypatch, end):
    monkeypatch.setenv("MY_KEY", KEY + end)
    assert find_key("MY_KEY", False, "this") == KEY


@pytest.mark.parametrize("value", ["sk-a b", "sk-\na", "\nsk-a", " sk-a", "sk-a ", "sk-a\t", "sk-é", "sk-\x1ba"])
def test_what_cannot_be_a_key_is_refused_without_repeating_it(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match=r"^this: the environment variable MY_KEY contains white space") as caught:
        find_key("MY_KEY", False, "this")
    said = "".join(traceback.format_exception(caught.value))
    assert value not in said and "sk-" not in said
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_an_empty_variable_is_not_set(monkeypatch):
    for value in ("", "\r\n"):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(ConfigError, match="MY_KEY is not set"):
            find_key("MY_KEY", False, "this")


def test_the_hub_token_is_the_key_where_that_is_wanted(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    endpoint = Endpoint.of(Service(url="http://h/", use_hub_token=True), model="m", setting="url")
    assert (endpoint.address, endpoint.model, endpoint.key, endpoint.key_name) == (
        "http://h",
        "m",
        "hf_x",
        "the Hugging Face token",
    )
    assert "hf_x" not in repr(endpoint)
    monkeypatch.setattr("persyn_hf.endpoints.keys.get_token", lambda: None)
    with pytest.raises(ConfigError, match="there is no token; run `hf auth login`"):
        Endpoint.of(Service(url="http://h", use_hub_token=True))


def test_every_key_that_is_missing_is_named_with_its_path(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    teachers = tuple(
        Teacher(name=name, model="m", endpoint="http://h", api_key_env=key)
        for name, key in (("a", "MY_KEY"), ("b", "NO_KEY_B"), ("c", None))
    )
    judge = Judge(url="http://h", model="m", api_key_env="NO_KEY_J")
    quality = Quality(sources=(QualitySource(verifier="math"), QualitySource(judge=judge)), normalize="minmax")
    student = Student(model="m", endpoint={"url": "http://h", "api_key_env": "NO_KEY_S"})
    with pytest.raises(ConfigError) as caught:
        require_keys([("teachers", teachers), ("quality", quality), ("student", student), ("none", None)], "f.yaml")
    assert str(caught.value).splitlines() == [
        f"f.yaml: `{path}.api_key_env`: the environment variable {name} is not set; export it before the run."
        for path, name in (
            ("teachers[1]", "NO_KEY_B"),
            ("quality.sources[1].judge", "NO_KEY_J"),
            ("student.endpoint", "NO_KEY_S"),
        )
    ]


def test_a_configuration_is_read_without_its_keys_and_a_run_stops_before_it_begins(tmp_path):
    from persyn_hf.run.pipeline import run

    settings = demo_settings(tmp_path, tmp_path / "run")
    settings["quality"] = {"judge": {"url": "http://127.0.0.1:9", "model": "m", "api_key_env": "NO_SUCH_KEY"}}
    config = RunConfig.from_dict(settings)
    with pytest.raises(ConfigError, match=r"`quality.judge.api_key_env`: .* NO_SUCH_KEY is not set"):
        run(config, source="f.yaml")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"prompts\.source"):  # a probe alone asks no judge
        run(config, until="probe")
