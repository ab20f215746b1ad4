"""Worker processes of `datasets.map(num_proc=…)`, which are forked, and torch's threads, which survive no fork."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


class _OneThread:
    """How many are inside [`one_thread`], and how many threads torch had before the first came."""

    lock = threading.Lock()
    inside = 0
    before = 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: for thousands of tiny steps, handing them to threads costs more than it saves.

    The number of threads belongs to the whole process, so with several inside at once the last one out restores it.
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
