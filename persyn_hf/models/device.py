"""Where a model runs and in which numbers: the one place that asks torch for devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from persyn_hf.errors import ConfigError
from persyn_hf.packages import require

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


def gpu_count() -> int:
    """How many CUDA GPUs this process sees."""
    require("look for GPUs", "torch")
    import torch

    return torch.cuda.device_count()


def default_device() -> str:
    """CUDA where there is one, else the CPU."""
    require("choose a device", "torch")
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(device: str | None) -> torch.device:
    """The named device, or CUDA where there is one, or the CPU.

    Raises:
        ConfigError: If torch knows no device of that name, or this process does not see it.
    """
    import torch

    if device is None:
        return torch.device(default_device())
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f'`device` must be one like "cpu" or "cuda:0", got {device!r}.') from error
    if chosen.type == "cuda" and (chosen.index or 0) >= gpu_count():
        raise ConfigError(f"`device` is {device!r}, and this process sees {gpu_count()} CUDA GPUs.")
    return chosen


def worker_device(device: str | None, rank: int | None) -> str | None:
    """The GPU of a map worker, by its number; `device` where one is named.

    Raises:
        ConfigError: If `rank` is no number: something else was passed by position.
    """
    if rank is not None and not isinstance(rank, int):
        raise ConfigError(f"`rank` must be a worker's number, got {rank!r}; pass everything else by name.")
    if device is not None or rank is None:
        return device
    gpus = gpu_count()
    return f"cuda:{rank % gpus}" if gpus else None


def dtype_named(name: str) -> torch.dtype:
    """A floating-point type by its name.

    Raises:
        ConfigError: If it is none of `DTYPES`, or `"auto"`, which only a checkpoint can answer.
    """
    import torch

    if name not in DTYPES or name == "auto":
        raise ConfigError(f"`dtype` must be one of {', '.join(DTYPES[1:])}, got {name!r}.")
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


def trains_in_bfloat16() -> bool:
    """Whether there is a CUDA GPU that computes in bfloat16."""
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 is multiplied fast here, which takes a GPU, or a processor with AVX-512."""
    import torch

    return torch.cuda.is_available() or "AVX512" in torch.backends.cpu.get_cpu_capability()


def has_prepacked_linear() -> bool:
    """Whether this build of torch has oneDNN, whose matrix products read weights in a layout of their own."""
    import torch

    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has computed what it was given; a CPU has done so already."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_cache(device: torch.device) -> None:
    """Gives back the memory that torch keeps of a GPU and does not use."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Accelerator:
    """A GPU, for people.

    Args:
        device (`str`): What it is called in a configuration: `cuda:0`, `mps`.
        description (`str`): Name, memory and whether it computes in bfloat16.
    """

    device: str
    description: str


def list_accelerators() -> list[Accelerator]:
    """Every accelerator that torch sees here. MPS is named, and chosen only where a configuration names it."""
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
    """Threads that torch computes with on the CPU."""
    import torch

    return torch.get_num_threads()
