"""Who works with a ledger: the process of a run, and whether it is still there.

A run is known by the place of its process (host, boot, namespace of process numbers), the process number and the
time at which the process started, so that a number that is given again is no old acquaintance.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: Seconds between two signs of life, and seconds without one after which the work of a run is free for others.
BEAT, LEASE = 5.0, 60.0


@dataclass(frozen=True)
class Owner:
    """The process of a run.

    Args:
        place (`str`): Where its number counts.
        pid (`int`): Its number.
        started (`str`): When it started, as the system says it; empty where that is not known.
    """

    place: str
    pid: int
    started: str


def this_process() -> Owner:
    """The process that calls."""
    pid = os.getpid()
    return Owner(_place(), pid, _started(pid) or "")


def now() -> float:
    """Seconds of a clock that all processes of this machine share and nobody sets."""
    return time.monotonic()


def is_gone(owner: Owner, beat: float) -> bool:
    """Whether the work of a run is free: its process has ended, or gave no sign of life for the lease.

    Args:
        owner (`Owner`): The run's process.
        beat (`float`): Its last sign of life, by [`now`].
    """
    if owner == this_process():  # another thread's, which closes its claims
        return False
    if not now() - LEASE <= beat <= now():  # a sign from the future is one from before the machine started
        return True
    return owner.place == _place() and not _runs(owner)


def _runs(owner: Owner) -> bool:
    if os.name == "nt":  # signal 0 is no question there
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # there, and another user's
        pass
    started = _started(owner.pid)
    return started is None or not owner.started or started == owner.started


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot; `""` of one that has ended, `None` where it is not known."""
    try:
        # The name of the program stands in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except FileNotFoundError:
        return None if not os.path.isdir("/proc/self") else ""
    except OSError:
        return None
    return "" if fields[0] in ("Z", "X") else fields[19]


@lru_cache(maxsize=1)
def _place() -> str:
    parts = [platform.node()]
    for name, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(str(read(Path(name))).strip())
        except OSError:
            continue
    return "|".join(parts)
