"""The probe that covers the prompts."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from persyn_hf import sample_probe
from persyn_hf.errors import ConfigError
from persyn_hf.routing.probe import cover


def plain_cover(points: np.ndarray, size: int, first: int) -> list[int]:
    """Greedy k-center as it is written down: one farthest row after the other."""
    points = points - points.mean(axis=0)
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    chosen = [first]
    while len(chosen) < size:
        nearest = np.min([1 - points @ points[row] for row in chosen], axis=0)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def test_the_choice_is_that_of_the_plain_algorithm() -> None:
    points = np.random.default_rng(0).normal(size=(400, 8))
    chosen = cover(points, 150, seed=3).tolist()
    assert chosen == plain_cover(points, 150, chosen[0])
    assert chosen == cover(points, 150, seed=3).tolist() and chosen[0] != cover(points, 1, seed=4)[0]


def test_equal_rows_are_chosen_once_each() -> None:
    points = np.repeat(np.eye(3), 5, axis=0)
    chosen = cover(points, 15)
    assert sorted(chosen.tolist()) == list(range(15))
    assert len({row // 5 for row in chosen[:3].tolist()}) == 3


def test_every_topic_is_covered(tiny_bert: str) -> None:
    texts = [f"code code {number}" for number in range(90)] + ["poem poem sea", "tax law tax", "dog cat run"]
    prompts = Dataset.from_dict({"prompt": texts})
    probe = sample_probe(prompts, 12, method="cover", backbone=tiny_bert)
    assert set(texts[90:]) <= set(probe["prompt"])
    order = [texts.index(text) for text in probe["prompt"]]
    assert order == sorted(order) and len(set(order)) == 12
    assert sample_probe(prompts, 12, method="cover", backbone=tiny_bert)["prompt"][:] == probe["prompt"][:]


def test_what_cannot_be_drawn() -> None:
    prompts = Dataset.from_dict({"prompt": ["a", "b", "c"]})
    assert len(sample_probe(prompts, 2, seed=1)) == 2
    with pytest.raises(ConfigError, match="at most the number of prompts, 3, got 4"):
        sample_probe(prompts, 4, method="cover", embeddings=np.eye(3))
    with pytest.raises(ConfigError, match="needs a `backbone`"):
        sample_probe(prompts, 2, method="cover")
    with pytest.raises(ConfigError, match="'random' or 'cover', got 'best'"):
        sample_probe(prompts, 2, method="best")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a row for each of 3"):
        sample_probe(prompts, 2, method="cover", embeddings=np.eye(2))
