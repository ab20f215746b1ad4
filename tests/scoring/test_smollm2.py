"""The real student: its template, its padding id, and float32 and bfloat16 against float64."""

import pytest

from persyn_hf.models.rendering import render_answers
from persyn_hf.scoring.learnability import persyn_learnability
from persyn_hf.scoring.student import load_student
from tests.conftest import ROOT
from tests.scoring import models

SMOLLM2 = ROOT / ".models" / "SmolLM2-135M-Instruct"
pytestmark = pytest.mark.usefixtures("models")

BATCH = {
    "prompt": ["Name three colours."] * 3,
    "completion": ["Red, green and blue.", "\n\n1. Red\n2. Green", "Colours are purple ideas sleeping furiously"],
    "finish_reason": ["stop", "stop", "length"],
}


def test_the_span_ends_with_the_end_of_turn():
    text = load_student(str(SMOLLM2), dtype="float32").tokenizer
    whole, second, cut = render_answers(text, BATCH["prompt"], BATCH["completion"], BATCH["finish_reason"])
    assert text.decode(whole.prompt_ids).endswith("<|im_start|>assistant\n")
    assert text.decode(whole.completion_ids) == "Red, green and blue.<|im_end|>"
    assert text.decode(second.completion_ids) == "\n\n1. Red\n2. Green<|im_end|>"
    assert text.decode(cut.completion_ids) == BATCH["completion"][2]


@pytest.mark.slow
def test_float32_and_bfloat16_against_float64():
    found = persyn_learnability(BATCH, student=str(SMOLLM2), dtype="float32")["learnability"]
    student = load_student(str(SMOLLM2), dtype="float32")
    assert student.packed
    answers = render_answers(student.tokenizer, BATCH["prompt"], BATCH["completion"], BATCH["finish_reason"])
    expected = []
    for answer in answers:
        logprobs, targets = models.reference_logprobs(str(SMOLLM2), list(answer.ids), answer.span[0])
        expected.append(logprobs.gather(1, targets[:, None]).mean().item())
    assert found == pytest.approx(expected, abs=1e-3)
    rough = persyn_learnability(BATCH, student=str(SMOLLM2), dtype="bfloat16")["learnability"]
    assert rough == pytest.approx(expected, abs=0.05)  # short answers; docs/scoring.md has the long ones
