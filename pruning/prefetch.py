"""Tensors that are brought to a device one step after another: the next step's are copied while this one's are used."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from harness.device import WITH_STREAMS


class Prefetcher:
    """Brings the tensors of each step to a device, those of the next step ahead of their turn.

    On a device with streams, the next step's tensors are copied from pinned memory in a stream of their own. At most
    two steps' tensors are on the device: what `take` returned last, and the next.

    Args:
        read: the tensors of a step, in host memory; called in another thread where steps are read ahead.
        num_steps: steps are 0 … num_steps - 1.
        device: where the tensors are wanted.
        ahead: whether the next step is read ahead; None: on any device but the CPU, whose memory would hold two steps.
    """

    def __init__(
        self, read: Callable[[int], Sequence[Tensor]], num_steps: int, device: torch.device, ahead: bool | None = None
    ) -> None:
        self._read, self._num_steps, self._device = read, num_steps, device
        self._stream = torch.Stream(device) if device.type in WITH_STREAMS else None
        self._pool = ThreadPoolExecutor(1, "prefetch") if (device.type != "cpu" if ahead is None else ahead) else None
        self._next: tuple[int, Future] | None = None

    def take(self, step: int) -> list[Tensor]:
        """The tensors of a step on the device; starts to bring those of the next."""
        if self._pool is None:
            return self._bring(step)[0]
        if self._next is None or self._next[0] != step:
            self._start(step)
        tensors, copied = self._next[1].result()
        self._next = None
        if self._stream is not None:
            current = torch.accelerator.current_stream(self._device)
            current.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(current)
        if step + 1 < self._num_steps:
            self._start(step + 1)
        return tensors

    def _start(self, step: int) -> None:
        if self._next is not None:
            self._next[1].cancel()
        self._next = step, self._pool.submit(self._bring, step)

    @torch.no_grad()
    def _bring(self, step: int) -> tuple[list[Tensor], torch.Event | None]:
        tensors = self._read(step)
        if self._stream is None:
            return [tensor.to(self._device) for tensor in tensors], None
        with self._stream:
            brought = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            return brought, self._stream.record_event()
