"""The reward's arithmetic."""

import math

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from persyn_hf.errors import ConfigError, MissingColumnError, ScoringError
from persyn_hf.scoring.reward import add_rewards, normalize, reward
from persyn_hf.scoring.rows import row_names


@pytest.mark.parametrize(
    ("method", "values", "expected"),
    [
        ("minmax", [1, 3, 2], [0, 1, 0.5]),
        ("minmax", [2, 2], [0.5, 0.5]),
        ("zscore", [1, 3], [-1, 1]),
        ("zscore", [2, 2, 2], [0, 0, 0]),
        ("rank", [10, 30, 20, 40], [0, 2 / 3, 1 / 3, 1]),
        ("rank", [1, 2, 2], [0, 0.75, 0.75]),
        ("rank", [5, 5], [0.5, 0.5]),
        ("minmax", [7], [0.5]),
        ("zscore", [7], [0]),
        ("rank", [7], [0.5]),
        ("minmax", [], []),
        ("minmax", [-1.7e308, 1.7e308], [0, 1]),
    ],
)
def test_normalisations(method, values, expected):
    assert normalize(values, method).tolist() == pytest.approx(expected)


def test_alpha_mixes_and_its_ends_are_exact():
    quality, learnability = [0.0, 1.0, 0.5], [-1.0, -3.0, -2.9]
    assert reward(quality, learnability, 0.0).tolist() == normalize(quality).tolist()
    assert reward(quality, learnability, 1.0).tolist() == normalize(learnability).tolist()
    assert reward(quality, learnability, 0.4).tolist() == pytest.approx([0.4, 0.6, 0.6 * 0.5 + 0.4 * 0.05])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.sampled_from(["minmax", "rank"]), st.floats(0, 1))
def test_bounded_rewards(values, method, alpha):
    found = reward(values, values[::-1], alpha, method)
    assert ((found >= 0) & (found <= 1 + 1e-12)).all()


def table(**changes):
    rows = {
        "prompt_id": ["b", "a", "b", "a", "b", "c"],
        "teacher": ["t1", "t1", "t2", "t2", "t3", "t1"],
        "quality": [0.0, 1.0, 1.0, 1.0, None, 3.0],
        "learnability": [-1.0, -2.0, -3.0, -1.0, -9.0, -1.0],
    }
    return Dataset.from_dict(rows | changes)


def test_rows_are_grouped_by_prompt_and_keep_their_order():
    scored = add_rewards(table(), alpha=0.25)
    assert scored["reward"][:] == pytest.approx([0.25, 0.375, 0.75, 0.625, None, 0.5])
    assert scored["teacher"][:] == table()["teacher"][:]


def test_a_lower_is_better_column_is_turned():
    scored = add_rewards(table(rsr=[2.0, 1.0, 1.0, 2.0, 1.0, 1.0]), 1.0, "minmax", "rsr", higher_is_better=False)
    assert scored["reward"][:] == [0.0, 1.0, 1.0, 0.0, None, 0.5]


def test_all_missing_is_a_column_of_nulls():
    scored = add_rewards(table(quality=[None] * 6))
    assert scored["reward"][:] == [None] * 6
    assert scored.features["reward"].dtype == "float64"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_name_their_row(value):
    with pytest.raises(ScoringError, match="prompt a, teacher t2"):
        add_rewards(table(quality=[0.0, 1.0, 1.0, value, None, 3.0]))
    with pytest.raises(ScoringError, match="finite"):
        normalize([1.0, value])


def test_bad_settings():
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.3"):
        add_rewards(table(), alpha=1.3)
    with pytest.raises(ConfigError, match="softmax"):
        normalize([1.0], "softmax")
    with pytest.raises(MissingColumnError, match="`rsr`"):
        add_rewards(table(), learnability_column="rsr")


def sampled(**changes):
    """Two teachers of prompt a, the first with three samples; one teacher of prompt b, with two."""
    rows = {
        "prompt_id": ["a", "b", "a", "a", "b", "a"],
        "teacher": ["t1", "t1", "t1", "t2", "t1", "t1"],
        "sample": [0, 0, 1, None, 1, 2],
        "quality": [0.0, 5.0, 4.0, 1.0, 7.0, 2.0],
        "learnability": [-1.0, -1.0, -3.0, -5.0, -3.0, -2.0],
    }
    return Dataset.from_dict(rows | changes)


def test_samples_are_normalised_with_all_answers_to_their_prompt():
    assert add_rewards(sampled(), 0.0)["reward"][:] == [0.0, 0.0, 1.0, 0.25, 1.0, 0.5]
    assert add_rewards(sampled(), 1.0)["reward"][:] == [1.0, 1.0, 0.5, 0.0, 0.0, 0.75]
    assert add_rewards(sampled(), 0.0, "rank")["reward"][:] == pytest.approx([0.0, 0.0, 1.0, 1 / 3, 1.0, 2 / 3])
    # The mean reward of t1's samples of a is the normalised mean quality, (0 + 4 + 2) / 3 between 0 and 4.
    mixed = add_rewards(sampled(), 0.25)["reward"]
    assert (mixed[0] + mixed[2] + mixed[5]) / 3 == pytest.approx(0.75 * 0.5 + 0.25 * (1.0 + 0.5 + 0.75) / 3)


def test_turns_and_attempts_of_the_same_messages_are_one_group_too():
    for name in ("turn", "attempt"):
        other = sampled().rename_column("sample", name)
        assert add_rewards(other, 0.25)["reward"][:] == add_rewards(sampled(), 0.25)["reward"][:]


def test_a_row_is_named_with_its_numbers():
    batch = {"prompt_id": ["a", "a", "b"], "teacher": ["t", "t", "u"], "sample": [None, 2, 0], "completion": ["x"] * 3}
    assert row_names(batch, [0, 1, 2]) == [
        "prompt a, teacher t",
        "prompt a, teacher t, sample 2",
        "prompt b, teacher u",
    ]
    assert row_names({"completion": ["x", "y"]}, [1]) == ["row 1 of the batch"]
    assert row_names({"completion": ["x"], "turn": ["first"]}, [0]) == ["row 0 of the batch, turn first"]
