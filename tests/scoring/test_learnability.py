"""Learnability against a plain float64 reference, and its independence of everything but the answer."""

import random

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persyn_hf.errors import ConfigError, DataError, MissingColumnError, PromptTooLongError, ScoringError
from persyn_hf.scoring import engine
from persyn_hf.scoring.learnability import persyn_learnability, pin_student
from persyn_hf.scoring.rendering import render_answers
from persyn_hf.scoring.student import load_student, token_scores
from tests.scoring import models

PROMPTS = ["hello the hello " * 3, "what is the the?"]
BATCH = {
    "prompt": [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1], PROMPTS[0]],
    "completion": ["hello there hello", "\n\nhell", "", "yes", "no\n\nway, the hell " * 4],
    "finish_reason": ["stop", "stop", "stop", None, "length"],
}


def reference(folder, row):
    tokenizer = load_student(folder).tokenizer
    text = f"<|im_start|>user\n{BATCH['prompt'][row]}<|im_end|>\n<|im_start|>assistant\n"
    start = len(tokenizer(text)["input_ids"])
    end = "" if BATCH["finish_reason"][row] == "length" else "<|im_end|>"
    ids = tokenizer(text)["input_ids"] + tokenizer(BATCH["completion"][row] + end)["input_ids"]
    logprobs, targets = models.reference_logprobs(folder, ids, start)
    own = logprobs.gather(1, targets[:, None])[:, 0]
    ranks = (logprobs > own[:, None]).sum(1) + 1
    return own.mean().item(), (ranks.clamp(max=100).sum() / -own.sum()).item()


@pytest.mark.parametrize("kind", sorted(models.CONFIGS))
def test_every_architecture_agrees_with_float64(kind, tmp_path):
    folder = models.save(tmp_path, kind)
    found = persyn_learnability(BATCH, student=folder, metrics=("mean-logprob", "rsr", "perplexity"))
    assert load_student(folder).packed == (kind not in ("bloom", "mamba"))
    for row in range(5):
        mean, ratio = reference(folder, row)
        assert found["learnability"][row] == pytest.approx(mean, abs=1e-4)
        assert found["rsr"][row] == pytest.approx(ratio, rel=1e-3)
        assert found["perplexity"][row] == pytest.approx(torch.tensor(mean).exp().reciprocal().item(), rel=1e-3)


def test_plain_batches_agree_with_packs(llama):
    packed = persyn_learnability(BATCH, student=llama)
    plain = persyn_learnability(BATCH, student=llama, attn_implementation="eager")
    assert plain["learnability"] == pytest.approx(packed["learnability"], abs=1e-5)
    assert not load_student(llama, attn_implementation="eager").packed


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 400), size=st.integers(1, 8), share=st.booleans())
def test_order_budget_and_neighbours_do_not_change_a_score(llama, seed, budget, size, share):
    draw = random.Random(seed)
    rows = [draw.randrange(5) for _ in range(size)]
    batch = {key: [values[row] for row in rows] for key, values in BATCH.items()}
    settings = {} if share else {"attn_implementation": "sdpa"}
    alone = persyn_learnability(BATCH, student=llama)["learnability"]
    together = persyn_learnability(batch, student=llama, token_budget=budget, **settings)["learnability"]
    assert together == pytest.approx([alone[row] for row in rows], abs=1e-5)


def test_one_row_gives_scalars_and_a_batch_lists(llama):
    row = {key: values[0] for key, values in BATCH.items()}
    single, batch = persyn_learnability(row, student=llama), persyn_learnability(BATCH, student=llama)
    assert single.pop("learnability") == pytest.approx(batch.pop("learnability")[0], abs=1e-5)
    assert single == {key: value[0] for key, value in batch.items()}
    assert single["student"] == llama
    assert single["student_revision"].startswith("folder-")
    assert single["learnability_metric"] == "mean-logprob"


def test_map_batched_unbatched_and_in_workers_agree(llama):
    table = Dataset.from_dict(BATCH)
    batched = table.map(persyn_learnability, batched=True, fn_kwargs=pin_student(llama))
    single = table.map(persyn_learnability, fn_kwargs={"student": llama})
    workers = table.map(persyn_learnability, batched=True, num_proc=2, with_rank=True, fn_kwargs={"student": llama})
    assert single["learnability"][:] == pytest.approx(batched["learnability"][:], abs=1e-5)
    assert workers["learnability"][:] == pytest.approx(batched["learnability"][:], abs=1e-5)


def test_failed_answers_have_no_score(llama):
    batch = BATCH | {
        "completion": ["hello", None, "hello", "a", "b"],
        "error": [None, "timeout", "refused", None, None],
    }
    scores = persyn_learnability(batch, student=llama)["learnability"]
    assert [score is None for score in scores] == [False, True, True, False, False]


def test_a_prompt_of_messages_equals_its_string(llama):
    row = {"prompt": [{"role": "user", "content": "hello", "name": None}], "completion": "the hell"}
    text = {"prompt": "hello", "completion": "the hell"}
    assert persyn_learnability(row, student=llama) == persyn_learnability(text, student=llama)


def test_a_second_student_stands_beside_the_first(llama, tmp_path):
    other = models.save(tmp_path, "gpt2")
    first = BATCH | persyn_learnability(BATCH, student=llama)
    with pytest.raises(DataError, match="suffix"):
        persyn_learnability(first, student=other)
    second = persyn_learnability(first, student=other, suffix="_2")
    assert sorted(second) == ["learnability_2", "learnability_metric_2", "student_2", "student_revision_2"]


def test_bad_rows_and_settings_are_named(llama):
    row = {"prompt": "hello", "completion": "hello", "prompt_id": "abc", "teacher": "t1"}
    with pytest.raises(DataError, match="empty"):
        persyn_learnability(row | {"prompt": " "}, student=llama)
    with pytest.raises(MissingColumnError, match="`completion`"):
        persyn_learnability({"prompt": "hello"}, student=llama)
    with pytest.raises(PromptTooLongError, match=r"prompt abc, teacher t1: .*256"):
        persyn_learnability(row | {"completion": "x" * 300}, student=llama)
    with pytest.raises(PromptTooLongError, match="prompt alone"):
        persyn_learnability(row | {"prompt": "x" * 300}, student=llama, too_long="truncate")
    with pytest.raises(ScoringError, match="without any token"):
        persyn_learnability(row | {"completion": "", "finish_reason": "length"}, student=llama)
    with pytest.raises(ConfigError, match="metrics"):
        persyn_learnability(row, student=llama, metrics=("likelihood",))
    with pytest.raises(ConfigError, match="dtype"):
        persyn_learnability(row, student=llama, dtype="int8")


def test_truncation_scores_the_start_and_counts(llama, caplog):
    row = {"prompt": "hello", "completion": "hello the " * 200}
    cut = persyn_learnability(row, student=llama, too_long="truncate")
    assert "1 of 1 answers were cut" in caplog.text
    student = load_student(llama)
    whole = render_answers(student.tokenizer, ["hello"], [row["completion"]], ["stop"])[0]
    logprobs, targets = models.reference_logprobs(llama, list(whole.ids[:256]), len(whole.prompt_ids))
    assert cut["learnability"] == pytest.approx(logprobs.gather(1, targets[:, None]).mean().item(), abs=1e-4)


def test_out_of_memory_halves_the_budget(llama, monkeypatch):
    expected = persyn_learnability(BATCH, student=llama)["learnability"]
    real, passes = engine._score_rows, []

    def scarce(student, answers, rows, ranks):
        passes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(student, answers, rows, ranks)

    monkeypatch.setattr(engine, "_score_rows", scarce)
    assert persyn_learnability(BATCH, student=llama)["learnability"] == pytest.approx(expected, abs=1e-5)
    assert passes[0] == 5
    monkeypatch.setattr(engine, "_score_rows", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("out")))
    with pytest.raises(ScoringError, match="does not fit in the memory"):
        persyn_learnability(BATCH, student=llama)


def test_other_runtime_errors_are_not_swallowed(llama, monkeypatch):
    monkeypatch.setattr(engine, "_score_rows", lambda *args: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        persyn_learnability(BATCH, student=llama)


def test_bfloat16_stays_near_float32(llama):
    exact = persyn_learnability(BATCH, student=llama)["learnability"]
    rough = persyn_learnability(BATCH, student=llama, dtype="bfloat16")["learnability"]
    assert rough == pytest.approx(exact, abs=0.2)


def test_a_changed_folder_is_noticed(tmp_path):
    folder = models.save(tmp_path / "s", "llama", seed=0)
    pinned = pin_student(folder)
    before = persyn_learnability(BATCH, **pinned)["learnability"]
    models.save(tmp_path / "s", "llama", seed=1)
    with pytest.raises(ScoringError, match="has changed"):
        persyn_learnability(BATCH, **pinned)
    assert persyn_learnability(BATCH, student=folder)["learnability"] != before


def test_a_checkpoint_without_weights_is_refused(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = models.save(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ScoringError, match="lacks weights"):
        persyn_learnability(BATCH, student=folder)


def test_tiles_do_not_change_scores_or_ranks(llama):
    head = load_student(llama).head
    torch.manual_seed(0)
    hidden, targets = torch.randn(40, head.weight.shape[1]), torch.randint(0, 270, (40,))
    logprobs = torch.log_softmax((hidden.double() @ head.weight.double().T), dim=-1)
    own = logprobs.gather(1, targets[:, None])
    for rows, tile in ((7, 31), (512, 4096), (1, 270)):
        found, ranks = token_scores(head, hidden, targets, True, rows, tile)
        assert torch.allclose(found.double(), own[:, 0], atol=1e-4)
        assert torch.equal(ranks, (logprobs > own).sum(1) + 1)
