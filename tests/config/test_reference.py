"""What the sections write of themselves: descriptions, the JSON Schema, the page."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from persyn_hf import config
from persyn_hf.config import RunConfig, Settings
from persyn_hf.config.reference import field_descriptions, json_schema, reference_page
from tests.conftest import ROOT

SECTIONS = [
    value
    for value in vars(config).values()
    if isinstance(value, type) and issubclass(value, Settings) and value is not Settings
]
EXAMPLES = [
    path for path in sorted(ROOT.glob("examples/**/*.yaml")) if "output_dir" in yaml.safe_load(path.read_text())
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_every_section_has_words(section):
    words = field_descriptions(section)
    assert [name for name in section.model_fields if not words.get(name, "").strip(" .")] == []
    assert set(words) <= set(section.model_fields)


def test_the_sections_are_all_of_the_run_file_s():
    assert set(json_schema()["$defs"]) | {"RunConfig"} == {section.__name__ for section in SECTIONS} - {"Service"}


def test_words_are_read_from_grouped_long_and_inherited_entries():
    class Base(Settings):
        """One.

        Args:
            a (`int`, defaults to 1), b (`dict[str, int]`): Of
                both: two lines.
            c: Bare.
        """

        a: int = 1
        b: dict[str, int] = {}  # noqa: RUF012
        c: Any = None

    class Child(Base):
        """Two.

        Args:
            c (`"x: y"`): Its own, with `code: inside`.
            d (`int`)

        Example:
            e: Nothing.
        """

        d: int = 0

    assert field_descriptions(Child) == {
        "a": "Of both: two lines.",
        "b": "Of both: two lines.",
        "c": "Its own, with `code: inside`.",
    }


def test_the_schema_is_one_and_knows_every_key():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert list(schema["properties"]) == list(RunConfig.model_fields)
    assert schema["required"] == ["output_dir", "prompts", "teachers", "router"]
    for definition in [schema, *schema["$defs"].values()]:
        assert definition["additionalProperties"] is False
        assert "Args:" not in definition["description"]
        assert all(value["description"] for value in definition["properties"].values())
    alpha = schema["$defs"]["Reward"]["properties"]["alpha"]
    assert alpha == {
        "default": 0.4,
        "description": "Weight of learnability, 0 to 1.",
        "maximum": 1.0,
        "minimum": 0.0,
        "type": "number",
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_examples_follow_the_schema_and_name_it_in_their_first_line(path):
    assert list(Draft202012Validator(json_schema()).iter_errors(yaml.safe_load(path.read_text()))) == []
    sign, _, place = path.read_text().splitlines()[0].partition("$schema=")
    assert sign == "# yaml-language-server: " and (path.parent / place).resolve() == ROOT / "docs/schema.json"


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [("alhpa", 1, []), ("reward", {"alhpa": 1}, ["reward"]), ("reward", {"alpha": 2}, ["reward", "alpha"])],
)
def test_the_schema_finds_a_mistake_where_it_is(key, value, place):
    data = yaml.safe_load((ROOT / "examples/quickstart.yaml").read_text()) | {key: value}
    (error,) = Draft202012Validator(json_schema()).iter_errors(data)
    assert list(error.absolute_path) == place


def test_there_are_examples():
    assert len(EXAMPLES) == 4


def test_what_is_shipped_is_what_the_sections_say():
    mend = "run `make docs`"
    assert json.loads((ROOT / "docs/schema.json").read_text("utf-8")) == json_schema(), mend
    assert (ROOT / "docs/reference.md").read_text("utf-8") == reference_page(), mend


def test_the_page_has_every_key_with_type_default_and_bounds():
    lines = reference_page().splitlines()
    assert "| `alpha` | number | `0.4` | ≥ 0; ≤ 1 | Weight of learnability, 0 to 1. |" in lines
    assert "| `source` | string or list of strings | **required** | not empty; at least 1 | " in "\n".join(lines)
    assert any(
        line.startswith("| `students` | list of sections [`compare.students[]`](#comparestudents) |") for line in lines
    )
    assert any(line.startswith("| `max_share` | number or mapping of names to number |  |") for line in lines)
    assert "## `teachers[].sampling`" in lines and "## `compare.lm_eval`" in lines
    rows = [line for line in lines if line.startswith("| `")]
    fields = sum(len(section.model_fields) for section in SECTIONS if section.__name__ != "Service")
    assert len(rows) == fields
    assert all(line.replace("\\|", "").count("|") == 6 for line in rows)
