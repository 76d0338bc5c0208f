import pytest
import torch

from pruning.device import autocast, best_precision


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
