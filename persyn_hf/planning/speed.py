"""Measures this machine's speed with a short matrix multiplication, to predict the time of models in this process."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

from persyn_hf.config import Teacher
from persyn_hf.errors import PersynError
from persyn_hf.packages import absent
from persyn_hf.planning.lengths import Lengths
from persyn_hf.planning.models import Scorer, model_size

#: Duration of one measurement, in seconds.
_SECONDS = 0.3
#: Share of a multiplication's speed that generation and scoring are taken to reach, their other work included.
_GENERATION, SCORING = 0.8, 0.5
#: Rows of a multiplication that represents a forward pass over many tokens.
MANY = 512
#: Numbers in the weights of a measurement. Like a model's weights, they exceed the CPU cache.
_WEIGHTS = 30_000_000


@lru_cache(maxsize=16)
def measured_flops(dtype: str, device: str | None, rows: int) -> float:
    """Measures the floating-point operations per second of multiplying rows with weights.

    Args:
        dtype (`str`): Type of the numbers: `float32`, `bfloat16` or `float16`.
        device (`str`, *optional*): Device to measure. Default: a GPU if available, else the CPU.
        rows (`int`): Number of rows in one multiplication, which is the batch size.
    """
    import torch

    from persyn_hf.models.device import choose_device, wait_for

    chosen = choose_device(device)
    size = 1024
    weights = torch.ones((_WEIGHTS // size**2, size, size), dtype=getattr(torch, dtype), device=chosen)
    values = torch.ones((rows, size), dtype=weights.dtype, device=chosen)
    torch.matmul(values, weights[0])
    wait_for(chosen)
    done, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < _SECONDS or not done:
        for weight in weights:
            torch.matmul(values, weight)
            done += 1
            if time.perf_counter() - began > 4 * _SECONDS:
                break
        wait_for(chosen)
        seconds = time.perf_counter() - began
    return 2.0 * rows * size**2 * done / seconds


def timed_scorer(scorer: Scorer, device: str | None) -> Scorer:
    """Returns a scorer with its predicted time in this process."""
    return replace(scorer, seconds=scorer.flops / (measured_flops(scorer.dtype, device, MANY) * SCORING))


def local_seconds(teacher: Teacher, answers: float, lengths: Lengths) -> float | None:
    """Predicts the time of answers from a teacher in this process, in seconds; `None` if it cannot be predicted.

    A token of a prompt or an answer takes `2 · parameters` operations.

    Args:
        teacher (`Teacher`): Teacher with `backend: local`.
        answers (`float`): Number of answers.
        lengths (`Lengths`): Tokens per prompt and answer.
    """
    if absent("torch", "transformers"):
        return None
    try:
        parameters, dtype = model_size(teacher.model, teacher.revision, teacher.dtype)
    except PersynError:
        return None
    rows = max(1, min(teacher.batch_size, round(answers) or 1))
    writing = measured_flops(dtype, teacher.device, rows) * _GENERATION
    reading = measured_flops(dtype, teacher.device, MANY) * SCORING
    tokens, read = answers * lengths.completion[teacher.name], answers * lengths.prompt[teacher.name]
    return 2.0 * parameters * (tokens / writing + read / reading)
