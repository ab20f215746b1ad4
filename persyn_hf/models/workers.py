"""Worker processes of `datasets.map(num_proc=…)`: they are forked, and torch's threads do not survive a fork."""

from __future__ import annotations

#: Threads of a worker that runs a model. One that was forked must have no more than one.
_threads = 1


def in_worker() -> bool:
    """Whether this is a worker process of `map(num_proc=…)` or of `multiprocessing`."""
    import multiprocessing

    import multiprocess  # what datasets starts its workers with; the standard library's does not know them

    return multiprocess.parent_process() is not None or multiprocessing.parent_process() is not None


def calm_worker() -> None:
    """Keeps a worker to one thread, or its own share: forked from a parent that has run a model, it hangs with more.

    Called on every use of a model, since a worker inherits those that its parent has loaded (pytorch/pytorch#17199).
    """
    if in_worker():
        import torch

        torch.set_num_threads(_threads)


def share_cores(processes: int) -> None:
    """Gives a worker that was spawned, not forked, its share of the cores."""
    import os

    import torch

    global _threads
    _threads = max(1, (os.cpu_count() or 1) // processes)
    torch.set_num_threads(_threads)
