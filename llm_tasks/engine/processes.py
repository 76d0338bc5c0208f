"""The processes of one job (accelerate launch, torchrun): what each of them does, and what they tell each other.

Each has the whole model, on a GPU of its own or on the CPU, and evaluates a part of the items. Batches are cut as a
single process cuts them, so that on GPUs of one kind, or CPUs with as many threads, the numbers are the same to the
bit. The main process compresses and broadcasts the weights to the others, once for each compression: so the copies
cannot differ, and calibration takes its memory once.
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

LONGEST_WAIT = datetime.timedelta(days=7)  # for each other; a process that dies ends the job at once by its launcher


class Processes(NamedTuple):
    """The processes of a job, seen by one of them.

    Fields:
        index: of this one; 0 is the main process, which alone compresses and writes.
        count: how many there are.
        device: on which they exchange tensors.
    """

    index: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, value: Any, source: int = 0) -> Any:
        """The value that the process `source` holds, by default the main one; in all processes."""
        holder = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(holder, src=source)
        return holder[0]

    def merge(self, values: np.ndarray) -> np.ndarray:
        """The sum of all processes' values: each holds its own, and 0 where another process has the value."""
        if self.count == 1:
            return values
        merged = torch.from_numpy(values).to(self.device)
        torch.distributed.all_reduce(merged)
        return merged.cpu().numpy()

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors of equal shapes the main process's contents, in place."""
        if self.count == 1:
            return
        for tensor in tensors:
            content = tensor.to(self.device).contiguous()
            torch.distributed.broadcast(content, src=0)
            if not self.is_main:
                tensor.copy_(content)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Inside, what fails in one process fails in all, so that none waits for another that gave up.

        Raises:
            RuntimeError: in the processes in which nothing else went wrong.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:  # any: while one process ends its cell, none may go on and wait for it
            error = caught
        failed = np.zeros(self.count, dtype=np.int64)
        failed[self.index] = error is not None
        failed = self.merge(failed)
        if failed.any():
            first = int(failed.argmax())
            said = self.share(str(error), first)
            raise error or RuntimeError(f"process {first} of the job failed: {said}")

    def own_part(self, costs: Sequence[float]) -> range:
        """Split `costs` into contiguous parts of about equal total, one per process; returns this process's indices."""
        if not len(costs):
            return range(0)
        ends = np.cumsum(costs, dtype=float)
        middles = ends - np.asarray(costs, dtype=float) / 2
        cuts = np.searchsorted(middles, [ends[-1] * part / self.count for part in (self.index, self.index + 1)])
        return range(cuts[0] if self.index else 0, cuts[1] if self.index < self.count - 1 else len(ends))

    def leave(self) -> None:
        """Leave the job: nothing can be exchanged afterwards."""
        if self.count > 1:
            PartialState().destroy_process_group()


ALONE = Processes()


def join(device: torch.device) -> Processes:
    """The job that a launcher started this process in; ALONE without one.

    Args:
        device: of the model; a GPU without a number stands for this process's own.
    """
    if job_size() == 1:
        return ALONE
    state = PartialState(cpu=device.type == "cpu", timeout=LONGEST_WAIT)
    return Processes(state.process_index, state.num_processes, state.device)


def job_size() -> int:
    """How many processes the launcher started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
