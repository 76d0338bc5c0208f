"""Loops over the rows of a matrix: compiled by numba, and run on several threads."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import torch


def compiled(fastmath: set[str]) -> Callable[[Callable[..., None]], numba.core.dispatcher.Dispatcher]:
    """Decorator that compiles a kernel for share_rows; numba caches it beside the source or in the user's cache.

    Args:
        fastmath: LLVM's fast-math flags.
    """

    def decorate(function: Callable[..., None]) -> numba.core.dispatcher.Dispatcher:
        options = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # neither folder is writable: not cached
            return numba.njit(**options)(function)

    return decorate


def share_rows(kernel: Callable[..., None], rows: int, least: int, *arguments: object) -> None:
    """Run kernel(first, last, *arguments) over all rows, on as many threads as torch uses.

    Waiting threads sleep; those of numba's pool spin, which on busy cores costs a time slice per call.

    Args:
        kernel: computes rows first ... last - 1, independently of other rows; releases the GIL.
        rows: number of rows.
        least: smallest number of rows worth a thread, at least 1.
    """
    threads = min(torch.get_num_threads(), rows // least)
    if threads < 2:
        kernel(0, rows, *arguments)
        return
    bounds = [rows * part // threads for part in range(threads + 1)]
    pool = _thread_pool(os.getpid())
    others = [pool.submit(kernel, *bounds[part : part + 2], *arguments) for part in range(1, threads)]
    kernel(*bounds[:2], *arguments)
    for other in others:
        other.result()


@functools.cache
def _thread_pool(process: int) -> ThreadPoolExecutor:
    """One pool per process id: a forked process has no threads of its parent. Threads start when they are needed."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix=f"rows-{process}")
