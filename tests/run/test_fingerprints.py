"""Which setting makes which stage run again: every field of every section, in a table, against the fingerprints."""

from pathlib import Path

import pytest

from persyn_hf import RunConfig, config
from persyn_hf.comparison.cells import Cell, HeldOut, identify
from persyn_hf.config import Judge, Settings
from persyn_hf.errors import ConfigError
from persyn_hf.run.fingerprints import Checkpoint, fingerprint, key_of
from persyn_hf.run.stages import run_stages

SCORES = {"score", "score-answers"}
#: What judges answers judges trained students too, unless the comparison has a judge of its own.
QUALITY = SCORES | {"evaluation"}
NOTHING = set()
#: What a comparison makes beside the stages of its runs: students, and what is said of them.
STUDENTS, JUDGED = {"cell", "evaluation"}, {"evaluation"}
#: Prompts count with their content: another source of the same prompts is the same table.
CONTENT = NOTHING


@pytest.fixture
def base(tmp_path):
    for name in ("teacher", "student", "other", "backbone", "reward", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"model": "{name}"}}')
    for name in ("template.jinja", "other.jinja"):
        (tmp_path / name).write_text(name)
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 10, "stop": ["\n"]}
    return {
        "output_dir": "run",
        "prompts": {"source": "prompts.jsonl"},
        "probe": {"size": 10},
        "teachers": [
            {"name": "a", "model": "org/a", "endpoint": "http://127.0.0.1:1", "sampling": sampling},
            {"name": "b", "model": str(tmp_path / "teacher"), "backend": "local"},
        ],
        "student": {"model": str(tmp_path / "student"), "endpoint": {"url": "http://127.0.0.1:1"}},
        "quality": {"sources": [{"verifier": "exact"}, {"reward_model": str(tmp_path / "reward"), "range": [0, 1]}]},
        "router": {"backbone": str(tmp_path / "backbone")},
        "allocation": {"top_k": 2},
        "training": {"lora": {}},
        "compare": {
            "students": [{"name": "s", "model": str(tmp_path / "student")}],
            "held_out": {"source": "held-out.jsonl"},
            "lm_eval": {"tasks": ["ifeval"]},
        },
    }


#: By path: another value, and the stages whose own fingerprint it changes. `HERE` stands for the test's folder.
TABLE = {
    "": {
        "output_dir": ("elsewhere", NOTHING),
        "seed": (7, {"probe-prompts", "probe", "router", "allocate", "generate"}),
        "max_cost": (3.0, NOTHING),
        "rows_per_shard": (9, CONTENT),
        "confirm_above": (2.0, NOTHING),
        "accept": (None, NOTHING),  # instead of several teachers a prompt; see the test below
    },
    "prompts": {
        "source": ("other.jsonl", {"router"}),  # its block names the source
        "revision": ("v2", {"router"}),
        "config": ("main", CONTENT),
        "split": ("test", CONTENT),
        "format": ("messages", CONTENT),
        "column": ("question", CONTENT),
        "template": ("{{ question }}", CONTENT),
        "system_column": ("system", CONTENT),
        "tools_column": ("tools", CONTENT),
        "answer_column": ("answer", CONTENT),
        "last_assistant": ("reference", CONTENT),
        "keep_columns": (["id"], CONTENT),
        "limit": (5, CONTENT),
        "on_bad_prompt": ("drop", CONTENT),
    },
    "hygiene": {
        **dict.fromkeys(  # the prompts that are left count with their content
            ("dedup", "dedup_threshold", "dedup_model", "decontaminate", "decontaminate_column", "ngram_size"),
            (None, CONTENT),
        ),
        "min_tokens": (3, CONTENT),
        "max_tokens": (99, CONTENT),
        "drop_refusals": (True, {"clean"}),
        "max_copied": (0.5, {"clean"}),
        "min_quality": (0.5, {"clean"}),
    },
    "probe": {"size": (11, {"probe-prompts"}), "method": ("cover", {"probe-prompts"})},
    "teachers.0": {
        "name": ("c", {"probe", "router", "allocate", "generate"}),
        "model": ("org/c", {"probe", "router", "allocate", "generate"}),
        "revision": ("v2", {"probe", "router", "allocate", "generate"}),
        "backend": (None, NOTHING),  # with its model and endpoint; see the test below
        "endpoint": ("http://127.0.0.1:2", {"allocate"}),  # several of them answer faster
        "api": ("tgi", NOTHING),
        "api_key_env": ("A_KEY", NOTHING),
        "use_hub_token": (True, NOTHING),
        "api_key_header": ("api-key", NOTHING),
        "extra_headers": ({"x-title": "mine"}, NOTHING),
        "extra_query": ({"api-version": "2024-10-21"}, NOTHING),
        "dialect": ("azure", NOTHING),  # what it sets counts by itself
        "tokenizer": ("org/tokenizer", NOTHING),
        "stream": (True, NOTHING),
        "stream_usage": (False, NOTHING),
        "system_prompt": ("Be brief.", {"probe", "router", "allocate", "generate"}),
        "reasoning": ("keep", {"probe", "router", "allocate", "generate"}),
        "leaks": ("mark", {"probe", "router", "allocate", "generate"}),
        "max_concurrency": (3, {"allocate"}),
        "timeout": (9.0, NOTHING),
        "hedge_after": (9.0, NOTHING),
        "max_response_bytes": (4096, NOTHING),
        "on_teacher_down": ("wait", {"probe", "router", "allocate", "generate"}),
        "preflight": (False, NOTHING),
        "down_after": (9.0, NOTHING),
        "batch_size": (3, NOTHING),
        "dtype": ("float32", NOTHING),
        "device": ("cpu", NOTHING),
        "price_per_million_prompt_tokens": (1.0, {"allocate"}),
        "price_per_million_completion_tokens": (1.0, {"allocate"}),
        "price_per_million_cached_tokens": (1.0, {"allocate"}),
        "price_per_million_reasoning_tokens": (1.0, {"allocate"}),
        "family": ("A", {"router", "allocate"}),
        "license": ("mit", {"router", "allocate"}),
    },
    "teachers.0.sampling": dict.fromkeys(
        ("temperature", "top_p", "max_tokens", "stop", "seed", "extra_body", "max_tokens_field", "seed_field"),
        (None, {"probe", "router", "allocate", "generate"}),
    ),
    "student": {
        "model": ("HERE/other", SCORES | {"router"}),
        "revision": ("v2", NOTHING),  # a folder has none; see the test of revisions
        "dtype": ("float32", SCORES),
        "device": ("cpu", NOTHING),
        "devices": ("all", NOTHING),
        "attn_implementation": ("eager", NOTHING),
        "token_budget": (99, NOTHING),
        "too_long": ("truncate", SCORES),
        "metrics": (("rsr",), SCORES),
        "teacher_system_prompts": (True, SCORES),
    },
    "student.endpoint": {
        "url": ("http://127.0.0.1:2", NOTHING),
        "api_key_env": ("A_KEY", NOTHING),
        "use_hub_token": (True, NOTHING),
        "api_key_header": ("api-key", NOTHING),
        "extra_headers": ({"x-title": "mine"}, NOTHING),
        "extra_query": ({"api-version": "2024-10-21"}, NOTHING),
        "max_concurrency": (3, NOTHING),
        "timeout": (9.0, NOTHING),
        "attempts": (2, NOTHING),
        "down_after": (60.0, NOTHING),
        "max_response_bytes": (4096, NOTHING),
        "price_per_million_prompt_tokens": (1.0, NOTHING),
        "price_per_million_completion_tokens": (1.0, NOTHING),
        "api": ("echo", SCORES),
        "served_model": ("s", SCORES),
    },
    "quality": {
        "verifier": (None, NOTHING),  # these four exclude each other; see the tests below
        "trust_verifier": (True, NOTHING),
        "reward_model": (None, NOTHING),
        "judge": (None, NOTHING),
        "sources": ([{"verifier": "exact"}], QUALITY | {"router"}),
        "revision": ("v2", QUALITY),
        "normalize": ("rank", QUALITY),
    },
    "quality.sources.0": {
        "verifier": ("persyn_hf.demo.prompts:share_met", QUALITY | {"router"}),
        "trust_verifier": (True, NOTHING),
        "reward_model": (None, NOTHING),
        "revision": ("v2", QUALITY),
        "judge": (None, NOTHING),
        "name": ("mine", QUALITY),
        "weight": (2.0, QUALITY),
        "range": ([0, 2], QUALITY),
    },
    "reward": {
        "alpha": (0.1, SCORES | {"router"}),
        "normalization": ("rank", SCORES | {"router"}),
        "learnability_metric": ("rsr", SCORES | {"router"}),
    },
    "router": {
        "backbone": ("HERE/other", {"router"}),
        "pretrained": (None, NOTHING),  # instead of a backbone; see the test below
        "revision": ("v2", NOTHING),
        "objective": ("bradley-terry", {"router"}),
        "tuning": ("full", {"router"}),
        "fallback": ("none", {"router"}),
        "min_answered": (0.25, {"router"}),
        "folds": (3, {"router"}),
        "epochs": (9, {"router"}),
        "learning_rate": (0.1, {"router"}),
        "batch_size": (3, {"router"}),
        "lora_rank": (3, {"router"}),
        "max_length": (99, {"router"}),
        "dtype": ("bfloat16", {"router"}),
        "device": ("cpu", NOTHING),
    },
    "allocation": {
        "policy": ("random", {"allocate"}),
        "max_share": (0.9, {"allocate"}),
        "min_share": (0.1, {"allocate"}),
        "budget": (9.0, {"allocate"}),
        "makespan": ("shortest", {"allocate"}),
        "expected_tokens": (9.0, {"allocate"}),
        "prompt_tokens": (9.0, {"allocate"}),
        "tokens_per_second": (9.0, {"allocate"}),
        "top_k": (1, {"allocate", "generate", "score-answers", "select"}),
        "temperature": (0.5, {"allocate"}),
        "scale": ("win-rate", {"allocate"}),
        "strong_share": (0.4, {"allocate"}),
        "beta": (2.0, {"allocate"}),
        "student_family": ("A", {"allocate"}),
    },
    "publish": {
        "dataset_repo_id": ("me/data", NOTHING),
        "router_repo_id": (None, NOTHING),
        "config_name": ("mine", NOTHING),
        "private": (False, NOTHING),
        "revision": ("v2", NOTHING),
        "create_pr": (True, NOTHING),
        "commit_message": ("Push", NOTHING),
        "tags": (("v1",), NOTHING),
        "collection": ("mine", NOTHING),
        "license": ("mit", NOTHING),
        "language": (("en",), NOTHING),
        "keep_truncated": (True, NOTHING),
        "allow_secrets": (True, NOTHING),
        "allow_findings": (("0" * 12,), NOTHING),
        "dry_run": (True, NOTHING),
        "files_per_commit": (9, NOTHING),
    },
    "training": {
        "num_train_epochs": (3.0, {"cell"}),
        "max_steps": (3, {"cell"}),
        "learning_rate": (0.1, {"cell"}),
        "lr_scheduler_type": ("linear", {"cell"}),
        "warmup_ratio": (0.1, {"cell"}),
        "weight_decay": (0.1, {"cell"}),
        "per_device_train_batch_size": (3, {"cell"}),
        "gradient_accumulation_steps": (3, {"cell"}),
        "max_length": (99, {"cell"}),
        "packing": (True, {"cell"}),
        "bf16": (True, {"cell"}),
        "gradient_checkpointing": (True, {"cell"}),
        "lora": (None, {"cell"}),
        "chat_template": ("HERE/template.jinja", {"cell"}),
        "save_steps": (3, NOTHING),
        "logging_steps": (3, NOTHING),
        "report_to": (("wandb",), NOTHING),
        "extra": ({"neftune_noise_alpha": 5}, {"cell"}),
    },
    "training.lora": {
        "r": (3, {"cell"}),
        "alpha": (3, {"cell"}),
        "dropout": (0.1, {"cell"}),
        "target_modules": (("q_proj",), {"cell"}),
        "merge": (False, {"cell"}),
    },
    "compare": {
        "held_out": ({"source": "x.jsonl"}, CONTENT),
        "students": ([{"name": "t", "model": "HERE/other"}], {"cell"}),
        "policies": (("strong",), NOTHING),  # each has data of its own
        "seeds": ((9,), NOTHING),  # each has a folder of its own
        "quality": ({"verifier": "exact"}, JUDGED),
        "decodings": ([{"name": "x"}], JUDGED),
        "nll_teachers": (["a"], NOTHING),  # the answers that are looked at count with their content
        "lm_eval": (None, JUDGED),
        "strong_share": (0.4, NOTHING),  # the routes that come of it count
        "beta": (2.0, NOTHING),
        "keep_students": (True, NOTHING),
        "processes": (2, NOTHING),
    },
    "compare.students.0": {
        "name": ("t", NOTHING),
        "family": ("A", NOTHING),
        "model": ("HERE/other", {"cell"}),
        "revision": ("v2", NOTHING),
        "dtype": ("float32", JUDGED),
        "device": ("cpu", NOTHING),
        "devices": ("all", NOTHING),
        "attn_implementation": ("eager", NOTHING),
        "token_budget": (99, NOTHING),
        "too_long": ("truncate", JUDGED),
        "metrics": (("rsr",), JUDGED),
        "teacher_system_prompts": (True, JUDGED),
        "endpoint": ({"url": "http://127.0.0.1:1"}, NOTHING),
    },
    "compare.decodings.0": {
        "name": ("x", JUDGED),
        "temperature": (0.7, JUDGED),
        "top_p": (0.7, JUDGED),
        "max_tokens": (7, JUDGED),
        "stop": (["."], JUDGED),
        "seed": (3, JUDGED),
        "extra_body": ({"top_k": 20}, JUDGED),
        "max_tokens_field": ("max_completion_tokens", JUDGED),
        "seed_field": ("random_seed", JUDGED),
    },
    "compare.lm_eval": {
        "tasks": (["gsm8k"], JUDGED),
        "limit": (3, JUDGED),
        "num_fewshot": (3, JUDGED),
        "batch_size": (3, NOTHING),
        "apply_chat_template": (False, JUDGED),
        "include_path": ("HERE/tasks", JUDGED),
    },
}
SAMPLING = {
    "temperature": 0.7, "top_p": 0.7, "max_tokens": 7, "stop": ["."], "seed": None, "extra_body": {"top_k": 20},
    "max_tokens_field": "max_completion_tokens", "seed_field": "random_seed",
}  # fmt: skip
#: Sections that stand under another one's name in the table.
JUDGE = {"url": "http://127.0.0.1:1", "model": "judge"}
OF_A_JUDGE = {
    "url": ("http://127.0.0.1:2", NOTHING),
    "api_key_env": ("A_KEY", NOTHING),
    "use_hub_token": (True, NOTHING),
    "api_key_header": ("api-key", NOTHING),
    "extra_headers": ({"x-title": "mine"}, NOTHING),
    "extra_query": ({"api-version": "2024-10-21"}, NOTHING),
    "max_concurrency": (3, NOTHING),
    "timeout": (9.0, NOTHING),
    "attempts": (2, NOTHING),
    "down_after": (60.0, NOTHING),
    "preflight": (False, NOTHING),
    "max_response_bytes": (4096, NOTHING),
    "price_per_million_prompt_tokens": (1.0, NOTHING),
    "price_per_million_completion_tokens": (1.0, NOTHING),
    "model": ("other", QUALITY | {"router"}),
    "revision": ("v2", QUALITY),
    "max_tokens_field": ("max_completion_tokens", QUALITY),
    "seed": (None, QUALITY),
    "extra_body": ({"top_k": 5}, QUALITY),
    "template": ("{{ prompt }}", QUALITY),
    "temperature": (0.5, QUALITY),
    "max_tokens": (7, QUALITY),
}
OF_ACCEPT = {
    "min_quality": (0.25, {"generate"}),
    "attempts": (2, {"generate"}),
    "retry": ("same", {"generate"}),
    "target_rows": (9, {"generate"}),
}
SECTION_OF = {
    "": "RunConfig", "prompts": "Prompts", "hygiene": "Hygiene", "probe": "Probe", "teachers.0": "Teacher",
    "teachers.0.sampling": "Sampling", "student": "Student", "student.endpoint": "StudentEndpoint",
    "quality": "Quality", "quality.sources.0": "QualitySource", "reward": "Reward", "router": "Router",
    "allocation": "Allocation", "publish": "Publish", "training": "Training", "training.lora": "Lora",
    "compare": "Compare", "compare.students.0": "ComparedStudent", "compare.decodings.0": "Decoding",
    "compare.lm_eval": "LmEval",
}  # fmt: skip


def _changed(data, path, field, value, here):
    """A copy of nested plain values with one of them changed."""
    keys = [int(key) if key.isdigit() else key for key in path.split(".") if key]
    copied = here_of(data, here)
    place = copied
    for key in keys:
        if isinstance(place, dict) and key not in place:
            place[key] = [{"name": "greedy", "temperature": 0.0}] if key == "decodings" else {}
        place = place[key]
    place[field] = here_of(value, here)
    return copied


def here_of(value, here):
    if isinstance(value, dict):
        return {key: here_of(one, here) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [here_of(one, here) for one in value]
    return value.replace("HERE", str(here)) if isinstance(value, str) else value


def _fingerprints(data):
    settings = RunConfig.from_dict(data)
    keys = {stage.name: fingerprint(stage.parts([], {})) for stage in run_stages(settings, "ledger.sqlite")}
    compare = settings.compare
    quality = compare.quality or settings.quality
    held_out = HeldOut(None, None, quality, identify([quality]))
    student = compare.students[0]
    cell = Cell(Path("cell"), None, student, settings.training, 0, held_out, compare)
    model = key_of(Checkpoint(student.model, student.revision))
    return keys | {"cell": identify([model, settings.training]), "evaluation": cell.evaluation}


CASES = [
    (path, field, SAMPLING[field] if path.endswith("sampling") else value, stages)
    for path, fields in TABLE.items()
    for field, (value, stages) in fields.items()
    if value is not None or (path, field) in {("training", "lora"), ("compare", "lm_eval")}
]


@pytest.mark.parametrize(("path", "field", "value", "stages"), CASES, ids=[f"{p}.{f}" for p, f, _, _ in CASES])
def test_a_changed_field_makes_these_stages_run_again(base, tmp_path, monkeypatch, path, field, value, stages):
    monkeypatch.setenv("A_KEY", "secret")
    before = _fingerprints(base)
    changed = _changed(base, path, field, value, tmp_path)
    after = _fingerprints(changed)
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == stages


@pytest.mark.parametrize(("field", "value", "stages"), [(f, v, s) for f, (v, s) in OF_A_JUDGE.items()])
def test_a_judge_counts_with_what_it_is_asked_and_not_with_where(base, tmp_path, monkeypatch, field, value, stages):
    monkeypatch.setenv("A_KEY", "secret")
    base["quality"] = {"judge": JUDGE}
    after = _fingerprints(_changed(base, "quality.judge", field, value, tmp_path))
    before = _fingerprints(base)
    assert {name for name in before if before[name] != after[name]} == stages


@pytest.mark.parametrize(("field", "value", "stages"), [(f, v, s) for f, (v, s) in OF_ACCEPT.items()])
def test_what_is_accepted_counts_in_the_stage_that_asks(base, tmp_path, field, value, stages):
    base |= {"allocation": {}, "accept": {"min_quality": 0.5}}
    before = _fingerprints(base)
    after = _fingerprints(_changed(base, "accept", field, value, tmp_path))
    assert {name for name in before | after if before.get(name) != after.get(name)} == stages


def test_every_field_of_every_section_stands_in_the_table():
    sections = {name: value for name, value in vars(config).items() if isinstance(value, type)}
    sections = {name: one for name, one in sections.items() if issubclass(one, Settings)}
    tabled = {SECTION_OF[path]: set(fields) for path, fields in TABLE.items()} | {
        "Judge": set(OF_A_JUDGE),
        "Accept": set(OF_ACCEPT),
    }
    tabled["Service"] = set(OF_A_JUDGE) - set(Judge.__annotations__)
    for path, fields in TABLE.items():
        below = {child.removeprefix(f"{path}.").partition(".")[0] for child in TABLE if child != path}
        known = set(sections[SECTION_OF[path]].model_fields)
        assert not known - set(fields) - below, f"{SECTION_OF[path]}: say which stages run again"
        assert not set(fields) - known
    untold = set(sections) - set(tabled) - {"Settings"}
    assert not untold, f"say for the sections {sorted(untold)} which stages run again"


def test_a_folder_counts_with_its_content_and_not_with_its_name(base, tmp_path):
    before = _fingerprints(base)
    (tmp_path / "teacher").rename(tmp_path / "moved")
    base["teachers"][1]["model"] = str(tmp_path / "moved")
    moved = _fingerprints(base)
    assert {name for name in before if before[name] != moved[name]} == set()
    (tmp_path / "moved/config.json").write_text("{}")
    changed = _fingerprints(base)
    assert {name for name in before if before[name] != changed[name]} == {"probe", "router", "allocate", "generate"}


def test_a_teacher_in_this_process_is_another_model_than_the_same_name_behind_an_endpoint(base, tmp_path):
    before = _fingerprints(base)
    base["teachers"][1] |= {"backend": "endpoint", "endpoint": "http://127.0.0.1:1"}
    after = _fingerprints(base)
    assert {name for name in before if before[name] != after[name]} == {"probe", "router", "allocate", "generate"}


def test_files_that_a_section_names_count_with_their_content(base, tmp_path):
    base["training"]["chat_template"] = str(tmp_path / "template.jinja")
    base["compare"]["lm_eval"]["include_path"] = str(tmp_path / "tasks")
    before = _fingerprints(base)
    (tmp_path / "template.jinja").write_text("another")
    (tmp_path / "tasks/config.json").write_text("another")
    after = _fingerprints(base)
    assert {name for name in before if before[name] != after[name]} == {"cell", "evaluation"}
    (tmp_path / "template.jinja").unlink()
    with pytest.raises(ConfigError, match=r"`chat_template`: .*template.jinja cannot be read"):
        _fingerprints(base)


def test_a_pretrained_router_counts_with_its_weights(base, tmp_path):
    base["router"] = {"pretrained": str(tmp_path / "other")}
    base["allocation"] = {}
    settings = RunConfig.from_dict(base | {"compare": None})
    stages = {stage.name: stage for stage in run_stages(settings, "ledger.sqlite")}
    assert list(stages) == ["route", "generate"]
    before = stages["route"].parts([], {})
    (tmp_path / "other/config.json").write_text("{}")
    after = stages["route"].parts([], {})
    assert [name for name in before if before[name] != after[name]] == ["router"]


def test_only_plain_values_can_be_part_of_a_fingerprint():
    assert key_of({"a": (1, 2.5, None, True), "b": float("inf")}) == {"a": [1, 2.5, None, True], "b": "inf"}
    for value in (object(), {1, 2}, b"bytes", Path("x"), lambda: None):
        with pytest.raises(TypeError, match="has no fingerprint"):
            key_of(value)
