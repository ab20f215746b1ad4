"""The way of a GPU, run on the CPU: the same scores as a plain float64 computation, and no wait in between."""

import random
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from persyn_hf.errors import ScoringError
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring import batches, parts, streaming, student
from persyn_hf.scoring.batches import Sharing, plan_batches
from persyn_hf.scoring.engine import score_rendered
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.student import StudentModel, token_scores
from tests.scoring import models

CPU = torch.device("cpu")


#: Where the scores are held against float64: the CPU, and a GPU where there is one.
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def streamed(folder, dtype="float32", attn_implementation=None, device="cpu") -> StudentModel:
    """A student that is run as one on a GPU."""
    where = torch.device(device)
    return student._load.__wrapped__(folder, "test", dtype, where, attn_implementation, streamed=True)


def some_answers(seed=0, prompts=4, teachers=4, longest=60, size=270):
    draw = random.Random(seed)
    found = []
    for _ in range(prompts):
        prompt = tuple(draw.choices(range(size), k=draw.randint(3, 60)))
        for _ in range(draw.randint(1, teachers)):
            found.append(Rendered(prompt, tuple(draw.choices(range(size), k=draw.randint(1, longest)))))
    draw.shuffle(found)
    return found


def references(folder, answers):
    """Sums of log-probabilities and of ranks by plain float64, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    sums, orders = [], []
    for answer in answers:
        start, end = answer.span
        with torch.no_grad():
            logits = model(torch.tensor([answer.ids])).logits[0, start - 1 : end - 1].double()
        logprobs = torch.log_softmax(logits, dim=-1)
        own = logprobs.gather(1, torch.tensor(answer.completion_ids)[:, None])
        sums.append(own.sum().item())
        orders.append(((logprobs > own).sum(1) + 1).clamp(max=100).sum().item())
    return sums, orders


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", sorted(models.CONFIGS))
def test_every_architecture_agrees_with_float64(kind, device, tmp_path, monkeypatch):
    """Packs alone, and sorted batches alone."""
    folder = models.save(tmp_path, kind)
    answers = some_answers(prompts=2)
    sums, orders = references(folder, answers)
    for cost in (0.0, 1e9):
        monkeypatch.setattr(student, "_SHARING_COST", {False: cost, True: cost})
        model = streamed(folder, device=device)
        assert model.streamed and not model.masked
        assert model.packed == (kind not in ("bloom", "mamba"))
        for budget in (None, 150):
            found = score_rendered(model, answers, ranks=True, token_budget=budget)
            for row, one in enumerate(found):
                assert one.learnability == pytest.approx(sums[row] / one.tokens, abs=1e-4)
                assert one.rank == pytest.approx(orders[row], rel=1e-3, abs=1)


def shares(batches):
    return [batch.shared for batch in batches]


def test_a_batch_takes_the_kind_that_its_lengths_make_cheaper():
    """Long prompts with short answers are packed, long answers to short prompts are sorted."""
    many = [Rendered(tuple(range(100)), (1, 2, 3))] * 5
    long = [Rendered((9, 8), tuple(range(length))) for length in (200, 199, 201)]
    plan = list(plan_batches(many + long, range(8), lambda: 1000, Sharing(1.1, False, True)))
    assert [(batch.shared, sorted(batch.rows), batch.tokens) for batch in plan] == [
        (False, [5, 6, 7], 3 * 203),
        (True, [0, 1, 2, 3, 4], 100 + 5 * 2),
    ]
    assert shares(plan_batches(many + long, range(8), lambda: 1000, None)) == [False] * 2
    assert shares(plan_batches(many, range(5), lambda: 1000, Sharing(100.0, False, True))) == [False]
    one = [Rendered((1, 2, 3), tuple(range(n))) for n in (5, 90)]  # in one batch padding costs more than a prompt
    assert shares(plan_batches(one, range(2), lambda: 1000, Sharing(1.1, False, True))) == [True]


def test_batches_hold_what_the_size_allows_and_follow_it():
    answers = some_answers(3, prompts=10)
    sizes = iter([200, 100, 400] + [150] * 100)
    plan = list(plan_batches(answers, range(len(answers)), lambda: next(sizes), None))
    assert [batch.size for batch in plan][:3] == [200, 100, 400]
    assert all(batch.tokens <= batch.size or len(batch.rows) == 1 for batch in plan)
    assert sorted(row for batch in plan for row in batch.rows) == list(range(len(answers)))


def ragged_double(query, key, value, bounds, key_bounds, most, key_most, *, scale, return_aux, **how):
    """FlashAttention over ragged sequences, on the CPU: output `(tokens, heads, dim)`, log-sums `(heads, tokens)`."""
    assert return_aux.lse and bounds.dtype == key_bounds.dtype == torch.int32
    found, total = torch.zeros_like(query), torch.zeros(query.shape[1], len(query))
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    assert how.get("enable_gqa", False) == (groups > 1)
    for first, last, start, end in zip(bounds, bounds[1:], key_bounds, key_bounds[1:], strict=False):
        assert last - first <= most and end - start <= key_most
        scores = torch.einsum("qhd,khd->hqk", query[first:last], key[start:end]) * scale
        if how.get("window_size") == (-1, 0):
            scores.masked_fill_(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), float("-inf"))
        found[first:last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[start:end])
        total[:, first:last] = scores.logsumexp(-1)
    return found, total


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_ragged_kernels_are_given_what_they_ask(kind, tmp_path, monkeypatch):
    from torch.nn.attention import varlen

    calls = []

    def counted(*args, **how):
        calls.append(how.get("window_size"))
        return ragged_double(*args, **how)

    monkeypatch.setattr(varlen, "varlen_attn", counted)
    monkeypatch.setattr(student, "has_ragged_kernel", lambda device, dtype: True)
    monkeypatch.setattr(parts, "_arguments", lambda function: frozenset({"window_size", "enable_gqa"}))
    monkeypatch.setattr(student, "_SHARING_COST", {True: 0.0, False: 0.0})
    folder = models.save(tmp_path, kind)
    model = streamed(folder)
    assert model.sharing.ragged
    assert model.sharing.groups == (kind == "gemma2")  # its layers have soft caps, and windows that cut
    calls.clear()
    answers = some_answers(1)
    found = score_rendered(model, answers)
    sums, _ = references(folder, answers)
    assert [one.logprob / one.tokens for one in found] == pytest.approx(
        [total / one.tokens for total, one in zip(sums, found, strict=True)], abs=1e-4
    )
    assert len(calls) == (0 if kind == "gemma2" else 4)  # two calls for each of two layers, whatever the completions


def test_a_kernel_that_gives_other_numbers_is_not_used(tmp_path, monkeypatch):
    from torch.nn.attention import varlen

    def wrong(query, key, value, *args, **how):
        return torch.zeros_like(query), torch.zeros(query.shape[1], len(query))

    monkeypatch.setattr(varlen, "varlen_attn", wrong)
    monkeypatch.setattr(student, "has_ragged_kernel", lambda device, dtype: True)
    model = streamed(models.save(tmp_path, "llama"))
    assert model.packed and not model.sharing.ragged and model.sharing.groups


def test_a_model_that_looks_ahead_is_masked_and_one_without_a_head_is_awaited(llama, tmp_path, monkeypatch):
    expected = [one.logprob for one in score_rendered(streamed(llama), some_answers(prompts=2))]
    real = student.run_sorted

    def disturbed(body, inputs, masked=False):
        return real(body, inputs, masked) + (0.0 if masked else 1.0)

    monkeypatch.setattr(student, "run_sorted", disturbed)
    model = streamed(llama)
    assert model.streamed and model.masked and not model.packed
    assert [one.logprob for one in score_rendered(model, some_answers(prompts=2))] == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr(student, "_head", lambda model: None)
    model = streamed(llama)
    assert not model.streamed
    assert [one.logprob for one in score_rendered(model, some_answers(prompts=2))] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_attention_of_transformers_runs_in_sorted_batches(llama, implementation):
    model = streamed(llama, attn_implementation=implementation)
    assert model.streamed and not model.packed and not model.masked
    answers = some_answers()
    expected = [one.logprob for one in score_rendered(streamed(llama), answers)]
    assert [one.logprob for one in score_rendered(model, answers)] == pytest.approx(expected, abs=1e-3)


def test_the_host_brings_nothing_back_before_the_end(llama, monkeypatch):
    """One transfer for all answers: no `tolist`, `item` or `float` of a tensor in between."""
    model, brought = streamed(llama), []
    for name in ("tolist", "item", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, *a, _real=real, _name=name, **k: brought.append(_name) or _real(self, *a, **k),
        )
    score_rendered(model, some_answers(prompts=8), ranks=True, token_budget=100)
    assert [name for name in brought if name != "numpy"] == ["tolist", "tolist"]


def test_out_of_memory_halves_and_goes_on(llama, monkeypatch):
    model, answers = streamed(llama), some_answers(2, prompts=3)
    expected = score_rendered(model, answers, ranks=True)
    real, tried = streaming.tile_scores, []

    def scarce(head, hidden, targets, ranks):
        tried.append(len(targets))
        scores = real(head, hidden, targets, ranks)
        if len(targets) > 70:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return scores

    monkeypatch.setattr(streaming, "tile_rows", lambda head: 80)  # the first tile is counted before the second fails
    monkeypatch.setattr(streaming, "tile_scores", scarce)
    growth = Growth(400)
    sums, orders = streaming.stream_sums(model, answers, True, growth)
    assert growth.settled and growth.size < 400 and max(tried) == 80
    assert sums == pytest.approx([one.logprob for one in expected], abs=1e-3)
    assert orders == [one.rank for one in expected]
    monkeypatch.setattr(streaming, "tile_scores", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("out")))
    with pytest.raises(ScoringError, match="does not fit in the memory of cpu"):
        score_rendered(model, answers)
    monkeypatch.setattr(streaming, "tile_scores", lambda *args: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        score_rendered(model, answers)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_out_of_memory_of_a_gpu_halves_and_goes_on(llama):
    model, answers = student.load_student(llama, device="cuda"), some_answers(2, prompts=200, longest=150)
    expected = score_rendered(model, answers, token_budget=2000)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 48 * 2**20) / total)
    try:
        found = score_rendered(model, answers, token_budget=10**6)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-3)


def passes(growth, rate, count=40, room=lambda: True):
    """Full batches at `rate(size)` tokens per second; the first of a size takes a second longer."""
    sizes = []
    for _ in range(count):
        size = growth.size
        warm_up = 1.0 if size not in sizes else 0.0
        sizes.append(size)
        growth.record(size, size, size / rate(size) + warm_up, room)
    return growth


def test_batches_double_until_that_gains_less_than_five_per_cent():
    rates = {1000: 100.0, 2000: 150.0, 4000: 158.0, 8000: 160.0}
    assert (passes(Growth(1000), rates.get).size, passes(Growth(1000), rates.get).settled) == (4000, True)
    assert passes(Growth(1000), lambda size: 100.0).size == 1000
    assert passes(Growth(1000), lambda size: float(size), count=9).size == 4000
    assert passes(Growth(1000, settled=True), lambda size: float(size)).size == 1000
    growth = Growth(1000)
    assert passes(growth, lambda size: float(size), room=lambda: growth.size < 2000).size == 2000
    growth = Growth(1000)
    for _ in range(20):
        growth.record(1000, 400, 1e-9, lambda: True)  # not half full
        growth.record(500, 500, 1e-9, lambda: True)  # of another size
    assert growth.size == 1000
    growth.halve(700)
    assert (growth.size, growth.settled) == (350, True)


def test_a_growing_size_changes_no_score(llama):
    model, answers = streamed(llama), some_answers(5, prompts=12, longest=20)
    expected = [one.logprob for one in score_rendered(model, answers, token_budget=100)]
    growth = Growth(100)
    sums, _ = streaming.stream_sums(model, answers, False, growth)
    assert sums == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("dtype", "abs_"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("how", [{}, {"scale": 0.5}, {"softcap": 3.0}, {"bias": True}])
def test_a_tile_gives_what_the_tiled_pass_gives(dtype, abs_, how):
    torch.manual_seed(0)
    weight, hidden = torch.randn(300, 20, dtype=torch.float64).to(dtype), torch.randn(50, 20).to(dtype)
    how = how | {"bias": torch.randn(300).to(dtype)} if "bias" in how else how
    head, targets = student.OutputLayer(weight, **how), torch.randint(0, 300, (50,))
    scores, ranks = streaming.tile_scores(head, hidden, targets, ranks=True)
    expected, expected_ranks = token_scores(head, hidden, targets, ranks=True)
    assert scores.dtype == expected.dtype
    assert torch.allclose(scores, expected, atol=1e-5 if dtype != torch.float64 else 1e-12)
    assert torch.equal(ranks, expected_ranks)
    wide = student.OutputLayer(weight.double(), **{k: v.double() if k == "bias" else v for k, v in how.items()})
    exact = torch.log_softmax(wide.tile(hidden.double(), 0, 300), -1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(scores.double(), exact, atol=abs_)


def test_the_memory_of_a_tile_does_not_grow_with_the_vocabulary():
    for size, dtype in ((49152, torch.float32), (128256, torch.bfloat16), (262144, torch.bfloat16)):
        head = student.OutputLayer(torch.empty(size, 8, dtype=dtype, device="meta"))
        held = streaming.tile_rows(head) * size * (head.weight.element_size() + 8)
        assert 0.7 * 2**29 < held <= 2**29
    assert streaming.tile_rows(head, tile_bytes=1) == 1


def test_bfloat16_is_as_near_to_float64_as_the_padded_loop(tmp_path):
    from tests.benchmarks.bench_scoring import padded_loop

    folder = models.save(tmp_path, "llama")
    answers = some_answers(7, prompts=6)
    sums, _ = references(folder, answers)
    exact = [total / len(answer.completion_ids) for total, answer in zip(sums, answers, strict=True)]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
    ours = [one.learnability for one in score_rendered(streamed(folder, "bfloat16"), answers)]
    off, their_off = (
        sum(abs(a - b) for a, b in zip(found, exact, strict=True)) / len(exact)
        for found in (ours, padded_loop(plain, answers, 8))
    )
    assert off <= 1.1 * their_off


def test_tf32_is_off_inside_and_as_it_was_outside():
    older = "matmul.allow_tf32 = True; read = lambda: (matmul.allow_tf32, torch.backends.cudnn.allow_tf32)"
    newer = "matmul.fp32_precision = 'tf32'; read = lambda: (matmul.fp32_precision, 'tf32')"
    for setting, inside, outside in (
        (older, "(False, False)", "(True, True)"),
        (newer, "('ieee', 'tf32')", "('tf32', 'tf32')"),
    ):
        code = (
            "import torch\nfrom persyn_hf.models.device import exact_float32\nmatmul = torch.backends.cuda.matmul\n"
            f"{setting}\nwith exact_float32():\n    print(read())\nprint(read())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [inside, outside]


def test_inputs_go_up_in_one_piece():
    arrays = batches.sorted_arrays([Rendered((1, 2), (3,)), Rendered((4,), (5, 6, 7))], [0, 1])
    found = batches.upload(arrays, CPU)
    assert {name: part.tolist() for name, part in found.items()} == {
        "ids": [[1, 2, 3, 0], [4, 5, 6, 7]],
        "lengths": [3, 4],
        "sources": [1, 4, 5, 6],
        "targets": [3, 5, 6, 7],
        "owners": [0, 1, 1, 1],
    }
    assert len({part.untyped_storage().data_ptr() for part in found.values()}) == 1
