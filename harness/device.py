"""What the device at hand computes in, and how much memory it has and has used."""

import contextlib
import ctypes
import platform
import resource
import sys
import time
from collections.abc import Iterable

import psutil
import torch

# Of glibc's mallopt: numbers of its options, and the largest piece that it takes from memory it keeps.
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_ARENAS, LARGEST_KEPT = -1, -3, -8, 2**25


def default_device() -> torch.device:
    """An accelerator that is there, else the CPU: a build of torch for CUDA runs on machines without a GPU too."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_named(name: str) -> torch.device:
    """The device of --device.

    Args:
        name: "auto", "cpu", or an accelerator's, such as "cuda" or "cuda:1".
    Raises:
        ValueError: it is not there (names those that are).
    """
    if name == "auto":
        return default_device()
    accelerator = default_device().type
    count = torch.accelerator.device_count() if accelerator != "cpu" else 0
    there = ["cpu", *([accelerator] if count else []), *(f"{accelerator}:{index}" for index in range(count))]
    if name not in there:
        raise ValueError(f"--device {name} is not there; there are {', '.join(there)}")
    return torch.device(name)


def best_precision(device_type: str) -> str:
    """Precision to compute in: "bf16" where the processor or the GPU has units for it, "no" (float32) elsewhere."""
    if device_type == "cpu":
        units = torch.cpu.get_capabilities()
        return "bf16" if units.get("amx_bf16") or units.get("avx512_bf16") else "no"
    return "bf16" if device_type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def device_name(device: torch.device | str) -> str:
    """The maker's name of a GPU; of a CPU the instructions that torch computes with."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def autocast(precision: str, device_type: str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which a float32 model's matmuls run in bf16 if `precision` is "bf16"; else it changes nothing."""
    if precision == "bf16" and dtype == torch.float32:
        return torch.autocast(device_type, torch.bfloat16)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """From now on the C library keeps what is freed, up to 1 GB, for what is asked for next.

    By default it gives a large activation back, and the system zeroes fresh pages for the next one: a seventh of a
    forward pass on two cores. Pieces above 32 MB, such as large weights, still come and go. All threads share what is
    kept; others than the first would keep less. Without glibc nothing happens.

    Source: mallopt(3).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(TRIM_THRESHOLD, 2**30)
        library.mallopt(MOST_ARENAS, 1)


def clock(devices: Iterable[torch.device]) -> float:
    """Seconds of a steady clock, once GPUs among the devices have done all that they were given."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.monotonic()


def reset_peak_memory(device: torch.device | str) -> None:
    """Reset a GPU's counter, so that peak_memory measures from here on; a CPU has none."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device | str) -> int:
    """Bytes: of a GPU since reset_peak_memory, of the whole process since its start on a CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device | str, all_devices: bool = False) -> int:
    """Bytes that can still be allocated, on a GPU, on all GPUs, or in the machine."""
    if torch.device(device).type != "cuda":
        return psutil.virtual_memory().available
    devices = range(torch.cuda.device_count()) if all_devices else [device]
    return sum(torch.cuda.mem_get_info(one)[0] for one in devices)
