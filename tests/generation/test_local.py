import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from persyn_hf.config import Sampling
from persyn_hf.errors import RowError, TeacherDownError
from persyn_hf.generation.client import Request
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.generation.local import _draw, _load_once, complete_batch, load_local_model

SMALL = {"max_tokens": 24}


def request(text, seed=0, **sampling):
    return Request(text, ({"role": "user", "content": text},), Sampling(**{**SMALL, **sampling}), seed)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tiny_lm):
    return load_local_model(str(tiny_lm), None, "float32", "cpu", "tiny")


def answer(local, *requests):
    return complete_batch(local, requests, threading.Event())


def test_greedy_is_what_generate_gives(tiny, tiny_lm):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    chat = [{"role": "user", "content": "Say it"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = model.generate(**ids, do_sample=False, max_new_tokens=24)[0, ids["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    [completion] = answer(tiny, request("Say it", temperature=0))
    assert completion.text == text
    assert completion.completion_tokens == len(new)
    assert completion.prompt_tokens == ids["input_ids"].shape[1]


def test_a_row_depends_on_its_own_seed_only(tiny):
    requests = [
        request("a"), request("a much longer prompt than the first", 5, temperature=1.3), request("b", temperature=0),
        request("c", 9, top_p=0.6, max_tokens=40), request("a", 1),
    ]  # fmt: skip
    together = answer(tiny, *requests)
    assert together == [answer(tiny, one)[0] for one in requests]
    assert together == answer(tiny, *reversed(requests))[::-1]
    assert together[0].text != together[4].text


def test_ends_with_length_and_counts_tokens(tiny):
    [completion] = answer(tiny, request("Hi", temperature=0, max_tokens=3))
    assert (completion.finish_reason, completion.completion_tokens) == ("length", 3)


def test_a_stop_string_ends_the_answer_and_is_cut(tiny):
    [whole] = answer(tiny, request("Hi", temperature=0))
    stop = whole.text[4:6]
    [cut] = answer(tiny, request("Hi", temperature=0, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_prompt_that_does_not_fit_fails_alone(tiny):
    long, short = answer(tiny, request("x" * 600), request("x"))
    assert isinstance(long, RowError)
    assert "the context is 512 tokens" in str(long)
    assert short.text


def test_an_answer_ends_where_the_context_does(tiny):
    [completion] = answer(tiny, request("x" * 480, max_tokens=400))
    assert completion.prompt_tokens + completion.completion_tokens <= 512


def test_a_stopped_batch_is_given_up(tiny):
    stop = threading.Event()
    stop.set()
    [result] = complete_batch(tiny, [request("Hi")], stop)
    assert isinstance(result, RowError)


def test_draws_follow_the_nucleus_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 1000)
    probabilities = logits.softmax(-1)[0].double()
    draws = torch.linspace(0, 1, 5001, dtype=torch.float64)[:-1, None]
    many = logits.expand(len(draws), -1)
    everything = torch.bincount(_draw(many, torch.ones(len(draws), 1), draws), minlength=1000) / len(draws)
    assert (everything - probabilities).abs().max() < 3e-4
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].cumsum(0) < 0.5).sum()) + 1
    nucleus = torch.zeros(1000, dtype=torch.float64)
    nucleus[order[:size]] = probabilities[order[:size]] / probabilities[order[:size]].sum()
    half = torch.bincount(_draw(many, torch.full((len(draws), 1), 0.5), draws), minlength=1000) / len(draws)
    assert (half - nucleus).abs().max() < 3e-4
    assert int((half > 0).sum()) == size


def test_several_teachers_share_one_model(tiny_lm, monkeypatch):
    loads = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loads.append(a) or real(*a, **k))
    _load_once.cache_clear()
    common = {"model": str(tiny_lm), "backend": "local", "sampling": {"max_tokens": 12}}
    teachers = [{"name": "a", **common}, {"name": "b", **common, "system_prompt": "Shout."}]
    first = generate_parallel(["one", "two"], teachers, progress=False)
    again = generate_parallel(["two", "one"], teachers[::-1], progress=False)
    assert len(loads) == 1
    assert first["teacher"][:] == ["a", "b", "a", "b"]
    assert first[1]["prompt_tokens"] > first[0]["prompt_tokens"]
    by_row = {(row["prompt"], row["teacher"]): row["completion"] for row in again}
    assert by_row == {(row["prompt"], row["teacher"]): row["completion"] for row in first}


def test_a_folder_that_is_no_model_takes_its_teacher_down(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TeacherDownError, match="cannot load"):
        load_local_model(str(tmp_path), None, "auto", None, "x")
    table = generate_parallel(["Hi"], [{"name": "t", "model": str(tmp_path), "backend": "local"}], progress=False)
    assert "cannot load" in table[0]["error"]


def test_the_real_model_ends_its_turns(models):
    """SmolLM2's pad id is its end-of-turn token: a mask by ids would hide the turns of the prompt."""
    folder = str(models / "SmolLM2-135M-Instruct")
    assert load_local_model(folder, None, "auto", "cpu", "real").model.dtype == torch.bfloat16
    # In bfloat16 the first two candidates of the short prompt are so near that padding may swap them.
    local = load_local_model(folder, None, "float32", "cpu", "real")
    short = request("What is the capital of France?", temperature=0, max_tokens=12)
    long = request("Say hello. " * 8, temperature=0, max_tokens=4)
    [alone] = answer(local, short)
    assert alone.text == "The capital of France is Paris."
    assert alone.finish_reason == "stop"
    assert answer(local, long, short)[1] == alone


def test_models_that_load_at_once_keep_their_tied_weights(tiny_lm, tmp_path):
    import json
    import shutil
    from concurrent.futures import ThreadPoolExecutor

    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

    from persyn_hf.generation.local import load_local_model

    tie = PreTrainedModel.tie_weights
    folders = [str(tmp_path / str(number)) for number in range(6)]
    settings = json.loads((tiny_lm / "config.json").read_text()) | {"tie_word_embeddings": True}
    for folder in folders:
        shutil.copytree(tiny_lm, folder)
        LlamaForCausalLM(LlamaConfig.from_dict(settings)).save_pretrained(folder)
    with ThreadPoolExecutor(6) as threads:
        loaded = list(threads.map(lambda folder: load_local_model(folder, None, "float32", "cpu", folder), folders))
    assert PreTrainedModel.tie_weights is tie
    for one in loaded:
        assert one.model.lm_head.weight is one.model.model.embed_tokens.weight


def test_the_one_most_likely_token_is_greedy_decoding(tiny):
    [greedy] = answer(tiny, request("Say it", temperature=0))
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert answer(tiny, request("Say it", seed=3, extra_body=extra))[0].text == greedy.text
    assert answer(tiny, request("Say it", seed=3))[0].text != greedy.text
    unlimited = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert answer(tiny, request("Say it", seed=3, extra_body=unlimited)) == answer(tiny, request("Say it", seed=3))


def test_limits_of_one_row_leave_the_others_alone(tiny):
    rows = [
        request("a"), request("b", 5, extra_body={"top_k": 3}),
        request("a longer prompt", 6, extra_body={"min_p": 0.2}),
        request("c", temperature=0, extra_body={"repetition_penalty": 1.5}), request("d", 2),
    ]  # fmt: skip
    assert answer(tiny, *rows) == [answer(tiny, one)[0] for one in rows]


def test_a_repetition_penalty_is_what_generate_makes_of_it(tiny, tiny_lm):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_lm), AutoTokenizer.from_pretrained(tiny_lm)
    chat = [{"role": "user", "content": "Say it"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = model.generate(**ids, do_sample=False, max_new_tokens=24, repetition_penalty=1.3)
    text = tokenizer.decode(new[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    [completion] = answer(tiny, request("Say it", temperature=0, extra_body={"repetition_penalty": 1.3}))
    assert completion.text == text
    assert answer(tiny, request("Say it", temperature=0))[0].text != text


def test_no_draw_leaves_the_tokens_that_are_allowed():
    logits = torch.full((64, 600), float("-inf"))
    logits[:, :3] = torch.tensor([1.0, 0.5, 0.2])
    draws = torch.linspace(0, 1 - 1e-12, 64, dtype=torch.float64)[:, None]
    for top_p in (1.0, 0.999999):
        assert _draw(logits, torch.full((64, 1), top_p), draws).max() <= 2


def test_without_a_seed_every_draw_is_another(tiny):
    one = Request("a", ({"role": "user", "content": "a"},), Sampling(**SMALL, seed=None), None)
    assert len({answer(tiny, one)[0].text for _ in range(4)}) > 1
