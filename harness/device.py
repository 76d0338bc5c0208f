"""What the device at hand computes in, and how much memory it has and has used."""

import contextlib
import ctypes
import functools
import platform
import resource
import sys
import time
from collections.abc import Iterable, Sequence

import psutil
import torch
from torch import Tensor

WITH_STREAMS = ("cuda", "xpu")  # accelerators that copy, from pinned memory, while they compute
MATMULS_CPU, MATMULS = (256, 1024), (256, 1024, 4096, 8192)  # sizes whose speed is measured: small ones idle a GPU
# What an allocator of a device or of the CPU says, or a library that wanted memory of it.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "STATUS_ALLOC_FAILED", "STATUS_NOT_INITIALIZED")
# glibc's mallopt: numbers of its options, and the size in bytes above which freed memory is not kept.
TRIM_THRESHOLD, MMAP_THRESHOLD, MOST_ARENAS, LARGEST_KEPT = -1, -3, -8, 2**25


def default_device() -> torch.device:
    """The accelerator of this machine, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_named(name: str) -> torch.device:
    """The device of --device.

    Args:
        name: "auto", "cpu", or an accelerator's, such as "cuda" or "cuda:1".
    Raises:
        ValueError: no such device (names those that there are).
    """
    if name == "auto":
        return default_device()
    accelerator = default_device().type
    count = torch.accelerator.device_count() if accelerator != "cpu" else 0
    there = ["cpu", *([accelerator] if count else []), *(f"{accelerator}:{index}" for index in range(count))]
    if name not in there:
        raise ValueError(f"--device {name} is not there; there are {', '.join(there)}")
    return torch.device(name)


def has_float64(device: torch.device | str) -> bool:
    """Whether the device computes in float64; Apple's GPUs do not."""
    return torch.device(device).type != "mps"


def use_device(device: torch.device) -> None:
    """Make an accelerator with a number this process's own, so that libraries claim no memory of another one."""
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)


def all_accelerators() -> list[torch.device]:
    """Every accelerator of this machine."""
    kind = default_device().type
    return [torch.device(kind, index) for index in range(torch.accelerator.device_count())] if kind != "cpu" else []


def best_precision(device: torch.device | str) -> str:
    """Precision to compute in: "bf16" where the CPU or GPU has instructions for it, else "no" (float32)."""
    device = torch.device(device)
    if device.type == "cpu":
        units = torch.cpu.get_capabilities()
        return "bf16" if units.get("amx_bf16") or units.get("avx512_bf16") else "no"
    if device.type != "cuda":
        return "no"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def device_name(device: torch.device | str) -> str:
    """The maker's name of a GPU; of a CPU its architecture and the instruction set that torch uses: "x86_64 AVX2"."""
    device = torch.device(device)
    if device.type == "cpu":
        return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def autocast(precision: str, device_type: str, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """A context in which a float32 model's matmuls run in bf16 if `precision` is "bf16"; else it changes nothing."""
    if precision == "bf16" and dtype == torch.float32:
        return torch.autocast(device_type, torch.bfloat16)
    return contextlib.nullcontext()


def keep_freed_memory() -> None:
    """Make glibc's malloc keep up to 1 GB of freed memory for the next allocations; other C libraries stay as they are.

    By default malloc returns the memory of a large activation to the system, which zeroes pages for the next one: a
    seventh of a forward pass on two cores. Allocations above 32 MB, such as large weights, are still returned. All
    threads share the main arena, since others keep less.

    Source: mallopt(3).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(library, "mallopt"):
        library.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(TRIM_THRESHOLD, 2**30)
        library.mallopt(MOST_ARENAS, 1)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out: an accelerator's, the CPU's, or what its libraries wanted of it.

    cuBLAS says that it was not initialized where there is no memory left for its workspace.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY)


def release_memory() -> None:
    """Give back to the accelerator what the allocator keeps for later."""
    module = torch.get_device_module()
    if hasattr(module, "empty_cache"):
        module.empty_cache()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the CPU does not wait for a copy from host memory, nor for what the device has to do first.

    From memory that is not pinned, a copy would wait until the device has done all that it was given.
    """
    if tensor.device.type != "cpu" or device.type == "cpu":
        return tensor.to(device)
    if device.type in WITH_STREAMS and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type != "mps")  # Apple's may read the memory when it is gone


def clock(devices: Iterable[torch.device]) -> float:
    """Seconds of a steady clock, once GPUs among the devices have done all that they were given."""
    for device in devices:
        if device.type in WITH_STREAMS:
            torch.accelerator.synchronize(device)
    return time.monotonic()


@functools.cache
def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of matmuls in this dtype, measured once a process; only of small ones if those take long, or
    memory is short.
    """
    for size in MATMULS_CPU if device.type == "cpu" else MATMULS:
        if size > MATMULS_CPU[-1] and 4 * size**2 * dtype.itemsize > available_memory(device):
            break
        matrix, result = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        for _ in range(2):  # the first time, libraries are loaded
            started = clock([device])
            for _ in range(4):
                torch.mm(matrix, matrix, out=result)
            float(result[0, 0])  # waits for devices that clock does not wait for
            seconds = clock([device]) - started
        speed = 4 * 2 * size**3 / seconds
        # bf16 on a CPU without instructions for it is a hundred times as slow; a larger matmul takes 64 times as long
        if seconds > (0.1 if device.type == "cpu" else 0.01):
            break
    if device.type != "cpu":
        del matrix, result
        release_memory()
    return speed


def reset_peak_memory(devices: Iterable[torch.device]) -> None:
    """Let peak_memory of accelerators measure from here on; that of a CPU cannot be reset."""
    for device in devices:
        module = torch.get_device_module(device)
        if hasattr(module, "reset_peak_memory_stats"):
            module.reset_peak_memory_stats(device)


def peak_memory(devices: Sequence[torch.device]) -> int:
    """Bytes at most: of accelerators, together, since reset_peak_memory; without one, of the process since its start.

    An accelerator that does not count them counts as 0.
    """
    accelerators = [device for device in devices if device.type != "cpu"]
    if accelerators:
        modules = [(torch.get_device_module(device), device) for device in accelerators]
        return sum(each.max_memory_allocated(own) for each, own in modules if hasattr(each, "max_memory_allocated"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on an accelerator, or in the machine.

    An accelerator that does not tell counts as sharing the machine's, as Apple's do.
    """
    module = torch.get_device_module(device)
    if device.type == "cpu" or not hasattr(module, "mem_get_info"):
        return psutil.virtual_memory().available
    return module.mem_get_info(device)[0]
