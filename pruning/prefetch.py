"""Tensors that are brought to a device one step after another: the next step's are copied while this one's are used."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from harness.device import WITH_STREAMS, is_out_of_memory, release_memory


class Prefetcher:
    """Brings the tensors of each step to a device, those of the next step ahead of their turn.

    On a device with streams, the next step's tensors are copied from pinned memory in a stream of their own. At most
    two steps' tensors are on the device: what `take` returned last, and the next, which are brought once the device has
    done what it was given before `take`, so that the memory of the step before is free.

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
        (tensors, copied), done_before = self._taken(step), None
        if self._stream is not None:
            current = torch.accelerator.current_stream(self._device)
            current.wait_event(copied)
            for tensor in tensors:
                tensor.record_stream(current)
            done_before = current.record_event()
        if step + 1 < self._num_steps:
            self._start(step + 1, done_before)
        return tensors

    def _taken(self, step: int) -> tuple[list[Tensor], torch.Event | None]:
        """What was brought ahead; brought now where there was no memory for it beside the step before and its work."""
        brought, (_, ahead), self._next = None, self._next, None
        try:
            brought = ahead.result()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if brought is None:
            del ahead  # its error holds what was brought before memory ran out
            release_memory()
            brought = self._bring(step)
        return brought

    def _start(self, step: int, after: torch.Event | None = None) -> None:
        if self._next is not None:
            self._next[1].cancel()
        self._next = step, self._pool.submit(self._bring, step, after)

    @torch.no_grad()
    def _bring(self, step: int, after: torch.Event | None = None) -> tuple[list[Tensor], torch.Event | None]:
        """The tensors of a step on the device, once it has come to `after`; and the event that they are there."""
        tensors = self._read(step)
        if self._stream is None:
            return [tensor.to(self._device) for tensor in tensors], None
        pinned = [tensor.pin_memory() for tensor in tensors]
        if after is not None:  # else the CPU, far ahead of the device, would bring one step after another
            after.synchronize()
        with self._stream:
            brought = [tensor.to(self._device, non_blocking=True) for tensor in pinned]
            return brought, self._stream.record_event()
