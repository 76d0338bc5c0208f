"""pruning/validation.py: what is finite, part by part."""

import pytest
import torch

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
