"""Learnability against a plain float64 reference, and its independence of everything but the answer."""

import os
import random
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from persyn_hf.errors import ConfigError, DataError, MissingColumnError, PromptTooLongError, ScoringError
from persyn_hf.models.device import worker_device
from persyn_hf.models.rendering import render_answers
from persyn_hf.scoring import engine
from persyn_hf.scoring.learnability import persyn_learnability, pin_student
from persyn_hf.scoring.score import score
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
    return own.mean().item(), (ranks.clamp(max=100).sum() / -own.sum()).item(), len(own)


@pytest.mark.parametrize("kind", sorted(models.CONFIGS))
def test_every_architecture_agrees_with_float64(kind, tmp_path):
    folder = models.save(tmp_path, kind)
    metrics = ("mean-logprob", "rsr", "perplexity", "completion_tokens")
    found = persyn_learnability(BATCH, student=folder, metrics=metrics)
    assert load_student(folder).packed == (kind not in ("bloom", "mamba"))
    for row in range(5):
        mean, ratio, tokens = reference(folder, row)
        assert found["learnability"][row] == pytest.approx(mean, abs=1e-4)
        assert found["rsr"][row] == pytest.approx(ratio, rel=1e-3)
        assert found["student_completion_tokens"][row] == tokens
        assert found["perplexity"][row] == pytest.approx(torch.tensor(mean).exp().reciprocal().item(), rel=1e-3)


def test_plain_batches_agree_with_packs(llama):
    packed = persyn_learnability(BATCH, student=llama)
    plain = persyn_learnability(BATCH, student=llama, attn_implementation="eager")
    assert plain["learnability"] == pytest.approx(packed["learnability"], abs=1e-5)
    assert not load_student(llama, attn_implementation="eager").packed


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    budget=st.integers(1, 400),
    size=st.integers(1, 8),
    share=st.booleans(),
    side=st.sampled_from(["left", "right"]),
)
def test_order_budget_neighbours_and_padding_side_do_not_change_a_score(llama, seed, budget, size, share, side):
    draw = random.Random(seed)
    rows = [draw.randrange(5) for _ in range(size)]
    batch = {key: [values[row] for row in rows] for key, values in BATCH.items()}
    settings = {} if share else {"attn_implementation": "sdpa"}
    load_student(llama, **settings).tokenizer.padding_side = side
    alone = persyn_learnability(BATCH, student=llama)["learnability"]
    together = persyn_learnability(batch, student=llama, token_budget=budget, **settings)["learnability"]
    assert together == pytest.approx([alone[row] for row in rows], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_stock_padded_batch_agrees_on_either_side(kind, side, tmp_path):
    folder = models.save(tmp_path, kind)
    student = load_student(folder)
    answers = render_answers(student.tokenizer, *BATCH.values())
    student.tokenizer.padding_side = side
    padded = student.tokenizer.pad([{"input_ids": list(answer.ids)} for answer in answers], return_tensors="pt")
    mask = padded["attention_mask"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    with torch.no_grad():
        logits = model(**padded, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    found = persyn_learnability(BATCH, student=folder)["learnability"]
    for row, answer in enumerate(answers):
        own = logits[row][mask[row].bool()]
        logprobs = torch.log_softmax(own, dim=-1)[:-1].gather(1, torch.tensor(answer.ids[1:])[:, None])
        assert found[row] == pytest.approx(logprobs[answer.span[0] - 1 :].mean().item(), abs=1e-4)


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
    assert persyn_learnability(first, student=llama)["learnability"] == first["learnability"]
    models.save(tmp_path, "gpt2", seed=1)
    with pytest.raises(DataError, match=rf"already hold the scores of {other} \(folder-"):
        persyn_learnability(first | second, student=other, suffix="_2")


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
    empty = persyn_learnability(row | {"completion": "", "finish_reason": "length"}, student=llama)
    assert empty["learnability"] is None
    with pytest.raises(ConfigError, match="metrics"):
        persyn_learnability(row, student=llama, metrics=("likelihood",))
    with pytest.raises(ConfigError, match="first of `metrics` must be one of mean-logprob, rsr, perplexity"):
        persyn_learnability(row, student=llama, metrics=("completion_tokens",))
    with pytest.raises(ConfigError, match="`rank` must be a worker's number"):
        persyn_learnability(row, llama, student=llama)
    with pytest.raises(ConfigError, match="dtype"):
        persyn_learnability(row, student=llama, dtype="int8")


def test_truncation_scores_the_start_and_counts(llama, caplog):
    row = {"prompt": "hello", "completion": "hello the " * 200}
    cut = persyn_learnability(row, student=llama, too_long="truncate")
    assert "1 of 1 answers were truncated" in caplog.text
    student = load_student(llama)
    whole = render_answers(student.tokenizer, ["hello"], [row["completion"]], ["stop"])[0]
    logprobs, targets = models.reference_logprobs(llama, list(whole.ids[:256]), len(whole.prompt_ids))
    assert cut["learnability"] == pytest.approx(logprobs.gather(1, targets[:, None]).mean().item(), abs=1e-4)


def test_cut_answers_are_marked_among_the_whole(llama, caplog):
    batch = {"prompt": ["hello"] * 3, "completion": ["hello", "hello the " * 200, None]}
    cut = persyn_learnability(batch, student=llama, too_long="truncate", metrics=("perplexity", "completion_tokens"))
    assert cut["learnability_truncated"] == [False, True, None]
    assert cut["student_completion_tokens"][1] == 256 - len(
        render_answers(load_student(llama).tokenizer, ["hello"], ["x"], ["stop"])[0].prompt_ids
    )
    assert cut["learnability_metric"] == ["perplexity"] * 3
    assert "1 of 3 answers were truncated" in caplog.text


def test_a_teachers_system_prompt_reaches_the_student_only_where_asked(llama):
    batch = BATCH | {"teacher": ["terse", "plain", "plain", "terse", "terse"]}
    plain = persyn_learnability(batch, student=llama)["learnability"]
    asked = persyn_learnability(batch, student=llama, system_prompts={"terse": "the hell", "other": "x"})[
        "learnability"
    ]
    under = [
        [{"role": "system", "content": "the hell"}, {"role": "user", "content": prompt}] for prompt in BATCH["prompt"]
    ]
    expected = persyn_learnability(BATCH | {"prompt": under}, student=llama)["learnability"]
    for row, teacher in enumerate(batch["teacher"]):
        assert asked[row] == pytest.approx((expected if teacher == "terse" else plain)[row], abs=1e-5)
    assert abs(expected[0] - plain[0]) > 1e-3
    with pytest.raises(MissingColumnError, match="`teacher`"):
        persyn_learnability(BATCH, student=llama, system_prompts={"terse": "x"})


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [worker_device(None, rank) for rank in (None, 0, 1, 2)] == [None, "cuda:0", "cuda:1", "cuda:0"]
    assert worker_device("cpu", 1) == "cpu"


def test_progress_counts_tokens(llama, capsys):
    persyn_learnability(BATCH, student=llama, progress=True)
    assert "tok/s" in capsys.readouterr().err
    persyn_learnability(BATCH, student=llama)
    assert "tok" not in capsys.readouterr().err


PINNED = """
from datasets import Dataset
from persyn_hf import persyn_learnability, pin_student
batch = {"prompt": ["hello"], "completion": ["the hell"]}
pinned = pin_student("org/tiny", "v1")
table = Dataset.from_dict(batch).map(persyn_learnability, batched=True, fn_kwargs=pinned)
print(pinned["revision"], table["student_revision"][0], repr(table["learnability"][0]))
"""


def test_a_student_of_the_hub_is_pinned_to_a_commit_and_read_from_the_cache(tmp_path):
    commit = "0123456789" * 4
    repo = tmp_path / "hub" / "models--org--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "v1").write_text(commit)
    folder = models.save(repo / "snapshots" / commit, "llama")
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PINNED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    first, second, score = done.stdout.split()
    assert (first, second) == (commit, commit)
    expected = persyn_learnability({"prompt": "hello", "completion": "the hell"}, student=folder)["learnability"]
    assert float(score) == pytest.approx(expected, abs=1e-5)


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


def test_an_answer_without_a_score_has_none_and_the_reason(llama, tmp_path):
    """One answer was cut before its first token; a student whose one embedding overflows scores the others."""
    rows = {
        "prompt_id": ["a"] * 3,
        "prompt": ["hello"] * 3,
        "teacher": ["t", "u", "v"],
        "completion": ["hello", "", "the"],
        "finish_reason": ["stop", "length", "stop"],
        "quality": [1.0, 0.0, 0.0],
    }
    scored = score(Dataset.from_dict(rows), llama, None, progress=False)
    assert scored["learnability_error"][:] == [None, "it was cut before its first token", None]
    assert [value is None for value in scored["learnability"]] == [False, True, False]
    assert [value is None for value in scored["reward"]] == [False, True, False]
    model = AutoModelForCausalLM.from_pretrained(models.save(tmp_path, "llama", tie_word_embeddings=False))
    text = models.tokenizer()
    with torch.no_grad():
        model.get_input_embeddings().weight[text("the")["input_ids"][0]] = float("nan")
    model.save_pretrained(tmp_path)
    found = score(Dataset.from_dict(rows), str(tmp_path), None, progress=False)
    assert found["learnability_error"][2] == "the student gives log-probabilities that are not finite"
    assert found["learnability"][0] < 0 and found["learnability"][2] is None
    with pytest.raises(ScoringError, match=r"not finite, for all of 1 answers.*another `dtype`"):
        persyn_learnability({"prompt": "the", "completion": "the"}, student=str(tmp_path))
