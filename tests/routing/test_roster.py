from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from persyn_hf import add_teacher, remove_teacher
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.routing.backbone import final_linear
from persyn_hf.routing.rewards import read_rewards
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.training import train_router

from .conftest import make_scored

ASKED = ["code code sea 1", "poem poem sea 2", "code tax", "law dog 7"]


def with_delta(scored: Dataset, code: float, poem: float, noise: float = 0.05) -> list[dict]:
    """The table with one more teacher, whose reward depends on the topic."""
    random = np.random.default_rng(7)
    rows = scored.to_list()
    new = [
        {**row, "teacher": "delta", "reward": (code if row["prompt"].startswith("code") else poem) + error}
        for row, error in zip(rows[::3], noise * random.normal(size=len(rows)), strict=False)
    ]
    return rows + new


def weights(router: PersynRouter) -> tuple[np.ndarray, np.ndarray | None]:
    has_bias, linear = final_linear(router.model)
    return linear.weight.detach().numpy(), linear.bias.detach().numpy() if has_bias else None


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_llama"])
def test_one_row_more_and_the_others_do_not_move(
    backbone: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    scored = make_scored(noise=0.2)
    old = train_router(scored, request.getfixturevalue(backbone), "org/student", fallback="none", folds=2)
    teacher = {"name": "delta", "model": "org/delta", "family": "d", "endpoint": "http://secret"}
    new = add_teacher(old, with_delta(scored, code=0.1, poem=1.3, noise=0.2), tmp_path, teacher=teacher)
    assert new.teachers == [*old.teachers, "delta"]
    assert new.metadata["teachers"][-1] == {"name": "delta", "model": "org/delta", "family": "d"}
    assert new.metadata["roster"] == [{"added": "delta", "prompts": 120}]
    assert abs(new.metadata["probe_means"]["reward"]["delta"] - 0.7) < 0.05
    np.testing.assert_array_equal(weights(new)[0][:3], weights(old)[0])
    if backbone == "tiny_bert":
        np.testing.assert_array_equal(weights(new)[1][:3], weights(old)[1])
    np.testing.assert_allclose(new.scores(ASKED)[:, :3], old.scores(ASKED), rtol=1e-6, atol=1e-6)
    if backbone == "tiny_bert":
        assert new.routes(new.scores(ASKED[:2])) == ["alpha", "delta"]
    again = remove_teacher(new, "delta")
    np.testing.assert_array_equal(weights(again)[0], weights(old)[0])
    assert again.metadata["roster"][-1] == {"removed": "delta"} and again.teachers == old.teachers
    assert "delta" not in again.metadata["probe_means"]["reward"]


def test_the_new_scores_are_bradley_terry_scores(tiny_bert: str) -> None:
    """Of fresh answers, the newcomer wins about as often as the scores say."""
    train, fresh = (with_delta(make_scored(n, seed=n, noise=0.4), 0.3, 0.8, noise=0.4) for n in (250, 400))
    old = [row for row in train if row["teacher"] != "delta"]
    router = add_teacher(train_router(old, tiny_bert, "s"), train)
    table = read_rewards(fresh).reordered(router.teachers)
    scores = router.scores(table.prompts)
    poems = np.array([prompt.startswith("poem") for prompt in table.prompts])
    for topic in (poems, ~poems):
        for other in range(3):
            said = 1 / (1 + np.exp(scores[topic, other] - scores[topic, 3]))
            won = table.rewards[topic, 3] > table.rewards[topic, other]
            assert abs(said.mean() - won.mean()) < 0.12, (router.teachers[other], said.mean(), won.mean())


def test_fallback_moves_to_a_better_newcomer_and_back(tiny_bert: str) -> None:
    noise = make_scored(learnable=False, noise=0.3, seed=3)
    with pytest.warns(UserWarning, match="does not beat"):
        router = train_router(noise, tiny_bert, "s")
    assert router.fallback == "beta"
    assert add_teacher(router, with_delta(noise, 0.1, 0.1)).fallback == "beta"
    better = add_teacher(router, with_delta(noise, 0.9, 0.9))
    assert better.fallback == "delta"
    scores = better.scores(ASKED)
    assert (scores.argmax(axis=1) == 3).all() and np.ptp(scores, axis=0).max() < 1e-4
    assert remove_teacher(better, "delta").fallback == "beta"


def test_wrong_tables_and_names_are_refused(router_folder: str, scored: Dataset) -> None:
    router = PersynRouter.from_pretrained(router_folder)
    with pytest.raises(RouterMismatchError, match="expected one that is not in"):
        add_teacher(router, scored)
    with pytest.raises(RouterMismatchError, match="must describe all teachers"):
        add_teacher(router, with_delta(scored, 0.1, 0.2), teacher={"name": "epsilon"})
    with pytest.raises(DataError, match="nothing to fit"):
        tied = [{**row, "reward": 0.5} for row in with_delta(scored, 0.5, 0.5)]
        add_teacher(router, tied)
    with pytest.raises(RouterMismatchError, match="one of the router's teachers"):
        remove_teacher(router, "nobody")
    pair = remove_teacher(router, "gamma")
    with pytest.raises(RouterMismatchError, match="two teachers"):
        remove_teacher(pair, "alpha")
