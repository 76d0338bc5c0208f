import os
import platform
import subprocess
import sys

import pytest
import torch

from harness.device import autocast, best_precision, matmul_speed


def test_precision_is_bf16_only_where_there_are_units_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert best_precision("cpu") == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert best_precision("cpu") == "bf16"


def test_the_speed_of_matmuls_is_measured_once():
    assert matmul_speed(torch.device("cpu"), torch.float32) == matmul_speed(torch.device("cpu"), torch.float32) > 0


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
@pytest.mark.slow
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
