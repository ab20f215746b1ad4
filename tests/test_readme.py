"""What the README shows works as it is printed."""

import re
from pathlib import Path

import yaml

from persyn_hf.config import RunConfig
from tests.publishing.routers import TinyRouter

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_map_function_and_the_pipeline_run_as_printed(tmp_path):
    TinyRouter().save_pretrained(tmp_path / "router")
    for block, name in zip(blocks("python")[:2], ("routed", None), strict=True):
        assert '"org/router"' in block
        names = {}
        exec(block.replace("org/router", str(tmp_path / "router")), names)
        if name is not None:
            assert names[name].column_names == ["prompt", "route", "route_scores"]
            assert set(names[name]["route"]) <= {"terse", "wordy"} and len(names[name]) == 2


def test_the_shortest_file_is_a_configuration():
    first, second = blocks("yaml")
    config = RunConfig.from_dict(yaml.safe_load(first))
    assert [teacher.name for teacher in config.teachers] == ["big", "small"]
    assert config.quality.judge.model == "org/judge" and config.prompts.source == "prompts.jsonl"
    both = RunConfig.from_dict(yaml.safe_load(first) | yaml.safe_load(second))
    assert [teacher.name for teacher in both.teachers] == ["big", "terse"]
