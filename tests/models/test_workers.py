"""Forked workers: a model that the parent has loaded must not bring the parent's threads with it."""

import multiprocess
import pytest
import torch

from persyn_hf.generation.local import load_model
from persyn_hf.models.workers import in_worker
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
            load_model(str(tiny_lm), None, "float32", "cpu", "same")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        use()
        assert not in_worker()
        assert torch.get_num_threads() == 2, "this process keeps its threads"
        assert threads_of_a_worker(use) == 1
    finally:
        torch.set_num_threads(before)
