"""pruning/validation.py: what is finite, part by part."""

import pytest
import torch
from fake_accelerator import fake_accelerator

from pruning import validation


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 2, 4])
def test_one_value_in_any_part_is_found(monkeypatch: pytest.MonkeyPatch, bad: float, row: int):
    monkeypatch.setattr(validation, "VALUES_AT_ONCE", 6)  # two rows of three; the last part is one row
    matrix = torch.ones(5, 3)
    assert validation.all_finite(matrix)
    matrix[row, 1] = bad
    assert not validation.all_finite(matrix)
    assert not validation.all_finite(matrix.T)


def test_rows_longer_than_a_part_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(validation, "VALUES_AT_ONCE", 2)
    assert validation.all_finite(torch.ones(3, 7, dtype=torch.bfloat16))


def test_a_sum_beyond_float32_is_not_an_infinity():
    assert validation.all_finite(torch.full((2, 4), 3e38))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_accelerator_finds_what_the_cpu_finds(accelerator: str, bad: float, dtype: torch.dtype):
    matrix = torch.ones(5, 3, dtype=dtype, device=accelerator)
    assert validation.all_finite(matrix) and validation.all_finite(matrix[:0])
    matrix[3, 1] = bad
    assert not validation.all_finite(matrix)
    assert not validation.all_finite(matrix.T)


def test_a_weight_is_waited_for_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(validation, "VALUES_AT_ONCE", 6)
    with fake_accelerator() as meter:
        matrix = torch.full((50, 3), 3e38).to("fake")
        meter.reset()
        validation.check_weight(matrix)
        assert meter.traffic.waits == 1
