"""Routes for TRL's AsyncDistillationTrainer: what is written, what is refused, and that TRL finds each server."""

import json

import pytest
from datasets import Dataset, load_dataset
from tokenizers import normalizers
from transformers import AutoTokenizer

from persyn_hf import Teacher, export_routes
from persyn_hf.config import Student
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from tests.students.models import CHATML, byte_tokenizer, save_kind

PROMPTS = ["What is 2 + 2?", "Name a sea.", "Why?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    made = {kind: save_kind(folder / kind, kind) for kind in ("qwen", "smollm", "gemma")}
    other = byte_tokenizer(CHATML, "<|im_end|>")
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    other.save_pretrained(folder / "lower")
    return made | {"lower": str(folder / "lower")}


def teacher(name, model, endpoint="http://gpu:8000/v1", **more):
    return Teacher(name=name, model=model, endpoint=endpoint, **more)


def routed(*names):
    return Dataset.from_dict({"prompt": PROMPTS, "route": list(names), "prompt_id": ["a", "b", "c"]})


def test_a_teacher_for_every_prompt_and_a_server_for_every_teacher(models, tmp_path):
    teachers = [
        teacher("big", models["qwen"], "http://gpu1:8000/v1/"),
        teacher("idle", models["gemma"]),
        teacher("served", "alias", ("http://gpu2:8000", "http://gpu3:8000"), tokenizer=models["qwen"]),
    ]
    made = export_routes(routed("big", "served", "big"), teachers, Student(model=models["qwen"]))
    assert made.teacher_server_urls == {"big": "http://gpu1:8000", "served": "http://gpu2:8000"}
    assert made.data["teacher_id"][:] == ["big", "served", "big"] and made.data["prompt_id"][:] == ["a", "b", "c"]
    assert made.data[1]["prompt"] == [{"role": "user", "content": "Name a sea."}]
    folder = made.save(tmp_path / "trl")
    assert json.loads((folder / "teacher_server_urls.json").read_text()) == made.teacher_server_urls
    again = load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train", cache_dir=tmp_path / "c")
    assert again[:] == made.data[:]


def test_teachers_with_another_tokenizer_are_refused_by_name(models):
    teachers = [
        teacher("same", models["qwen"]),
        teacher("other", models["gemma"]),
        teacher("gone", "alias/nowhere"),
        teacher("splits", models["lower"]),
    ]
    with pytest.raises(
        RouterMismatchError, match=r"needs teachers with the student's.*'other' \(.*gemma\) has .*diff"
    ):
        export_routes(routed("same", "other", "same"), teachers, models["qwen"])
    with pytest.raises(RouterMismatchError, match=r"'gone' cannot be compared.*Set `tokenizer`"):
        export_routes(routed("same", "gone", "same"), [*teachers], models["qwen"])
    with pytest.raises(RouterMismatchError, match=r"'splits' .*splits 'What is 2 \+ 2\?' differently"):
        export_routes(routed("same", "splits", "same"), teachers, models["qwen"])


def test_a_server_that_trl_cannot_ask_is_refused(models):
    model = models["qwen"]
    table = routed("t", "t", "t")
    local = Teacher(name="t", model=model, backend="local")
    keyed = teacher("t", model, api_key_env="SOME_KEY")
    odd = teacher("t", model, "http://host/serving/openai")
    for one, words in ((local, "in this process"), (keyed, "TRL sends none"), (odd, "served at http://host/serving")):
        with pytest.raises(ConfigError, match=words):
            export_routes(table, [one], model)
        made = export_routes(table, [one], model, servers={"t": "http://gpu:8001"})
        assert made.teacher_server_urls == {"t": "http://gpu:8001"}
    with pytest.raises(DataError, match="got x"):
        export_routes(routed("t", "x", "t"), [local], model)


def test_trl_finds_the_server_of_every_row(models, tmp_path):
    pytest.importorskip("trl.experimental.async_distillation", reason="TRL has this trainer from 1.16 on")
    from trl.experimental.async_distillation import AsyncDistillationConfig
    from trl.experimental.async_distillation.async_rollout_worker import _AsyncRolloutLoop

    teachers = [teacher("big", models["qwen"], "http://gpu1:8000/v1"), teacher("small", models["qwen"])]
    made = export_routes(routed("big", "small", "big"), teachers, models["qwen"])
    how = AsyncDistillationConfig(
        output_dir=str(tmp_path), teacher_server_urls=dict(made.teacher_server_urls), bf16=False, use_cpu=True
    )
    shared = dict.fromkeys(
        ("rollout_buffer", "model_version_value", "heartbeat_value", "failed_event", "exception_info_queue",
         "metrics_queue")
    )  # fmt: skip
    loop = _AsyncRolloutLoop(
        model_name=models["qwen"], dataset=made.data, processing_class=AutoTokenizer.from_pretrained(models["qwen"]),
        eos_token_ids=[0], teacher_server_urls=how.teacher_server_urls, **shared,
    )  # fmt: skip
    rows = [next(loop._dataset_iter) for _ in PROMPTS]
    assert [loop._resolve_teacher_server_url(row) for row in rows] == [
        ("big", "http://gpu1:8000"),
        ("small", "http://gpu:8000"),
        ("big", "http://gpu1:8000"),
    ]
    text = loop.tokenizer.apply_chat_template(rows[1]["prompt"], tokenize=False, add_generation_prompt=True)
    assert "Name a sea.<|im_end|>" in text
    loop._loop.close()
