import pytest
import yaml

from persyn_hf.cli import main
from persyn_hf.config import RunConfig
from persyn_hf.demo.settings import demo_settings
from persyn_hf.errors import ConfigError


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi", "answer": "[]"}\n')
    made = demo_settings(tmp_path, tmp_path / "run")
    return made


def _change(settings, path, value):
    *parents, last = path
    section = settings
    for part in parents:
        section = section[part]
    section[last] = value


BAD = [
    (["reward", "alpha"], 1.3, "`reward.alpha`: Input should be less than or equal to 1, got 1.3"),
    (["reward", "alhpa"], 0.4, "`reward.alhpa`: unknown key; this section has alpha, learnability_metric"),
    (["teachers", 1, "name"], "terse", "`teachers`: teacher names must differ; named more than once: terse"),
    (["teachers", 0, "backend"], "cloud", "`teachers[0].backend`: Input should be 'endpoint' or 'local'"),
    (
        ["teachers", 0, "api_key_env"],
        "NO_SUCH_VARIABLE",
        "`teachers[0].api_key_env`: the environment variable NO_SUCH_",
    ),
    (["teachers", 0, "endpoint"], "http://127.0.0.1:1", "`endpoint` must be left out with `backend: local`"),
    (["teachers", 0, "sampling", "top_p"], 0, "`teachers[0].sampling.top_p`: Input should be greater than 0, got 0"),
    (["prompts", "column"], "question", "prompts.column: there is no column `question`"),
    (["prompts", "source"], "nowhere.jsonl", "prompts.source: there is no file nowhere.jsonl"),
    (["probe", "size"], 5, "probe.size: must be at most the number of prompts, 1, got 5"),
    (["quality"], {}, "`quality`: give exactly one of `verifier`, `reward_model`, `judge` and `sources`"),
    (["quality", "sources"], [{"verifier": "exact", "wight": 2}], "`quality.sources[0].wight`: unknown key; this "),
    (["student", "endpoint"], {"url": "x"}, "`student.endpoint.url`: String should match pattern"),
    (["router", "pretrained"], "x/y", "`router`: give exactly one of `backbone`"),
    (["publish", "router_repo_id"], "x/y", "`publish`: `router_repo_id` needs `dataset_repo_id`"),
    (["tachers"], [], "`tachers`: unknown key; this section has accept, allocation, compare"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[".".join(map(str, path)) for path, _, _ in BAD])
def test_the_command_names_file_and_key_and_exits_with_2(
    settings, tmp_path, monkeypatch, capsys, path, value, message
):
    _change(settings, path, value)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["persyn-hf", "run", str(file)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert "run.yaml: " in said or "run.yaml has" in said  # one problem, or several


def test_every_problem_is_reported_at_once(settings):
    settings["reward"]["alpha"] = -1
    settings["seed"] = -1
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_dict(settings, source="f.yaml")
    assert len(str(raised.value).splitlines()) == 2


def test_a_text_in_a_wrong_place_is_not_repeated(settings):
    settings["teachers"][0]["api_key"] = "hf_secret_value"
    with pytest.raises(ConfigError) as raised:
        RunConfig.from_dict(settings)
    assert "hf_secret_value" not in str(raised.value)


def test_not_yaml_and_not_there(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        RunConfig.from_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        RunConfig.from_yaml(tmp_path / "b.yaml")


def test_the_quickstart_is_the_demo(monkeypatch):
    from pathlib import Path

    monkeypatch.setattr("persyn_hf.demo.settings._fastest_dtype", lambda: "bfloat16")
    root = Path(__file__).parents[2]
    assert RunConfig.from_yaml(root / "examples/quickstart.yaml") == RunConfig.from_dict(
        demo_settings(".models", "runs/quickstart")
    )


@pytest.mark.parametrize(("capability", "dtype"), [("AVX512", "bfloat16"), ("AVX2", "float32")])
def test_the_demo_multiplies_what_the_processor_can(tmp_path, monkeypatch, capability, dtype):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    made = demo_settings(tmp_path, tmp_path / "run")
    assert {made["student"]["dtype"], *[teacher["dtype"] for teacher in made["teachers"]]} == {dtype}


def test_a_teacher_that_is_no_local_one_needs_an_endpoint(settings):
    settings["teachers"][0].pop("backend")
    with pytest.raises(ConfigError, match="`endpoint` is required"):
        RunConfig.from_dict(settings)


def test_the_objectives_are_those_of_the_router():
    from typing import get_args

    from persyn_hf.config import Objective
    from persyn_hf.routing.heads import OBJECTIVES

    assert get_args(Objective) == OBJECTIVES
