"""Request slots shared between processes: `map(num_proc=…)` and parallel runs stay under one `max_concurrency`."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

if sys.platform != "win32":
    import fcntl

#: `struct flock`: type, whence, start, length, process (0, as open-file-description locks require).
_FLOCK = struct.Struct("hhqqi4x")
#: Record of a slot: the id of the last process that took it, and the PID namespace of that id.
_HOLDER = struct.Struct("<QQ")
#: Maximum number of slots per address. The stand-in of a slot is this many slots after it.
_MOST = 4096
#: Seconds between two checks for stopped holders.
_LOOK = 1.0


class Slots:
    """Limit on the requests in flight to a server, shared by all processes of this user on this machine.

    A slot is one byte of a file in a folder that only the user can access, locked while its request is in flight. The
    kernel releases the locks of a process when it ends, even if it was killed. The slots of a stopped process
    (`SIGSTOP`, Ctrl-Z) do not count: each has a stand-in that other processes may take.

    Args:
        name (`str`): Name of the limited resource; equal names share their slots.
        count (`int`): Number of slots.
        clock (`Callable[[], float]`, *optional*): Monotonic clock, in seconds.

    Raises:
        OSError: If no file can be created and locked.
    """

    def __init__(self, name: str, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = _open(hashlib.sha256(name.encode()).hexdigest()[:24] + ".slots")
        self._count = min(count, _MOST)
        self._free = list(range(self._count - 1, -1, -1))
        self._held: list[int] = []
        self._spare: list[int] = []  # locked, but used by no request
        self._clock = clock
        self._looked = -_LOOK
        self._stopped: list[int] = []

    @staticmethod
    def supported() -> bool:
        """Returns whether the system has open-file-description locks (Linux)."""
        return sys.platform != "win32" and hasattr(fcntl, "F_OFD_SETLK")

    @property
    def held(self) -> int:
        """Number of slots that requests of this process hold."""
        return len(self._held)

    def resize(self, count: int) -> None:
        """Changes the number of slots; held slots above it are released when their requests end."""
        count = min(count, _MOST)
        if count != self._count:
            self.settle()
            self._count = count
            self._free = [slot for slot in range(count - 1, -1, -1) if slot not in self._held]

    def acquire(self) -> bool:
        """Takes a slot if one is free; never waits."""
        if self._spare:
            self._held.append(self._spare.pop())
            return True
        for place in range(len(self._free) - 1, -1, -1):
            slot = self._free[place]
            if self._take(slot):
                del self._free[place]
                return True
        return any(self._take(_MOST + slot) for slot in self._of_stopped() if _MOST + slot not in self._held)

    def release(self) -> None:
        """Marks one slot as spare; [`settle`] unlocks it, because the next request usually takes it again at once."""
        self._spare.append(self._held.pop())

    def settle(self) -> None:
        """Unlocks the spare slots, so that other processes can take them."""
        while self._spare:
            slot = self._spare.pop()
            self._lock(slot, fcntl.F_UNLCK)
            if slot < self._count:
                self._free.append(slot)

    def holders(self) -> dict[int, str]:
        """Maps the id of every process that holds a slot to its state: `running`, `stopped` or `elsewhere`.

        A process is `elsewhere` if it runs in another container or on another machine, where its id has no meaning
        for this process.
        """
        return {number: state for _, number, state in self._others()}

    def close(self) -> None:
        """Releases all slots."""
        os.close(self._file)

    def _of_stopped(self) -> list[int]:
        now = self._clock()
        if now - self._looked >= _LOOK:
            self._looked = now
            self._stopped = [slot for slot, _, state in self._others() if state == "stopped"]
        return self._stopped

    def _others(self) -> Iterator[tuple[int, int, str]]:
        """Yields slot, process id and state of every slot that another process took last."""
        for slot in self._free:
            record = os.pread(self._file, _HOLDER.size, slot * _HOLDER.size)
            number, namespace = _HOLDER.unpack(record) if len(record) == _HOLDER.size else (0, 0)
            if number and number != os.getpid():
                yield slot, number, _state(number) if namespace == _namespace() else "elsewhere"

    def _take(self, slot: int) -> bool:
        if not self._lock(slot, fcntl.F_WRLCK):
            return False
        os.pwrite(self._file, _HOLDER.pack(os.getpid(), _namespace()), slot * _HOLDER.size)
        self._held.append(slot)
        return True

    def _lock(self, slot: int, kind: int) -> bool:
        return _set_lock(self._file, slot * _HOLDER.size, kind)


def _set_lock(file: int, place: int, kind: int) -> bool:
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _open(name: str) -> int:
    """Opens a file that only this user can access, in the user's cache or else in the folder for temporary files.

    Raises:
        OSError: If neither folder can be used: another user owns it, or its file system does not support locks.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folders = [os.path.join(cache, "persyn-hf", "slots")] if os.path.isabs(cache) else []
    folders.append(os.path.join(tempfile.gettempdir(), f"persyn-hf-{os.getuid()}"))
    for folder in folders:
        try:
            return _open_in(folder, name)
        except OSError:
            if folder == folders[-1]:
                raise
    raise AssertionError("there is always a folder for temporary files")


def _open_in(folder: str, name: str) -> int:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} must be a folder that you own; remove it")
    if found.st_mode & 0o077:
        os.chmod(folder, 0o700)
    file = os.open(os.path.join(folder, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _set_lock(file, 2 * _MOST * _HOLDER.size, fcntl.F_UNLCK)
    except OSError:
        os.close(file)
        raise
    return file


def _state(number: int) -> str:
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "elsewhere"
    return "stopped" if state in "Tt" else "running"


@functools.cache
def _namespace() -> int:
    """Id of this process's PID namespace: the container in which a process id has a meaning."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
