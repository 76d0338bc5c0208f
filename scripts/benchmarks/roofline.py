"""The floor of a piece of work on a device: what its matmuls, its memory or the way from the host take at least.

Speeds are those that this device reaches in this process: of large matmuls, of a copy within its memory, of a copy from
pinned host memory. A floor is the largest of the three times, since a device can do all three at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from harness.device import WITH_STREAMS, available_memory, clock, matmul_speed

MOST_COPIED = 2**30  # bytes of a copy that is timed
COPY_SECONDS = 0.01  # a copy that takes so long is large enough to time


class Work(NamedTuple):
    """What a piece of work cannot do without.

    Fields:
        flops: of matmuls in the dtype of the weights.
        float32_flops: of matmuls in float32.
        bytes: read or written in the device's memory.
        link_bytes: copied between host and device, in the direction that copies more.
    """

    flops: float = 0.0
    float32_flops: float = 0.0
    bytes: float = 0.0
    link_bytes: float = 0.0


class Roofline(NamedTuple):
    """Speeds of a device.

    Fields:
        flops_per_second: of matmuls in the dtype of the weights.
        float32_flops_per_second: of matmuls in float32.
        bytes_per_second: of its memory, read and written bytes together.
        link_bytes_per_second: from host memory to the device; None on a CPU.
    """

    flops_per_second: float
    float32_flops_per_second: float
    bytes_per_second: float
    link_bytes_per_second: float | None

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at least."""
        computing = work.flops / self.flops_per_second + work.float32_flops / self.float32_flops_per_second
        linked = work.link_bytes / self.link_bytes_per_second if self.link_bytes_per_second else 0.0
        return max(computing, work.bytes / self.bytes_per_second, linked)


def measured_roofline(device: torch.device, dtype: torch.dtype) -> Roofline:
    """The speeds of this device."""
    return Roofline(
        matmul_speed(device, dtype), matmul_speed(device, torch.float32), memory_speed(device), link_speed(device)
    )


def memory_speed(device: torch.device) -> float:
    """Bytes per second that a copy within the device's memory reads and writes, together."""

    def copied(number: int) -> Callable[[], object]:
        source, target = (torch.empty(number, dtype=torch.uint8, device=device) for _ in range(2))
        return lambda: target.copy_(source)

    return 2 * _copy_speed(copied, device)


def link_speed(device: torch.device) -> float | None:
    """Bytes per second of a copy from host memory, pinned where that is faster; None where the device is the CPU."""
    if device.type == "cpu":
        return None
    pinned = device.type in WITH_STREAMS

    def copied(number: int) -> Callable[[], object]:
        source = torch.empty(number, dtype=torch.uint8, pin_memory=pinned)
        target = torch.empty(number, dtype=torch.uint8, device=device)
        return lambda: target.copy_(source, non_blocking=pinned)

    return _copy_speed(copied, device)


def _copy_speed(copied: Callable[[int], Callable[[], object]], device: torch.device) -> float:
    """Bytes per second of the fastest of five copies, of as many bytes as take COPY_SECONDS.

    Args:
        copied: returns the copy of a number of bytes.
    """
    number, most = 2**20, min(MOST_COPIED, available_memory(device) // 8)
    while True:
        copy, times = copied(number), []
        for _ in range(6):  # the first does not count
            started = clock([device])
            copy()
            times.append(clock([device]) - started)
        fastest = max(min(times[1:]), 1e-9)
        if fastest >= COPY_SECONDS or 4 * number > most:
            return number / fastest
        number *= 4
