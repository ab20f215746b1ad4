"""`--set section.key=value`: one key of a run file, from outside of it."""

import json

import pytest
import yaml

from persyn_hf.config import RunConfig
from persyn_hf.config.overrides import parse_overrides
from persyn_hf.errors import ConfigError

TEXT = """
output_dir: runs/x
prompts: {source: p.jsonl}
teachers:
  - &first {name: Qwen2.5-7B, model: m, backend: local, sampling: {temperature: 0.5}}
  - {<<: *first, name: Qwen2.5-7B-it}
  - {<<: *first, name: "1"}
student: {model: s}
quality: {sources: [{verifier: exact, name: right}, {verifier: math}]}
router: {backbone: b}
publish:
compare:
  students: [{name: one, model: s}]
  held_out: {source: h.jsonl}
  seeds: [0, 1, 2]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT.replace("publish:\n", ""))
    return path


def read(file, *given):
    return RunConfig.from_yaml(file, parse_overrides(given))


def refused(file, *given):
    with pytest.raises(ConfigError) as raised:
        read(file, *given)
    return str(raised.value)


def test_values_are_yaml_and_all_else_stays(file):
    made = read(
        file,
        "reward.alpha=0.2",
        "student.device=cpu",
        "publish={tags: [v1.0], language: [en, de]}",
        "max_cost=null",
        "compare.seeds.1=7",
        "training.lora.r=4",
        "training.extra.optim_args.beta=0.9",
        "prompts.split=test[:10]",
    )
    plain = RunConfig.from_yaml(file)
    assert made.reward.alpha == 0.2 and made.reward.normalization == "minmax"
    assert made.student.device == "cpu" and made.student.model == "s"
    assert made.publish.tags == ("v1.0",) and made.publish.language == ("en", "de")
    assert made.compare.seeds == (0, 7, 2) and made.compare.students == plain.compare.students
    assert made.training.lora.r == 4 and made.training.extra == {"optim_args": {"beta": 0.9}}
    assert made.prompts.split == "test[:10]" and made.max_cost is None
    assert made.teachers == plain.teachers and made.router == plain.router


def test_an_entry_goes_by_its_name_or_its_index(file):
    made = read(
        file,
        "teachers.0.timeout=1",
        "teachers.Qwen2.5-7B-it.timeout=2",
        "teachers.1.max_concurrency=3",
        "quality.sources.right.weight=2",
        "quality.sources.1.weight=3",
        "compare.students.one.family=Qwen2.5",
    )
    # A name counts before an index: `1` is the third teacher's name.
    assert [teacher.timeout for teacher in made.teachers] == [1, 2, 120]
    assert [teacher.max_concurrency for teacher in made.teachers] == [None, None, 3]
    assert [source.weight for source in made.quality.sources] == [2, 3]
    assert made.compare.students[0].family == "Qwen2.5"


def _leaves(value, *place):
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _leaves(part, *place, str(key))
    if not parts:
        yield ".".join(place), value


def test_every_value_of_a_file_can_be_set_where_it_stands(file):
    data = yaml.safe_load(file.read_text()) | {"allocation": {"max_share": {"1": 0.5}, "top_k": 2}, "seed": 3}
    data["teachers"][2]["name"] = "third"
    data["allocation"]["max_share"] = {"third": 0.5}
    wanted = RunConfig.from_dict(data)
    leaves = dict(_leaves(data))
    assert len(leaves) > 25 and leaves["teachers.1.sampling.temperature"] == 0.5
    assert RunConfig.from_dict(data, overrides=leaves) == wanted
    given = parse_overrides(f"{key}={json.dumps(value)}" for key, value in leaves.items())
    assert given == leaves
    blank = data | {"teachers": [{}, {}, {}], "reward": {"alpha": 1}, "student": None, "allocation": None}
    assert RunConfig.from_dict(blank, overrides=given | {"reward.alpha": 0.4}) == wanted


def test_what_yaml_shares_by_an_alias_is_changed_in_one_place(file):
    made = read(file, "teachers.Qwen2.5-7B.sampling.max_tokens=7")
    assert [teacher.sampling.max_tokens for teacher in made.teachers] == [7, 1024, 1024]
    assert [teacher.sampling.temperature for teacher in made.teachers] == [0.5, 0.5, 0.5]


def test_the_values_that_were_given_are_not_changed():
    data = yaml.safe_load(TEXT)
    data.pop("publish")
    before = yaml.safe_dump(data)
    RunConfig.from_dict(data, overrides={"teachers.0.timeout": 5, "allocation.max_share.Qwen2.5-7B": 0.5})
    assert yaml.safe_dump(data) == before


def test_a_mapping_by_teacher_takes_names_with_dots(file):
    made = read(file, "allocation.max_share.Qwen2.5-7B=0.5", "allocation.max_share.Qwen2.5-7B-it=0.25")
    assert made.allocation.max_share == {"Qwen2.5-7B": 0.5, "Qwen2.5-7B-it": 0.25}


def test_the_last_of_several_counts(file):
    made = read(file, "training.lora.r=1", "training.lora={r: 8, alpha: 9}", "training.lora.r=2", "seed=1", "seed=2")
    assert (made.training.lora.r, made.training.lora.alpha, made.seed) == (2, 9, 2)


def test_an_empty_section_of_the_file_can_be_filled(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(TEXT)
    assert read(path, "publish.license=mit").publish.license == "mit"


REFUSED = [
    ("alhpa=1", "--set: `alhpa`: unknown key; this section has accept, allocation, compare"),
    ("reward.alhpa=1", "--set: `reward.alhpa`: unknown key; this section has alpha, learnability_metric, normaliz"),
    (
        "teachers.0.sampling.top_q=1",
        "--set: `teachers.0.sampling.top_q`: unknown key; this section has extra_body, max_tokens",
    ),
    (
        "teachers.llama.timeout=1",
        "--set: `teachers`: has no such entry; address entries by index, 0 to 2, or by name: Qwe",
    ),
    ("teachers.3.timeout=1", "--set: `teachers`: has no such entry; address entries by index, 0 to 2"),
    ("compare.seeds.9=1", "--set: `compare.seeds`: has no such entry; address entries by index, 0 to 2."),
    (
        "compare.decodings.greedy.top_p=1",
        "--set: `compare.decodings`: is a list that the file does not set; set the whole",
    ),
    ("seed.x=1", "--set: `seed`: has no keys."),
    ("reward.alpha=1.3", "--set: `reward.alpha`: Input should be less than or equal to 1, got 1.3."),
    ("teachers.Qwen2.5-7B.timeout=0", "--set: `teachers[0].timeout`: Input should be greater than 0, got 0."),
    (
        "student.revision=1234567",
        "got 1234567. YAML did not read the value as a string; put it in quotes: --set 'key=",
    ),
    ("teachers.0.system_prompt=Say: yes", "string. YAML did not read the value as a string; put it in quotes: --set"),
    ("quality={verifer: exact}", "--set: `quality.verifer`: unknown key; this section has judge"),
    ("router.pretrained=x", "run.yaml with --set: `router`: give exactly one of `backbone`"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=[given for given, _ in REFUSED])
def test_errors_name_the_flag_the_key_and_what_is_known(file, given, message):
    assert message in refused(file, given)


def test_an_error_of_the_file_is_the_file_s(file):
    file.write_text(file.read_text() + "seed: -1\n")
    lines = refused(file, "reward.alpha=-1").splitlines()
    assert [line.rpartition("run.yaml: ")[2] for line in lines] == [
        "`seed`: Input should be greater than or equal to 0, got -1.",
        "--set: `reward.alpha`: Input should be greater than or equal to 0, got -1.",
    ]


def test_a_value_over_which_a_section_lies_is_set_whole(file):
    said = refused(file, "allocation.max_share=0.3", "allocation.max_share.Qwen2.5-7B=0.5")
    assert said == "--set: `allocation.max_share`: holds a single value; set it as a whole."


SECRET = "hf_aB3dEf6hIj9lMn2pQr5t"


@pytest.mark.parametrize(
    "given",
    [
        SECRET,
        f"{SECRET}=",
        f"={SECRET}",
        f"{SECRET}=[",
        f"teachers.0.{SECRET}=1",
        f"teachers.0.api_key_env={SECRET}",
        f"teachers.0.endpoint=https://me:{SECRET}@host",
        f"reward.alpha=[{SECRET}",
        f"reward.alpha={SECRET}",
        f"student.endpoint={{url: {SECRET}}}",
        f"{SECRET}.x=1",
        "seed=" + "[" * 20_000,
        "seed=2024-13-45",
    ],
)
def test_no_part_of_a_secret_is_repeated(file, given):
    said = refused(file, given)
    assert "--set" in said and SECRET not in said and "2024" not in said and "[[" not in said


def test_a_broken_file_is_explained_without_its_line(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"seed: 1\nstudent: [{SECRET}: }}\n")
    said = refused(path)
    assert SECRET not in said and "run.yaml: is not valid YAML: line 2, column 36: " in said
    for text in (f"seed: *{SECRET}\n", f"seed: !{SECRET} 1\n", f"seed: !!int {SECRET}\n", f"[{SECRET}]: 1\n"):
        path.write_text(text)
        assert "run.yaml: is not valid YAML: " in refused(path) and SECRET not in refused(path)
    path.write_text("[" * 50_000)
    assert refused(path).endswith("run.yaml: is not valid YAML: RecursionError.")


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("max_cost: 1\nseed: 3\nmax_cost: 100\n")
    assert refused(path).endswith(
        "run.yaml: the key `max_cost` stands twice, in line 1 and in line 3; keep one of them."
    )
    path.write_text(f"teachers:\n  - name: a\n    sampling: {{seed: 1, seed: 2}}\n    {SECRET}: 1\n    {SECRET}: 1\n")
    said = refused(path)
    assert "stands twice" in said and SECRET not in said


def test_aliases_merges_and_windows_files_are_taken(file):
    plain = RunConfig.from_yaml(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_text().replace("\n", "\r\n").encode())
    assert RunConfig.from_yaml(file) == plain


def test_a_file_that_is_no_utf_8_says_so(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("output_dir: Prüfung\n".encode("latin-1"))
    assert refused(path).endswith("run.yaml: is not valid YAML: it is no UTF-8; save the file as UTF-8.")


def test_an_entry_is_named_as_errors_name_it(file):
    made = read(file, "teachers[1].timeout=7", "compare.seeds[2]=9", "quality.sources[0].name=exactly")
    assert (made.teachers[1].timeout, made.compare.seeds) == (7, (0, 1, 9))
    assert made.quality.sources[0].name == "exactly"
    assert "`teachers`: has no such entry; address entries by index, 0 to 2" in refused(file, "teachers[9].timeout=7")
