from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from typer.testing import CliRunner

from persyn_hf import evaluate_router
from persyn_hf.cli import app
from persyn_hf.errors import RouterMismatchError
from persyn_hf.routing.router import PersynRouter
from persyn_hf.routing.training import train_router

from .conftest import TEACHERS, make_scored


def with_learnability(scored: Dataset) -> list[dict]:
    loss = {"alpha": -3.0, "beta": -2.0, "gamma": -0.5}
    return [{**row, "learnability": loss[row["teacher"]]} for row in scored.to_list()]


@pytest.fixture(scope="module")
def router(tiny_bert: str, tmp_path_factory: pytest.TempPathFactory) -> PersynRouter:
    teachers = [{"name": name, "family": name[0]} for name in TEACHERS]
    folder = tmp_path_factory.mktemp("router")
    return train_router(with_learnability(make_scored(seed=1)), tiny_bert, "s", folder, teachers=teachers, folds=2)


def test_every_policy_beside_the_router_chosen_on_the_training_prompts(
    router: PersynRouter, capsys: pytest.CaptureFixture[str]
) -> None:
    # On these prompts alpha is best for all; on the training prompts gamma was.
    held_out = [row for row in make_scored(90, seed=5).to_list() if row["prompt"].startswith("code")]
    result = evaluate_router(router, held_out, with_learnability(make_scored(seed=1)), student_family="b")
    assert list(result.policies) == [
        "router", "random", "best_single", "strong", "mix", "family-strong", "car", "knn", "oracle",
    ]  # fmt: skip
    means = {name: np.mean([r["reward"] for r in held_out if r["teacher"] == name]) for name in TEACHERS}
    got = {name: policy.reward.mean for name, policy in result.policies.items()}
    assert got["best_single"] == pytest.approx(means["gamma"]) == pytest.approx(got["strong"])
    assert got["family-strong"] == pytest.approx(means["beta"])
    assert got["car"] == pytest.approx(means["gamma"])  # by far the most learnable
    assert got["router"] > means["alpha"] - 0.02 and got["knn"] > means["alpha"] - 0.02
    assert got["oracle"] >= max(got.values())
    top = result.policies["oracle"]
    assert (top.regret.mean, top.gap_closed.mean, top.hit1.mean) == (0.0, 1.0, 1.0)
    assert result.policies["router"].regret.mean == pytest.approx(got["oracle"] - got["router"])
    assert result.gap_closed.low > 0.8 and result.pair_accuracy.low > 0.9
    assert result.rankings["best_single"].pair_accuracy.mean < 0.7  # gamma first is wrong here
    shown = capsys.readouterr().out
    for label in ("Family-Strong", "CAR", "Mix", "kNN", "oracle", "pair accuracy", "ECE"):
        assert label in shown
    assert f"{result.gap_closed.mean:.3f}" in str(result)


def test_without_a_probe_the_checkpoint_says_who_was_best(router: PersynRouter) -> None:
    held_out = with_learnability(make_scored(60, seed=6))
    alone = evaluate_router(router, held_out, show=False)
    told = evaluate_router(router, held_out, with_learnability(make_scored(seed=1)), show=False)
    assert set(told.policies) - set(alone.policies) == {"knn"} and not alone.in_sample
    for name in ("router", "best_single", "strong", "mix", "car"):
        assert alone.policies[name] == told.policies[name]
    with pytest.raises(RouterMismatchError, match="stranger"):
        evaluate_router(router, [{**row, "teacher": row["teacher"].replace("beta", "stranger")} for row in held_out])


def test_evaluate_command(router: PersynRouter, tmp_path: Path) -> None:
    make_scored(60, seed=6).to_parquet(tmp_path / "held-out.parquet")
    make_scored(seed=1).to_parquet(tmp_path / "probe.parquet")
    folder = router._loaded.path
    arguments = ["evaluate", folder, str(tmp_path / "held-out.parquet"), "--probe", str(tmp_path / "probe.parquet")]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "result.json")])
    assert done.exit_code == 0, done.output
    assert "│ PerSyn router" in done.output and "random teacher" in done.output
    assert "best single teacher" in done.output and "60 prompts to 3 teachers" in done.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["policies"]["router"]["gap_closed"]["low"] > 0.8 and "knn" in result["policies"]
    missing = CliRunner().invoke(app, ["evaluate", folder, str(tmp_path / "nothing.parquet")])
    assert missing.exit_code != 0 and "nothing.parquet" in str(missing.exception)
