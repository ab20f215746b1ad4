"""The scored table as a matrix, also where a teacher has several answers to a prompt."""

import numpy as np
import pytest
from datasets import Dataset

from persyn_hf.errors import DataError
from persyn_hf.routing.allocation.result import keep_best
from persyn_hf.routing.rewards import read_rewards

#: prompt, teacher, sample, reward, quality
ROWS = [
    ("p", "a", 0, 0.25, 1.0),
    ("p", "b", 0, 0.5, 2.0),
    ("q", "a", 0, None, None),
    ("q", "b", 0, 0.125, 3.0),
    ("p", "a", 1, 0.75, 3.0),
    ("q", "a", 2, 1.0, 5.0),
    ("r", "b", 0, 0.9, 9.0),
    ("r", "b", 1, 0.1, 1.0),
    ("q", "a", 3, 0.5, None),
]


def table(rows=ROWS, numbers="sample"):
    names = ("prompt_id", "teacher", numbers, "reward", "quality")
    values = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return Dataset.from_dict(values | {"prompt": [f"text {row[0]}" for row in rows]})


@pytest.mark.parametrize("numbers", ["turn", "sample", "attempt"])
def test_the_mean_of_a_teachers_answers_counts(numbers):
    found = read_rewards(table(numbers=numbers))
    assert found.teachers == ["a", "b"] and found.ids == ["p", "q"]  # only b answered r, though twice
    assert found.rewards.tolist() == [[0.5, 0.5], [0.75, 0.125]]
    assert found.quality.tolist() == [[2.0, 2.0], [5.0, 3.0]]
    assert found.prompts == ["text p", "text q"]
    rows = table(numbers=numbers).to_list()
    as_rows, as_columns = read_rewards(rows), read_rewards(table(numbers=numbers)[:])
    for other in (as_rows, as_columns, read_rewards([row for row in rows if row["reward"] is not None])):
        np.testing.assert_array_equal(other.rewards, found.rewards)


def test_one_answer_each_is_read_as_it_stands():
    values = np.random.default_rng(0).random((20, 3))
    rows = [(f"p{n}", name, 0, value, None) for n in range(20) for name, value in zip("abc", values[n], strict=True)]
    found = read_rewards(table(rows).remove_columns(["sample"])).reordered(list("abc"))
    np.testing.assert_array_equal(found.rewards, values)
    assert np.isnan(found.quality).all()


@pytest.mark.parametrize("sample", [0, None, 0.0])
def test_two_rows_of_one_key_are_refused(sample):
    rows = [(*row[:2], row[2] or sample, *row[3:]) for row in [*ROWS, ROWS[1]]]
    with pytest.raises(DataError, match=r"prompt and teacher; prompt p has several of 'b'.*`sample`"):
        read_rewards(table(rows))
    with pytest.raises(DataError, match="prompt p has several of 'a'"):
        read_rewards(table().remove_columns(["sample"]))


def test_the_best_of_all_samples_is_kept():
    best = keep_best(table())
    assert list(zip(best["prompt_id"], best["teacher"], best["sample"], strict=True)) == [
        ("p", "a", 1),
        ("q", "a", 2),
        ("r", "b", 0),
    ]
