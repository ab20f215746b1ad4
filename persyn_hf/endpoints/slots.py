"""A limit that several processes share: `map(num_proc=…)` and runs side by side stay under one `max_concurrency`."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import tempfile

#: `struct flock`: type, whence, start, length, process (0, as locks of an open file want it).
_FLOCK = struct.Struct("hhqqi4x")


class Slots:
    """As many slots as requests may be in flight to an endpoint, over all processes of this user on this machine.

    A slot is one byte of a file in the folder for temporary files, locked while its request is in flight. The kernel
    frees what a process held when it dies, whatever killed it.

    Args:
        name (`str`): What is limited; equal names share their slots.
        count (`int`): How many.

    Raises:
        OSError: If the file cannot be made.
    """

    def __init__(self, name: str, count: int) -> None:
        folder = os.path.join(tempfile.gettempdir(), f"persyn-hf-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, hashlib.sha256(name.encode()).hexdigest()[:24] + ".slots")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._count = count
        self._free = list(range(count - 1, -1, -1))
        self._held: list[int] = []
        self._spare: list[int] = []  # locked, of no request

    @staticmethod
    def supported() -> bool:
        """Whether this system has locks that belong to an open file (Linux)."""
        return hasattr(fcntl, "F_OFD_SETLK")

    def acquire(self) -> bool:
        """Takes a slot if one is free; never waits."""
        if self._spare:
            self._held.append(self._spare.pop())
            return True
        for place in range(len(self._free) - 1, -1, -1):
            slot = self._free[place]
            if self._lock(slot, fcntl.F_WRLCK):
                del self._free[place]
                self._held.append(slot)
                return True
        return False

    def release(self) -> None:
        """Gives one slot back, at the next [`settle`] for good: mostly it is taken again at once."""
        self._spare.append(self._held.pop())

    def settle(self) -> None:
        """Leaves what was given back to other processes."""
        while self._spare:
            slot = self._spare.pop()
            self._lock(slot, fcntl.F_UNLCK)
            self._free.append(slot)

    def close(self) -> None:
        """Gives all slots back."""
        os.close(self._file)

    def _lock(self, slot: int, kind: int) -> bool:
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, slot, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True
