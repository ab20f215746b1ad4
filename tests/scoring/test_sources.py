"""Several sources of quality: a column each, and one number only where their scales meet."""

import json

import pytest
from datasets import Dataset

from persyn_hf import verifier
from persyn_hf.config import Quality
from persyn_hf.errors import ConfigError, DataError, MissingColumnError, ScoringError
from persyn_hf.scoring.quality import persyn_quality, pin_quality
from persyn_hf.scoring.reward import normalize
from persyn_hf.scoring.score import score
from tests.scoring import models
from tests.scoring.servers import Judge, serve

ANSWERS = {
    "prompt_id": ["a", "a", "b", "b", "b"],
    "prompt": ["hello", "hello", "the", "the", "the"],
    "teacher": ["t1", "t2", "t1", "t2", "t3"],
    "completion": ["2", "A: 2", "A: 5", "3", None],
    "answer": ["2", "2", "3", "3", "3"],
}
LENGTH = "tests.scoring.test_sources:length"


@verifier
def length(prompt, completion, answer):
    return len(completion)


def test_one_scale_needs_no_choice():
    sources = [{"verifier": "math", "weight": 3}, {"verifier": "exact"}]
    found = persyn_quality(ANSWERS, sources=sources)
    assert found == {
        "quality": [1.0, 0.75, 0.0, 1.0, None],
        "quality_math": [1.0, 1.0, 0.0, 1.0, None],
        "quality_exact": [1.0, 0.0, 0.0, 1.0, None],
    }
    single = persyn_quality({key: values[1] for key, values in ANSWERS.items()}, sources=sources)
    assert single == {"quality": 0.75, "quality_math": 1.0, "quality_exact": 0.0}


def test_unlike_scales_are_refused_until_they_are_told_how_to_meet():
    sources = [{"verifier": "math"}, {"verifier": LENGTH, "name": "size"}]
    with pytest.raises(ConfigError, match=r"different scales .math .0\.0, 1\.0., size unknown."):
        persyn_quality(ANSWERS, sources=sources)
    with pytest.raises(ConfigError, match="highest value of size"):
        persyn_quality(ANSWERS, sources=sources, normalize="range")
    with pytest.raises(ConfigError, match="needs all answers to a prompt"):
        persyn_quality(ANSWERS, sources=sources, normalize="minmax")
    sources[1]["range"] = (0, 8)
    found = persyn_quality(ANSWERS, sources=sources, normalize="range")
    assert found["quality_size"] == [1.0, 4.0, 4.0, 1.0, None]
    assert found["quality"] == pytest.approx([(1 + 1 / 8) / 2, (1 + 0.5) / 2, 0.25, (1 + 1 / 8) / 2, None])


def test_a_judge_and_a_verifier_meet_by_their_ranges():
    with serve(Judge(reply=lambda text: "hm" if "[Response]\nA: 5" in text else "10")) as url:
        sources = [{"verifier": "math"}, {"judge": {"url": url, "model": "m"}, "name": "jury", "weight": 2}]
        found = persyn_quality(ANSWERS, sources=sources, normalize="range")
    assert found["quality"] == [1.0, 1.0, None, 1.0, None]
    assert found["quality_jury"] == [10.0, 10.0, None, 10.0, None]
    assert found["quality_math"] == [1.0, 1.0, 0.0, 1.0, None]
    assert found["quality_error"][2] == "jury: the judge's reply is not a score from 1 to 10: 'hm'"


@pytest.mark.parametrize("method", ["minmax", "zscore", "rank"])
def test_score_normalises_each_within_the_prompt(llama, tmp_path, method):
    reward_model = models.save_reward_model(tmp_path, "llama")
    sources = [{"reward_model": reward_model, "name": "rm", "weight": 3}, {"verifier": LENGTH}]
    scored = score(Dataset.from_dict(ANSWERS), llama, {"sources": sources, "normalize": method}, progress=False)
    alone = persyn_quality(ANSWERS, reward_model=reward_model)["quality"]
    assert scored["quality_rm"][:4] == pytest.approx(alone[:4], abs=1e-5)
    assert scored["quality_length"][:] == [1.0, 4.0, 4.0, 1.0, None]
    for rows in ([0, 1], [2, 3]):
        parts = [normalize([scored[name][row] for row in rows], method) for name in ("quality_rm", "quality_length")]
        expected = (3 * parts[0] + parts[1]) / 4
        assert [scored["quality"][row] for row in rows] == pytest.approx(expected.tolist())
    assert scored["quality"][4] is None


def test_score_takes_the_quality_that_is_there_and_never_writes_over_it(llama):
    answers = Dataset.from_dict(ANSWERS | {"quality": [0.1, 0.2, 0.3, 0.4, 0.5]})
    scored = score(answers, llama, None, alpha=0.0, progress=False)
    assert scored["quality"][:] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert scored["reward"][:] == [0.0, 1.0, 0.0, 1.0, None]
    with pytest.raises(DataError, match="quality=None"):
        score(answers, llama, "exact", progress=False)
    with pytest.raises(MissingColumnError, match="score without `quality`"):
        score(answers.remove_columns("quality"), llama, None, progress=False)


def test_bad_sources():
    with pytest.raises(ConfigError, match="more than once: math"):
        persyn_quality(ANSWERS, sources=[{"verifier": "math"}, {"verifier": "math"}])
    with pytest.raises(ConfigError, match="the column `quality_error` is reserved"):
        persyn_quality(ANSWERS, sources=[{"verifier": "math", "name": "error"}])
    with pytest.raises(ConfigError, match="exactly one"):
        persyn_quality(ANSWERS, verifier="math", sources=[{"verifier": "math"}])
    with pytest.raises(ConfigError, match=r"quality: `sources\[0\].weight`"):
        persyn_quality(ANSWERS, sources=[{"verifier": "math", "weight": 0}])
    with pytest.raises(ConfigError, match="exactly one"):
        persyn_quality(ANSWERS, verifier=length, sources=[{"verifier": "math"}])
    with pytest.raises(ConfigError, match="in this order"):
        persyn_quality(ANSWERS, sources=[{"verifier": "math", "range": (1, 0)}])


def test_provenance_names_every_source():
    quality = Quality(sources=[{"verifier": "math"}, {"reward_model": "org/rm"}], normalize="minmax")
    assert quality.label == "math + org/rm"
    assert Quality(judge={"url": "http://x", "model": "judge-1"}).label == "judge-1"


def test_pinned_reward_models_are_noticed_when_they_change(tmp_path):
    folder = models.save_reward_model(tmp_path, "llama")
    pinned = pin_quality(sources=[{"reward_model": folder}, {"verifier": "exact"}], normalize="range")
    assert pinned["sources"][0]["revision"].startswith("folder-")
    assert pin_quality(verifier="math").keys() == {"verifier", "version"}
    pinned = pin_quality(reward_model=folder)
    persyn_quality(ANSWERS, **pinned)
    models.save_reward_model(tmp_path, "llama", num_hidden_layers=1)
    with pytest.raises(ScoringError, match="has changed"):
        persyn_quality(ANSWERS, **pinned)


def test_reasoning_gym_tasks_by_their_own_scorers():
    import reasoning_gym

    for name in ("gcd", "countdown", "leg_counting", "spell_backward", "mini_sudoku"):
        for entry in reasoning_gym.create_dataset(name, size=3, seed=5):
            row = {"prompt": entry["question"], "answer": json.dumps(entry)}
            right = persyn_quality(row | {"completion": entry["answer"]}, verifier="reasoning-gym")
            tagged = f"I think so.\n<answer>{entry['answer']}</answer>"
            assert right == {"quality": 1.0}
            assert persyn_quality(row | {"completion": tagged}, verifier="reasoning-gym") == {"quality": 1.0}
            assert persyn_quality(row | {"completion": "I give up"}, verifier="reasoning-gym")["quality"] < 0.2
    for wrong in ("42", '{"answer": "4"}', "{"):
        with pytest.raises(ScoringError, match=r"row 0 of the batch: `reasoning-gym` needs the task's entry"):
            persyn_quality({"prompt": "p", "completion": "c", "answer": wrong}, verifier="reasoning-gym")
    unknown = json.dumps({"answer": "4", "metadata": {"source_dataset": "no_such_task"}})
    with pytest.raises(ScoringError, match="no_such_task"):
        persyn_quality({"prompt": "p", "completion": "c", "answer": unknown}, verifier="reasoning-gym")
