import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

from harness.device import KEPT_SHAPES, autocast, best_precision, keep_few_shapes


def test_precision_is_bf16_only_where_there_are_units_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert best_precision("cpu") == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert best_precision("cpu") == "bf16"


@pytest.mark.parametrize(
    ("precision", "dtype", "computed"),
    [
        ("bf16", torch.float32, torch.bfloat16),
        ("no", torch.float32, torch.float32),
        ("bf16", torch.float16, torch.float16),  # a model of 16 bits keeps its own
    ],
)
def test_only_float32_models_are_autocast(precision: str, dtype: torch.dtype, computed: torch.dtype):
    matrix = torch.eye(2, dtype=dtype)
    with autocast(precision, "cpu", dtype):
        assert (matrix @ matrix).dtype == computed


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_used_again_without_asking_the_system():
    """Four tensors of 12 MB, twenty times, are zeroed pages of the system's every time, or the same pages.

    glibc's default threshold moves with what is freed, so that it may keep them too, by luck: here it starts fixed.
    """
    program = """
import resource, sys, torch
from harness.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        [torch.empty(3_000_000).fill_(1.0) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = [faults(), faults()][1]
keep_freed_memory()
print(by_default, [faults(), faults()][1])
"""
    fixed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run([sys.executable, "-c", program], env=fixed, capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert kept < 100 < by_default


@pytest.mark.skipif(
    best_precision("cpu") == "no" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="bf16 is multiplied without oneDNN, or the C library does not tell what is in use",
)
def test_kernels_of_many_shapes_are_not_all_kept():
    program = """
import ctypes, sys, torch
from harness import device

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h mapped us fs used free keep".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Mallinfo
if sys.argv[1] == "few":
    device.keep_few_shapes()
weight = torch.ones(32, 32, dtype=torch.bfloat16)
rows = torch.ones(600, 32, dtype=torch.bfloat16)
held = []
for count in range(1, 601):
    torch.nn.functional.linear(rows[:count], weight)
    held.append(library.mallinfo2().used)
print(held[-1] - held[199])
"""
    shapes = {name: str(2**10) for name in KEPT_SHAPES}
    unset = {name: value for name, value in os.environ.items() if name not in KEPT_SHAPES}

    def grown(way: str, environment: dict[str, str]) -> int:
        """Bytes in use after 600 shapes beyond those after 200."""
        command = [sys.executable, "-c", program, way]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    all_kept = grown("all", unset)
    assert all_kept > 10 * 2**20
    assert grown("few", unset) < all_kept / 10
    assert grown("few", {**unset, **shapes}) > all_kept / 2  # as the user says


def test_what_the_user_has_set_of_kept_shapes_stays(monkeypatch: pytest.MonkeyPatch):
    first, second = KEPT_SHAPES
    monkeypatch.setattr(os, "environ", {first: "7"})
    keep_few_shapes()
    assert os.environ == {first: "7", second: KEPT_SHAPES[second]}
