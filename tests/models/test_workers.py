"""Forked workers: a model that the parent has loaded must not bring the parent's threads with it."""

import multiprocess
import numpy as np
import pytest
import torch

from persyn_hf.generation.local import load_local_model
from persyn_hf.models.workers import in_worker, one_thread
from persyn_hf.routing import heads
from persyn_hf.scoring.student import load_student


def threads_of_a_worker(use) -> int:
    def work(answer):
        assert in_worker()
        use()
        answer.send(torch.get_num_threads())

    mine, theirs = multiprocess.Pipe()
    worker = multiprocess.get_context("fork").Process(target=work, args=(theirs,), daemon=True)
    worker.start()
    assert mine.poll(60), "the worker hangs"
    worker.join(10)
    return mine.recv()


@pytest.mark.parametrize("floor", ["scoring", "generation"])
def test_a_worker_keeps_to_one_thread_with_a_model_of_its_parent(tiny_lm, floor):
    def use():
        if floor == "scoring":
            load_student(str(tiny_lm), dtype="float32")
        else:
            load_local_model(str(tiny_lm), None, "float32", "cpu", "same")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        use()
        assert not in_worker()
        assert torch.get_num_threads() == 2, "this process keeps its threads"
        assert threads_of_a_worker(use) == 1
    finally:
        torch.set_num_threads(before)


def test_one_thread_is_given_back_after_an_error():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_last_one_out_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = one_thread(), one_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_num_threads() == 1, "the second is still inside"
        second.__exit__(None, None, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_failed_fit_leaves_the_threads_as_they_were(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(heads, "objective_loss", lambda *arguments: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            heads.fit_path("bradley-terry", np.eye(3), np.arange(6.0).reshape(3, 2), (0.1,))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
