"""No folder of this machine is published."""

import json

import pyarrow.parquet as pq
import pytest

from persyn_hf.publishing.cards import student_card
from persyn_hf.publishing.local_paths import public_name, without_local_paths
from persyn_hf.publishing.personalized import save_personalized
from tests.publishing.client import push, push_student
from tests.publishing.routers import PERSYN, TinyRouter

HOME = "/home/alice/secret-project"
BLOCK = {
    "student": f"{HOME}/student", "backbone": f"{HOME}/models/encoder", "quality": f"{HOME}/reward model",
    "prompts": {"source": f"{HOME}/prompts.jsonl"},
    "teachers": [
        {"name": "terse", "model": f"{HOME}/teacher", "sampling": {"extra_body": {"lora": f"{HOME}/adapter"}}},
        {"name": "wordy", "model": "C:\\Users\\alice\\secret-project\\wordy", "system_prompt": "/no_think"},
    ],
}  # fmt: skip
FACTS = {"prompts_source": f"file://{HOME}/prompts.jsonl", "judges": [f"{HOME}/judge"]}


@pytest.mark.parametrize(
    "name, shown",
    [
        ("/home/alice/secret/student", "student"), ("~/models/a", "a"), ("./runs/student", "student"), ("../b", "b"),
        ("C:\\Users\\alice\\m", "m"), ("D:/data/p.csv", "p.csv"), ("\\\\server\\share\\m", "m"),
        ("file:///home/alice/m", "m"), ("runs/demo/student", "student"), ("data/prompts.jsonl", "prompts.jsonl"),
        ("data/*.jsonl.gz", "*.jsonl.gz"), ("/home/alice/verify.py:score", "verify.py:score"),
        ("org/model", "org/model"), ("gpt2", "gpt2"), ("org/data:config", "org/data:config"),
        ("https://x.example/a/b", "https://x.example/a/b"), ("hf://datasets/a/b.csv", "hf://datasets/a/b.csv"),
        ("/no_think", "/no_think"), ("a sentence / with a slash", "a sentence / with a slash"), ("math", "math"),
        ("module.name:function", "module.name:function"), ("", ""), ("two\n/home/lines", "two\n/home/lines"),
    ],
)  # fmt: skip
def test_a_path_is_shown_by_its_last_part(name, shown):
    assert public_name(name) == shown


def test_a_folder_of_two_parts_is_no_hub_id_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "org/model").mkdir(parents=True)
    assert public_name("org/model") == "org/model"
    monkeypatch.chdir(tmp_path)
    assert public_name("org/model") == "model"


def test_texts_for_models_and_names_of_teachers_stay():
    value = {
        "name": "/a/b",
        "sampling": {"stop": ["/a/b"], "seed": 1},
        "system_prompt": "/x/y",
        "other": ("/x/y", None),
    }
    kept = {"name": "/a/b", "sampling": {"stop": ["/a/b"], "seed": 1}, "system_prompt": "/x/y", "other": ["y", None]}
    assert without_local_paths(value) == kept


def test_no_file_of_a_push_holds_the_home_folder(hub, answers, client):
    client(push, answers, router=TinyRouter(**BLOCK), run=FACTS, license="mit")
    for repo in (hub.dataset(), hub.model()):
        for path, file in repo.files.items():
            content = hub.content(file)
            assert b"alice" not in content and b"secret-project" not in content, path
    facts = json.loads(hub.dataset().text("persyn.json"))["configs"]["default"]
    assert (facts["router"]["student"], facts["prompts_source"]) == ("student", "prompts.jsonl")
    assert [teacher["model"] for teacher in facts["teachers"]] == ["teacher", "wordy"]
    block = json.loads(hub.model().text("config.json"))["persyn"]
    assert block["student"] == "student" and block["teachers"][0]["sampling"] == {"extra_body": {"lora": "adapter"}}
    assert block["teachers"][1]["system_prompt"] == "/no_think"
    assert "The student student" in hub.dataset().text("README.md")
    again = client(push, answers, router=TinyRouter(**BLOCK), run=FACTS, license="mit")
    assert not again.dataset.changed and not again.router.changed


def test_no_file_of_a_saved_run_holds_the_home_folder(answers, tmp_path):
    save_personalized(
        answers, tmp_path / "run", router=TinyRouter(**BLOCK), run=FACTS, location="me/d", router_location="me/r"
    )
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert [path for path in files if b"secret-project" in path.read_bytes()] == []
    (shard,) = [path for path in files if path.suffix == ".parquet"]
    assert "alice" not in str(pq.read_schema(shard).metadata)


def test_a_students_files_name_no_folder(hub, client, tmp_path):
    settings = {"chat_template": f"{HOME}/template.jinja", "max_steps": 9}
    report = {"student": f"{HOME}/student", "settings": settings, "counts": {"learnt_tokens": 272}}
    (tmp_path / "training.json").write_text(json.dumps(report))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": f"{HOME}/student", "r": 8}))
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": PERSYN["student"], "a": float("1e-5")}))
    kept = (tmp_path / "training.json").read_text()
    client(push_student, tmp_path, student_card(report, location="me/student", dataset_location=f"{HOME}/dataset"))
    model = hub.model("me/student")
    assert not [path for path, file in model.files.items() if b"alice" in hub.content(file)]
    assert json.loads(model.text("adapter_config.json")) == {"base_model_name_or_path": "student", "r": 8}
    assert model.text("config.json") == (tmp_path / "config.json").read_text()
    assert (tmp_path / "training.json").read_text() == kept
    card = model.text("README.md")
    assert "| chat\\_template | template.jinja |" in card and "Training data: dataset." in card
    assert "| completion tokens | 272 |" in card
