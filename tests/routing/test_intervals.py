"""One interval for routers and comparisons."""

import numpy as np
import pytest

from persyn_hf.comparison.statistics import mean_interval
from persyn_hf.routing.evaluate import judge_routes
from persyn_hf.routing.intervals import Interval, interval


def test_an_interval_reads_alike_wherever_it_comes_from():
    routes = {"best_single": np.array([0, 1, 0]), "oracle": np.array([0, 1, 1])}
    judged = judge_routes(np.array([[0.5, 0.0], [0.0, 0.5], [0.5, 0.5]]), routes)["oracle"].reward
    compared = mean_interval(np.full((2, 3), 0.5))
    assert judged == compared == Interval(0.5, 0.5, 0.5)
    assert str(judged) == "0.500 [0.500, 0.500]"
    assert compared.as_dict() == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_an_interval_holds_the_middle_of_its_draws():
    found = interval(50.0, np.append(np.arange(101.0), [np.nan, np.inf]))
    assert (found.mean, found.low, found.high) == (50.0, 2.5, 97.5)
    assert np.isnan(interval(1.0, np.array([np.nan])).low)


def test_plain_values_are_rounded():
    assert Interval(1 / 3, 0.1234567, 0.5).as_dict() == pytest.approx({"mean": 0.333333, "low": 0.123457, "high": 0.5})
