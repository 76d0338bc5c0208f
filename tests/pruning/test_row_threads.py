import os

import numpy as np
import pytest
import torch
from numba.core import caching

from pruning import row_threads


def double(first: int, last: int, values: np.ndarray) -> None:
    for row in range(first, last):
        values[row] *= 2


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("rows", [0, 1, 4, 11])
def test_every_row_is_done_once(rows: int, threads: int):
    values = np.ones((rows, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        row_threads.share_rows(row_threads.compiled(set())(double), rows, 1, values)
    finally:
        torch.set_num_threads(before)
    assert (values == 2).all()


def test_an_error_in_any_thread_is_raised():
    def fail(first: int, last: int) -> None:
        if first:
            raise ValueError("a row is wrong")

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="a row is wrong"):
            row_threads.share_rows(fail, 2, 1)
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_loops_are_compiled_even_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    values = np.ones((2, 3))
    row_threads.compiled(set())(double)(0, 2, values)
    assert (values == 2).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_survive_a_fork():
    assert row_threads._thread_pool(os.getpid()) is not row_threads._thread_pool(os.getpid() + 1)
