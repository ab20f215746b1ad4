"""Torch's threads in the forked worker processes of `datasets.map(num_proc=…)`; threads do not survive a fork."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Number of threads of a worker that runs a model. A forked worker must use one.
_threads = 1


def in_worker() -> bool:
    """Tells whether this is a worker process of `map(num_proc=…)` or of `multiprocessing`."""
    import multiprocessing

    import multiprocess  # datasets starts its workers with it; the standard library does not see them

    return multiprocess.parent_process() is not None or multiprocessing.parent_process() is not None


def calm_worker() -> None:
    """Limits a worker to one thread or its share of the cores.

    With more threads, a worker hangs if it was forked from a parent that has run a model (pytorch/pytorch#17199). Call
    this on every use of a model, because a worker inherits the models that its parent has loaded.
    """
    if in_worker():
        import torch

        torch.set_num_threads(_threads)


def share_cores(processes: int) -> None:
    """Gives a spawned worker its share of the cores; not for forked workers."""
    import os

    import torch

    global _threads
    _threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(_threads)


class _OneThread:
    """The number of callers inside [`one_thread`], and torch's number of threads before the first one."""

    lock = threading.Lock()
    inside = 0
    before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, which is faster for thousands of tiny steps.

    The number of threads applies to the whole process, so the last of several concurrent callers restores it.
    """
    import torch

    with _OneThread.lock:
        if _OneThread.inside == 0:
            _OneThread.before = torch.get_num_threads()
            torch.set_num_threads(1)
        _OneThread.inside += 1
    try:
        yield
    finally:
        with _OneThread.lock:
            _OneThread.inside -= 1
            if _OneThread.inside == 0:
                torch.set_num_threads(_OneThread.before)
