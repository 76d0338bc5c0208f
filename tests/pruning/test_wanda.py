from pathlib import Path

import numpy as np
import pytest
import torch
from fake_accelerator import Traffic, fake_accelerator

from pruning import wanda
from pruning.wanda import wanda_mask

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "peer_layer_a.npz")


def sorted_twin(scores: torch.Tensor, dropped: int) -> torch.Tensor:
    """Drop the first of a stable sort of every row: the plainest statement of the rule, ties to the later input."""
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, scores.argsort(dim=1, stable=True)[:, :dropped], False)


def test_norm_outweighs_weight_by_hand():
    W = torch.tensor([[1.0, -2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    norms = torch.tensor([100.0, 1.0, 4.0, 0.0])  # scores 10 2 6 0 and 40 3 4 0
    assert wanda_mask(W, norms, 0.5).tolist() == [[True, False, True, False]] * 2
    assert wanda_mask(W, norms, nm=(1, 2)).tolist() == [[True, False, True, False]] * 2
    assert wanda_mask(W, norms, 0.25).tolist() == [[True, True, True, False]] * 2


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_equals_the_published_masks(sparsity: float):
    """The published code truncates 192 * sparsity, so the mask is asked at the sparsity that gives that count."""
    W, norms = torch.from_numpy(GOLDEN["weight"]), torch.from_numpy(GOLDEN["wanda_scaler_row"])
    keep = wanda_mask(W, norms, int(192 * sparsity) / 192)
    assert np.array_equal(~keep.numpy(), GOLDEN[f"wanda_pruned_{sparsity}"])


@pytest.mark.parametrize("nm", [(2, 4), (4, 8), (6, 8), (1, 8)])
def test_equals_the_published_nm_masks(nm: tuple[int, int]):
    W, norms = torch.from_numpy(GOLDEN["weight"]), torch.from_numpy(GOLDEN["wanda_scaler_row"])
    assert np.array_equal(~wanda_mask(W, norms, nm=nm).numpy(), GOLDEN[f"wanda_pruned_{nm[0]}of{nm[1]}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_equals_the_sorted_twin_with_many_ties(dtype: torch.dtype, sparsity: float):
    generator = torch.Generator().manual_seed(0)
    W = (torch.randn(19, 23, generator=generator) * 4).round().to(dtype)
    norms = torch.randint(0, 3, (23,), generator=generator).float()
    keep = wanda_mask(W, norms, sparsity)
    assert torch.equal(keep, sorted_twin(W.float().abs() * norms.sqrt(), round(sparsity * 23)))
    assert ((~keep).sum(dim=1) == round(sparsity * 23)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_16_bit_weights_are_those_of_float32(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    W, norms = torch.randn(19, 512, generator=generator).to(dtype), torch.rand(512, generator=generator)
    assert torch.equal(wanda_mask(W, norms, 0.5), sorted_twin(W.float().abs() * norms.sqrt(), 256))


def test_equal_norms_give_row_magnitude_at_any_scale():
    W = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    by_magnitude = sorted_twin(W.abs(), 6)
    for scale in (1e-6, 1.0, 1e6):
        assert torch.equal(wanda_mask(W, torch.full((12,), scale), 0.5), by_magnitude)


def test_one_column_one_row_and_inputs_left_alone():
    W, norms = torch.tensor([[2.0], [1.0]]), torch.ones(1)
    assert not wanda_mask(W, norms, 0.6).any()
    assert wanda_mask(W.T, torch.ones(2), 0.5).tolist() == [[True, False]]
    assert W.flatten().tolist() == [2, 1] and norms.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "not both and not neither"),
        ({"sparsity": 0.5, "nm": (2, 4)}, r"sparsity=0.5, nm=\(2, 4\)"),
        ({"sparsity": 1.5}, r"sparsity 1.5 is outside \[0, 1\]"),
        ({"sparsity": float("nan")}, "sparsity nan"),
        ({"nm": (3, 5)}, "groups of 5 do not divide 8 inputs"),
        ({"nm": (9, 8)}, "9 of 8"),
        ({"nm": (0, 0)}, "0 of 0: N must be from 0 to M"),
        ({"sparsity": 0.5, "input_sq_norms": torch.ones(7)}, r"shape \(7,\) do not fit 8 inputs"),
        ({"sparsity": 0.5, "input_sq_norms": -torch.ones(8)}, "negative"),
        ({"sparsity": 0.5, "input_sq_norms": torch.full((8,), torch.nan)}, "NaN"),
        ({"sparsity": 0.5, "W": torch.full((2, 8), torch.nan)}, "the weight holds NaN"),
        ({"sparsity": 0.5, "W": torch.ones(8)}, "a weight is a matrix"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        wanda_mask(**({"W": torch.ones(2, 8), "input_sq_norms": torch.ones(8)} | arguments))


def test_large_finite_weights_are_no_infinity():
    """Their sum overflows, and in float16 it would already at 65520."""
    W = torch.full((2, 8), 3e38)
    assert wanda_mask(W, torch.ones(8), 0.5).sum() == 8
    assert wanda_mask(torch.full((2, 8), 6e4, dtype=torch.float16), torch.ones(8), 0.5).sum() == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [{"sparsity": 0.0}, {"sparsity": 0.37}, {"nm": (2, 4)}, {"nm": (5, 48)}])
def test_masks_on_an_accelerator_are_those_of_the_cpu(accelerator: str, strength: dict, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(4)
    W = torch.randn(64, 96, generator=generator).round(decimals=1).to(dtype)
    norms = torch.rand(96, generator=generator).round(decimals=1)
    there = wanda_mask(W.to(accelerator), norms.to(accelerator), **strength)
    assert torch.equal(there.cpu(), wanda_mask(W, norms, **strength))


@pytest.mark.parametrize("strength", [{"sparsity": 0.37}, {"nm": (2, 4)}, {"nm": (5, 48)}])
def test_a_weight_is_waited_for_twice_however_many_parts(monkeypatch: pytest.MonkeyPatch, strength: dict):
    """To check the weight and the norms."""
    monkeypatch.setattr(wanda, "SCORES_AT_ONCE", 300)
    with fake_accelerator() as meter:
        W, norms = torch.randn(64, 96).to("fake"), torch.rand(96).to("fake")
        meter.reset()
        wanda_mask(W, norms, **strength)
        assert meter.traffic == Traffic(0, 0, 0, 0, waits=2)


def test_rows_ranked_in_parts_are_ranked_the_same(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(3)
    W, norms = torch.randn(7, 12, generator=generator), torch.rand(12, generator=generator)
    whole = wanda_mask(W, norms, sparsity=0.5)
    monkeypatch.setattr(wanda, "SCORES_AT_ONCE_CPU", 30)  # two rows at once, the last by itself
    assert torch.equal(wanda_mask(W, norms, sparsity=0.5), whole)
