"""Worker processes of `datasets.map(num_proc=…)`: they are forked, and torch's threads do not survive a fork."""

from __future__ import annotations


def in_worker() -> bool:
    """Whether this is a worker process of `map(num_proc=…)` or of `multiprocessing`."""
    import multiprocessing

    import multiprocess  # what datasets starts its workers with; the standard library's does not know them

    return multiprocess.parent_process() is not None or multiprocessing.parent_process() is not None


def calm_worker() -> None:
    """Keeps a worker to one thread: forked from a parent that has run a model, it hangs with more.

    Called on every use of a model, since a worker inherits those that its parent has loaded (pytorch/pytorch#17199).
    """
    if in_worker():
        import torch

        torch.set_num_threads(1)
