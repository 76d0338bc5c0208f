"""Signals that announce the end of a job: a training in work saves a checkpoint, and the process ends.

Slurm sends them before a time limit or a preemption (scripts/slurm_array.sh passes them on); so may you, by kill -USR1.
The same command goes on from the checkpoint. Between runs the signals end the process as they always do.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

EXIT_CODE = os.EX_TEMPFAIL  # 75: not done, no failure; the same command goes on
STEPS_BETWEEN_AGREEMENTS = 10  # several processes ask each other this often, since that makes them wait for each other


@contextmanager
def announced(accelerator: Accelerator) -> Iterator[Callable[[], bool]]:
    """Remember SIGUSR1 and SIGTERM instead of ending; yields whether one came.

    In a distributed job SIGTERM stays as it is: with it a launcher ends processes that wait for one that failed.
    """
    came = threading.Event()
    numbers = (signal.SIGUSR1, signal.SIGTERM) if accelerator.num_processes == 1 else (signal.SIGUSR1,)
    if threading.current_thread() is not threading.main_thread():  # others cannot take signals
        numbers = ()
    previous = {number: signal.signal(number, lambda *_: came.set()) for number in numbers}
    try:
        yield came.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agreed(accelerator: Accelerator, came: Callable[[], bool]) -> bool:
    """Whether the signal came to any process of the job; all have to ask at the same point."""
    if accelerator.num_processes == 1:
        return came()
    asked = torch.tensor(float(came()), device=accelerator.device)
    return bool(accelerator.reduce(asked, reduction="sum") > 0)


def agreed_at(accelerator: Accelerator, came: Callable[[], bool], step: int) -> bool:
    """The same after an optimizer step; over several processes at some steps alone."""
    if accelerator.num_processes > 1 and step % STEPS_BETWEEN_AGREEMENTS:
        return False
    return agreed(accelerator, came)
