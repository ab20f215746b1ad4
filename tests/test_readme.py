"""What the README and the documentation show works as it is printed."""

import re
from pathlib import Path

import pytest
import yaml

from persyn_hf.config import RunConfig, Sampling
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


DOCS = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
#: What a run has beside the sections that a page shows.
BASE = {
    "output_dir": "run",
    "prompts": {"source": "prompts.jsonl"},
    "teachers": [{"name": name, "model": name, "endpoint": "https://host"} for name in ("large", "small")],
    "student": {"model": "org/student"},
    "quality": {"verifier": "exact"},
    "router": {"backbone": "org/backbone"},
}


def sections(page):
    """The sections of a page's YAML blocks; of a key that stands in a block several times, each by itself."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        parts = re.split(r"^(?=\S)", block, flags=re.MULTILINE)
        keys = [part.partition(":")[0] for part in parts if part.strip()]
        for each in [block] if len(set(keys)) == len(keys) else parts:
            if each.strip():
                yield each


@pytest.mark.parametrize(("page", "block"), [(page.name, each) for page in DOCS for each in sections(page)])
def test_a_block_of_the_documentation_is_a_configuration(page, block):
    shown = yaml.safe_load(block)
    if set(shown) == {"sampling"}:  # of a teacher
        assert Sampling.model_validate(shown["sampling"]).values
        return
    shown.setdefault("teachers", [])
    if len(shown["teachers"]) < 2:
        shown["teachers"] += BASE["teachers"]
    config = RunConfig.from_dict(BASE | shown, page)
    for name, value in shown.items():
        assert value is None or getattr(config, name) is not None


def test_the_blocks_are_found():
    assert {page.name for page in DOCS if list(sections(page))} >= {"accept.md", "hygiene.md", "teachers.md"}
