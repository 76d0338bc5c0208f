"""Batches computed side by side on a CPU: each lane is a thread that computes batches of its own.

torch divides one product among all threads, but most of what stands between products it leaves to one of them, and the
others wait: two threads that work together are 1.4 times as fast as one, two lanes 1.8 times.
"""

import math
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

LANE_TOKENS = 1024  # of a lane's batch: smaller ones take longer in products than a lane gains
UNEVEN = 1.03  # times the mean: what the fullest of some batches holds

Tasks = queue.LifoQueue
Task = Callable[[Tasks], None]  # puts what has to be done after it into the queue


def divide(budget: int, tokens: int) -> tuple[int, int]:
    """How many lanes to compute some tokens in, at least 1, and how many tokens each of them computes at once.

    Several share the budget, so that all have about as many batches to compute.

    Args:
        budget: tokens computed at once, by all lanes.
        tokens: that have to be computed.
    """
    lanes = min(torch.get_num_threads(), budget // LANE_TOKENS, math.ceil(tokens / LANE_TOKENS))
    if lanes < 2:
        return 1, budget
    tokens = math.ceil(UNEVEN * tokens)
    turns = math.ceil(tokens / budget)
    return lanes, min(math.ceil(tokens / (turns * lanes)), budget // lanes)


def run(first: Task, lanes: int) -> None:
    """Do a task and all that it puts into its queue, the latest first, in so many lanes; one is the calling thread.

    Raises:
        BaseException: what a task raised first; no other task is begun after it.
    """
    tasks: Tasks = queue.LifoQueue()
    tasks.put(first)
    if lanes == 1:
        while not tasks.empty():
            tasks.get()(tasks)
        return
    threads, errors = torch.get_num_threads(), []

    def work() -> None:
        torch.set_num_threads(max(1, threads // lanes))  # of this lane
        while (task := tasks.get()) is not None:
            try:
                if not errors:
                    task(tasks)
            except BaseException as error:
                errors.append(error)
            finally:
                tasks.task_done()

    try:
        with ThreadPoolExecutor(lanes, thread_name_prefix="lane") as pool:
            try:
                for _ in range(lanes):
                    pool.submit(work)
                tasks.join()
            finally:  # an interrupt too: what comes last is taken first
                for _ in range(lanes):
                    tasks.put(None)
    finally:
        torch.set_num_threads(threads)
    try:
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # this frame is in the error's traceback: what failed would stay in memory
