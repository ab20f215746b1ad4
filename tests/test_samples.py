"""Several samples of one prompt, from the question to the training set."""

from pathlib import Path

import pytest
from datasets import Dataset

from persyn_hf import (
    allocate,
    generate_parallel,
    generate_routed,
    keep_best,
    load_personalized,
    save_personalized,
    score,
)
from persyn_hf.columns import row_keys
from persyn_hf.personalize import personalize
from persyn_hf.routing.rewards import read_rewards
from tests.generation.servers import Teacher as Double
from tests.generation.servers import serve

STUDENT = str(Path(__file__).parent / "fixtures" / "0.1" / "student")
PROMPTS = ["one", "two", "three"]


def last_digit(prompt, completion, answer):
    """A verifier whose verdict depends on the sample: on the last digit of the row's seed."""
    return float(completion.partition("seed=")[2].partition("|")[0][-1])


@pytest.mark.filterwarnings("ignore")
def test_samples_from_the_question_to_the_training_set(tmp_path):
    with serve(Double()) as server:
        teachers = [{"name": name, "model": name, "endpoint": server.url} for name in ("a", "b")]
        rows = [{"prompt": text, "sample": sample} for text in PROMPTS for sample in range(3)]
        answers = generate_parallel(rows, teachers, ledger=tmp_path / "l", progress=False)
        assert len(server.bodies) == 18
        scored = score(answers, STUDENT, last_digit, alpha=0.4, progress=False)
        assert row_keys(scored) == row_keys(answers) and len(set(row_keys(scored))) == 18
        assert len(set(zip(scored["prompt"], scored["quality"], strict=True))) > 6

        table = read_rewards(scored)
        assert table.rewards.shape == (3, 2)
        own = [row["reward"] for row in scored if row["prompt"] == "two" and row["teacher"] == "b"]
        cell = table.rewards[table.prompts.index("two"), table.teachers.index("b")]
        assert len(own) == 3 and cell == pytest.approx(sum(own) / 3)

        routed = Dataset.from_list(rows).add_column("route", ["a", "b", "a"] * 3)
        data = generate_routed(routed, teachers, ledger=tmp_path / "l", progress=False)
        assert len(server.bodies) == 18
        found = {key: row["completion"] for key, row in zip(row_keys(answers), answers, strict=True)}
        assert [found[key] for key in row_keys(data)] == data["completion"][:]

        best = keep_best(scored)
        assert len(best) == 3 and [row["reward"] for row in best] == [
            max(row["reward"] for row in scored if row["prompt"] == text) for text in PROMPTS
        ]
        by_probe = allocate(data, ["a", "b"], policy="oracle", probe=scored)
        assert len(by_probe.routes) == 9 and len(set(by_probe.routes[:3])) == 1

        trained = personalize(data)
        assert row_keys(trained) == row_keys(data)
        save_personalized(data, tmp_path / "saved", license="mit")
        assert load_personalized(tmp_path / "saved", cache_dir=tmp_path / "c").dataset.to_list() == trained.to_list()
