"""Owners of a ledger's claims: the process of each run, and the check that it is still alive.

A run is identified by the place of its process (host, boot, PID namespace), the process id and the start time of the
process, so that a reused process id is not mistaken for an earlier run.
"""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: Seconds between two heartbeats, and seconds without one after which other runs may take over the rows of a run.
BEAT, LEASE = 5.0, 60.0


@dataclass(frozen=True)
class Owner:
    """The process of a run.

    Args:
        place (`str`): Host, boot and PID namespace of the process.
        pid (`int`): Process id.
        started (`str`): Start time as reported by the system; empty if it is not known.
    """

    place: str
    pid: int
    started: str


def this_process() -> Owner:
    """Returns the calling process."""
    pid = os.getpid()
    return Owner(_place(), pid, _started(pid) or "")


def now() -> float:
    """Returns the seconds of a monotonic clock that all processes of this machine share."""
    return time.monotonic()


def is_gone(owner: Owner, beat: float) -> bool:
    """Returns whether a run is gone: its process has ended, or has sent no heartbeat during the lease.

    Args:
        owner (`Owner`): Process of the run.
        beat (`float`): Time of its last heartbeat, by [`now`].
    """
    if owner == this_process():  # another thread, which closes its own claims
        return False
    if not now() - LEASE <= beat <= now():  # a heartbeat in the future dates from before the machine started
        return True
    return owner.place == _place() and not _runs(owner)


def _runs(owner: Owner) -> bool:
    if os.name == "nt":  # signal 0 does not test a process there
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # alive, but owned by another user
        pass
    started = _started(owner.pid)
    return started is None or not owner.started or started == owner.started


def _started(pid: int) -> str | None:
    """Reads the start time of a process in ticks since boot; `""` if it has ended, `None` if it is not known."""
    try:
        # The name of the program is in parentheses, and may contain any character.
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
