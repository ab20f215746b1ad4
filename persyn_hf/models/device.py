"""Devices and dtypes of models; no other module asks torch for devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import ConfigError
from persyn_hf.packages import require

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def gpu_count() -> int:
    """The number of CUDA GPUs that are visible to this process."""
    require("look for GPUs", "torch")
    import torch

    return torch.cuda.device_count()


def default_device() -> str:
    """CUDA if available, else the CPU."""
    require("choose a device", "torch")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(device: str | None) -> torch.device:
    """The named device; without a name, CUDA if available, else the CPU.

    Raises:
        ConfigError: If torch has no device of that name, or it is not visible to this process.
    """
    import torch

    if device is None:
        return torch.device(default_device())
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f'`device` must be a name such as "cpu" or "cuda:0", got {device!r}.') from error
    if chosen.type == "cuda" and (chosen.index or 0) >= gpu_count():
        raise ConfigError(
            f"`device` is {device!r}, but this process sees {gpu_count()} CUDA GPUs. Set another device."
        )
    return chosen


def worker_device(device: str | None, rank: int | None) -> str | None:
    """The GPU of a map worker by its number, or `device` if set.

    Raises:
        ConfigError: If `rank` is not a number, because something else was passed by position.
    """
    if rank is not None and not isinstance(rank, int):
        raise ConfigError(f"`rank` must be a worker's number, got {rank!r}. Pass all other arguments by name.")
    if device is not None or rank is None:
        return device
    gpus = gpu_count()
    return f"cuda:{rank % gpus}" if gpus else None


def dtype_named(name: str) -> torch.dtype:
    """Looks up a floating-point type by its name.

    Raises:
        ConfigError: If the name is not in `DTYPES`, or is `"auto"`, which only a checkpoint can resolve.
    """
    import torch

    if name not in DTYPES or name == "auto":
        raise ConfigError(f"`dtype` must be one of {', '.join(DTYPES[1:])}, got {name!r}.")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def trains_in_bfloat16() -> bool:
    """Tells whether there is a CUDA GPU that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def multiplies_bfloat16() -> bool:
    """Tells whether bfloat16 products are fast here: on a GPU, or on a CPU with AVX-512."""
    import torch

    return torch.cuda.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()


def has_prepacked_linear() -> bool:
    """Tells whether this build of torch has oneDNN, whose matrix products use their own layout of the weights."""
    import torch

    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has finished its queued work; returns at once for a CPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_cache(device: torch.device) -> None:
    """Releases the GPU memory that torch caches and does not use."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error is out of memory. On a CPU it is a plain RuntimeError, recognised by its text."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or ("memory" in text and "alloc" in text)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switches TF32 off, which keeps 10 of float32's 23 bits, and puts it back as it was."""
    import torch

    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    name: str = "allow_tf32"
    exact: bool | str = False
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:  # torch refuses the older names to a program that has used the newer ones
        newer: Any = torch.backends.cudnn
        places, name, exact = [torch.backends.cuda.matmul, newer.conv], "fp32_precision", "ieee"
        before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, exact)
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            setattr(place, name, value)


class Timeline:
    """Times at which a device reached points of its work, and the memory that the work took.

    Marks cost no wait; only `seconds` waits, for the later of its two marks.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self._held = torch.cuda.memory_allocated(device)

    def mark(self) -> Any:
        """A point after all that was given so far."""
        import time

        import torch

        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, first: Any, second: Any) -> float:
        """Between two marks."""
        if not self._cuda:
            return float(second - first)
        second.synchronize()
        return float(first.elapsed_time(second)) / 1000

    def has_room(self, factor: float) -> bool:
        """Returns whether work that takes `factor` times the memory of the work so far would fit."""
        import torch

        if not self._cuda:
            return True
        taken = torch.cuda.max_memory_allocated(self._device) - self._held
        free = torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)
        free -= torch.cuda.memory_allocated(self._device)
        return free > factor * taken


@dataclass(frozen=True)
class Accelerator:
    """A GPU and its description for display.

    Args:
        device (`str`): Name in a configuration: `cuda:0`, `mps`.
        description (`str`): Name, free memory and bfloat16 support.
    """

    device: str
    description: str


def list_accelerators() -> list[Accelerator]:
    """Lists the accelerators that torch sees. MPS is listed but used only if a configuration names it."""
    import torch

    found = []
    for index in range(gpu_count()):
        free, total = torch.cuda.mem_get_info(index)
        half = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        memory = f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        found.append(Accelerator(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory}, {half}"))
    if torch.backends.mps.is_available():
        found.append(Accelerator("mps", "Apple GPU"))
    return found


def thread_count() -> int:
    """The number of threads that torch uses on the CPU."""
    import torch

    return torch.get_num_threads()
