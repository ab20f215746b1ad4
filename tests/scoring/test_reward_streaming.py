"""Reward models as a GPU runs them, on the CPU: what each answer gets alone, and one transfer."""

import math

import pytest
import torch

from persyn_hf.errors import ScoringError
from persyn_hf.scoring import reward_model
from persyn_hf.scoring.attention import PACKED
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.reward_model import reward_scores
from tests.scoring import models

PROMPTS = ["hello the hello", "no", "what is the the?", "no", "hello"]
TEXTS = ["yes", "the hell " * 9, "hello there", "no\n\nway " * 4, "the"]
NAMES = [f"row {row}" for row in range(5)]


def streamed(folder, dtype="float32"):
    """A reward model on the CPU that is run as one on a GPU."""
    return reward_model._load.__wrapped__(folder, "test", dtype, torch.device("cpu"), streamed=True)


@pytest.mark.parametrize(("kind", "masked"), [("llama", False), ("gemma2", False), ("qwen2", False), ("bert", True)])
def test_a_batch_gives_what_an_answer_gets_alone(kind, masked, tmp_path):
    folder = models.save_reward_model(tmp_path, kind)
    model, plain = streamed(folder), reward_model.load_reward_model(folder, dtype="float64")
    assert model.masked == masked
    assert (model.model.config._attn_implementation == PACKED) == (not masked)
    alone = [reward_scores(plain, [prompt], [text], ["row"])[0] for prompt, text in zip(PROMPTS, TEXTS, strict=True)]
    assert len({round(score, 2) for score in alone}) > 2
    for budget in (None, 1, 120):
        assert reward_scores(model, PROMPTS, TEXTS, NAMES, budget) == pytest.approx(alone, abs=1e-3)


def test_scores_come_to_the_host_once(tmp_path, monkeypatch):
    model, brought = streamed(models.save_reward_model(tmp_path, "llama")), []
    model.growth.settled = True
    for name in ("tolist", "item", "__float__", "__bool__"):
        real = getattr(torch.Tensor, name)

        def noted(self, *args, _real=real, _name=name, **how):
            brought.append(_name)
            return _real(self, *args, **how)

        monkeypatch.setattr(torch.Tensor, name, noted)
    reward_scores(model, PROMPTS, TEXTS, NAMES, 60)
    assert brought == ["tolist"]


def test_out_of_memory_halves_and_goes_on(tmp_path, monkeypatch):
    model = streamed(models.save_reward_model(tmp_path, "llama"))
    expected = reward_scores(model, PROMPTS, TEXTS, NAMES)
    real, rows = reward_model._logits, []

    def scarce(model, arrays, device, masked):
        rows.append(len(arrays["last"]))
        if rows[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, arrays, device, masked)

    monkeypatch.setattr(reward_model, "_logits", scarce)
    assert reward_scores(model, PROMPTS, TEXTS, NAMES) == pytest.approx(expected, abs=1e-4)
    assert rows[0] == 5 and model.growth.settled and model.growth.size < 16384
    monkeypatch.setattr(reward_model, "_logits", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("out")))
    with pytest.raises(ScoringError, match="does not fit in the memory of cpu"):
        reward_scores(model, PROMPTS, TEXTS, NAMES)


def test_batches_grow(tmp_path):
    model = streamed(models.save_reward_model(tmp_path, "llama"))
    growth = Growth(64)
    encoded = [{"input_ids": list(range(5, 5 + length % 7 + 3))} for length in range(200)]
    found = reward_model._all_rows(model, encoded, growth, None)
    assert growth.size > 64 or growth.settled
    assert not any(map(math.isnan, found))
