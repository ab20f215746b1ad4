"""What a report on a router shows, and what it stores."""

import numpy as np

from persyn_hf.routing.intervals import Interval
from persyn_hf.routing.verdict import RouterReport, policy_intervals


def report(fallback=None):
    values = np.tile([0.6, 0.5, 0.4, 0.8, 0.55], (20, 1))
    held_out, gain, closed = policy_intervals(values, seed=0)
    return RouterReport(
        prompts=20,
        folds=5,
        teachers=["a", "b"],
        means=[0.5, 0.3],
        objective="regression",
        strength=1.0,
        held_out=held_out,
        gain=gain,
        gap_closed=closed,
        fallback=fallback,
        reason="It does.",
        learning_curve=[(16, 0.1)],
        more_prompts=None,
        scores=np.zeros((20, 2)),
        prompt_ids=[],
        scale=1.0,
    )


def test_a_report_shows_labels_in_one_column():
    assert str(report()).splitlines() == [
        "policy                 mean reward, 95% interval (held out, 20 prompts, 5 folds)",
        "PerSyn router          0.6000  0.6000 to 0.6000",
        "best single teacher    0.5000  0.5000 to 0.5000",
        "random teacher         0.4000  0.4000 to 0.4000",
        "oracle                 0.8000  0.8000 to 0.8000",
        "kNN on the embeddings  0.5500  0.5500 to 0.5500",
        "gap closed             0.333  0.333 to 0.333",
        "It does.",
    ]


def test_what_is_stored_keeps_its_keys():
    stored = report(fallback="a").as_dict()
    assert list(stored)[:6] == ["router", "best_single", "random", "oracle", "knn", "candidate"]
    assert stored["router"] == stored["best_single"] == Interval(0.5, 0.5, 0.5).as_dict()
    assert stored["candidate"]["mean"] == 0.6
