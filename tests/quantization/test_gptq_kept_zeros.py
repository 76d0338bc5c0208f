"""GPTQ of a pruned weight: by hand, against brute force, and where the mask changes nothing."""

import pytest
import torch
from test_gptq import layer, optimal_brain_quantizer, output_error

from pruning import column_kernels
from pruning.sparsegpt import sparsegpt_prune
from quantization import gptq
from quantization.gptq import gptq_grid, gptq_quantize, round_to_nearest_grid


def mask_of(rows: int, features: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(rows, features, generator=torch.Generator().manual_seed(seed)) > 0.5


def brute_force(
    W: torch.Tensor, H: torch.Tensor, keep: torch.Tensor, bits: int, group_size: int, block_size: int
) -> torch.Tensor:
    """optimal_brain_quantizer of tests/quantization/test_gptq.py with a mask; the grid sees 0 where it drops."""
    W, H, steps = W.double(), H.double(), 2**bits - 1
    H = H + 0.01 * H.diagonal().mean() * torch.eye(len(H), dtype=torch.float64)
    inverse, result = torch.linalg.inv(H), torch.zeros_like(W)
    for j in range(len(H)):
        if j % block_size == 0:
            at_block_start = W
        if j % group_size == 0:
            group = (at_block_start * keep)[:, j : j + group_size]
            low, high = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
            empty = (low == 0) & (high == 0)
            low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
            scale = (high - low) / steps
            zero = (-low / scale).round()
        rounded = scale * (((W[:, j] / scale).round() + zero).clamp(0, steps) - zero)
        result[:, j] = torch.where(keep[:, j], rounded, 0)
        W = W - torch.outer((W[:, j] - result[:, j]) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result


def test_two_inputs_by_hand():
    """H = [[2, 1], [1, 2]]: an error e of the first input moves the second weight by e * H12 / H22 = e / 2.

    The first weight, 2, is dropped: the second becomes 3 + 2 / 2 = 4. Its grid is that of [0, 3], in steps of 1: the
    code of 4 is clamped to 3. Without the mask both are on the grid and stay.
    """
    W, H = torch.tensor([[2.0, 3.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    grid = gptq_grid(W, H, 2, damping=0.0, keep_mask=torch.tensor([[False, True]]))
    assert grid.dequantize().tolist() == [[0, 3]] and grid.codes.tolist() == [[0, 3]]
    assert gptq_quantize(W, H, 2, damping=0.0).tolist() == [[2, 3]]
    wider = gptq_grid(torch.tensor([[2.0, 3.0, 7.0]]), torch.block_diag(H, torch.eye(1)), 3, damping=0.0,
                      keep_mask=torch.tensor([[False, True, True]]))  # fmt: skip
    assert wider.dequantize().tolist() == [[0, 4, 7]]


def test_the_grid_is_that_of_what_is_kept():
    """8 is dropped: kept are -1 and 2, whose grid of 2 bits has steps of 1. The inputs do not depend on each other."""
    keep = torch.tensor([[True, False, True]])
    for options in ({}, {"group_size": 3}, {"group_size": 3, "static_groups": True}, {"act_order": True}):
        grid = gptq_grid(torch.tensor([[-1.0, 8.0, 2.0]]), torch.eye(3), 2, keep_mask=keep, **options)
        assert grid.scales.tolist() == [[1]] and grid.dequantize().tolist() == [[-1, 0, 2]]


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("group_size", [5, 8, 24])
@pytest.mark.parametrize("block_size", [4, 128])
@pytest.mark.parametrize("kernel", ["compiled", "torch"])
def test_equals_the_brute_force_quantizer(
    monkeypatch: pytest.MonkeyPatch, bits: int, group_size: int, block_size: int, kernel: str
):
    if kernel == "torch":
        monkeypatch.setattr(column_kernels, "round_columns", gptq._round_columns_torch)
    W, X = layer(7, 24)
    keep, H = mask_of(7, 24), X.T @ X
    for weight in (W, W * keep):
        expected = brute_force(weight, H, keep, bits, group_size, block_size)
        found = gptq_grid(weight, H, bits, group_size, block_size=block_size, keep_mask=keep).dequantize()
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
        assert not found[~keep].any()
    kept = brute_force(W, H, torch.ones_like(keep), bits, group_size, block_size)
    assert torch.equal(kept, optimal_brain_quantizer(W, H, bits, group_size, block_size))


@pytest.mark.parametrize("rows", [1, 130, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_kernel_equals_the_torch_loop(rows: int, threads: int):
    """Codes are equal; columns here do not depend on each other, so no tie depends on the order of a sum."""
    generator = torch.Generator().manual_seed(4)
    columns = torch.randn(32, rows, generator=generator)
    upper = torch.diag(torch.rand(32, generator=generator) + 0.5)
    scales = torch.rand(3, rows, generator=generator)
    zeros = torch.randint(0, 16, (3, rows), generator=generator).float()
    keep, group_index = mask_of(32, rows), torch.arange(32) // 12
    ours, twin = (columns.clone(), torch.empty_like(columns)), (columns.clone(), torch.empty_like(columns))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        column_kernels.round_columns(ours[0], upper, scales, zeros, group_index, ours[1], 15, keep)
    finally:
        torch.set_num_threads(before)
    gptq._round_columns_torch(twin[0], upper, scales, zeros, group_index, twin[1], 15, keep)
    assert torch.equal(ours[0], twin[0]) and torch.equal(ours[0][~keep], zeros[group_index][~keep])
    torch.testing.assert_close(ours[1], twin[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1][~keep], (columns / upper.diagonal()[:, None])[~keep])


OPTIONS = [
    {}, {"group_size": 16}, {"symmetric": True}, {"group_size": 7, "act_order": True},
    {"group_size": 16, "static_groups": True, "act_order": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("bits", [2, 4, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_stay_exactly_zero(options: dict, bits: int, dtype: torch.dtype):
    W, X = layer(12, 40)
    X[:, 7] = 0
    pruned = sparsegpt_prune(W, X.T @ X, 0.5).to(dtype)
    keep = pruned != 0
    found = gptq_grid(pruned, X.T @ X, bits, keep_mask=keep, **options).dequantize(dtype)
    assert not found[~keep].any()
    without = gptq_quantize(pruned, X.T @ X, bits, **options)
    assert without[~keep].any(), "without the mask the errors of other inputs fill the zeros"
    same = {name: value for name, value in options.items() if name in ("group_size", "symmetric")}
    rounded = round_to_nearest_grid(pruned, bits, **same).dequantize(dtype)
    assert not rounded[~keep].any()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", OPTIONS[:3])
def test_what_is_left_makes_up_for_its_rounding(options: dict, seed: int):
    """What is quantized is the pruned weight, so that its outputs are what is to be kept."""
    W, X = layer(24, 48, seed=seed)
    pruned = sparsegpt_prune(W, X.T @ X, 0.5)
    found = gptq_grid(pruned, X.T @ X, 4, keep_mask=pruned != 0, **options).dequantize()
    rounded = round_to_nearest_grid(pruned, 4, **options).dequantize()
    assert output_error(pruned, found, X) < output_error(pruned, rounded, X)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_mask_that_keeps_all_changes_nothing(options: dict):
    W, X = layer(12, 40)
    with_mask = gptq_grid(W, X.T @ X, 4, keep_mask=torch.ones_like(W, dtype=torch.bool), **options)
    for ours, plain in zip(with_mask, gptq_grid(W, X.T @ X, 4, **options), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("mask", [torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 8)])
def test_a_mask_that_does_not_fit_is_named(mask: torch.Tensor):
    with pytest.raises(ValueError, match=r"a keep_mask of torch\.\w+ \(2, [78]\) for a weight \(2, 8\)"):
        gptq_grid(torch.ones(2, 8), torch.eye(8), 4, keep_mask=mask)
