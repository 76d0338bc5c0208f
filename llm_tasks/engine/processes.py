"""Data parallelism in a job of several processes (accelerate launch, torchrun).

Each process has a copy of the model, on its own GPU or on the CPU, and evaluates a part of the items. Batches are those
of a single process, so that on GPUs of one type, or on CPUs with as many threads, results are the same to the bit. The
main process compresses the model and broadcasts the weights for each compression: the copies cannot differ, and
calibration needs its memory once.
"""

import datetime
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

LONGEST_WAIT = datetime.timedelta(days=7)  # for another process; if one dies, the launcher ends the job at once


class Processes(NamedTuple):
    """The processes of a job, as seen by one of them.

    Fields:
        index: index of this process; only the main process, 0, compresses and writes.
        count: number of processes.
        device: device on which they exchange tensors.
    """

    index: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, value: Any, source: int = 0) -> Any:
        """The value of process `source`, by default the main one, returned in all processes."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values, src=source)
        return values[0]

    def merge(self, values: np.ndarray) -> np.ndarray:
        """Sum over the processes, in all of them: each passes the values that it computed, and 0 for all others."""
        if self.count == 1:
            return values
        merged = torch.from_numpy(values).to(self.device)
        torch.distributed.all_reduce(merged)
        return merged.cpu().numpy()

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Copy the main process's tensors into these, of the same shapes, in place."""
        if self.count == 1:
            return
        for tensor in tensors:
            content = tensor.to(self.device).contiguous()
            torch.distributed.broadcast(content, src=0)
            if not self.is_main:
                tensor.copy_(content)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, an error in one process is raised in all at the end, so that none waits for one that failed.

        Raises:
            RuntimeError: another process failed.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # any: the others must not wait for this process
            error = caught
        failed = np.zeros(self.count, dtype=np.int64)
        failed[self.index] = error is not None
        failed = self.merge(failed)
        if failed.any():
            first = int(failed.argmax())
            message = self.share(str(error), first)
            raise error or RuntimeError(f"process {first} of the job failed: {message}")

    def local_part(self, costs: Sequence[float]) -> range:
        """Split `costs` into contiguous parts of about equal total, one per process; returns this process's indices."""
        if not len(costs):
            return range(0)
        ends = np.cumsum(costs, dtype=float)
        middles = ends - np.asarray(costs, dtype=float) / 2
        cuts = np.searchsorted(middles, [ends[-1] * part / self.count for part in (self.index, self.index + 1)])
        return range(cuts[0] if self.index else 0, cuts[1] if self.index < self.count - 1 else len(ends))

    def leave(self) -> None:
        """Leave the job; afterwards the processes cannot communicate."""
        if self.count > 1:
            PartialState().destroy_process_group()


ALONE = Processes()


def join(device: torch.device) -> Processes:
    """The job in which a launcher started this process; ALONE without a launcher.

    Args:
        device: the model's device; for a GPU without an index, each process gets its own.
    """
    if job_size() == 1:
        return ALONE
    state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, state.device)


def local_device(device: torch.device) -> torch.device:
    """The device of this process: of several on one machine, each has an accelerator of its own."""
    if job_size() == 1 or device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))


def job_size() -> int:
    """Number of processes of the job, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Number of processes of the job on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
