from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow_cases
from fake_accelerator import Traffic, fake_accelerator

from pruning import column_kernels
from pruning.hessian import factor_inverse
from quantization import gptq
from quantization.gptq import gptq_grid, gptq_quantize, round_to_nearest, round_to_nearest_grid

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "peer_layer_a.npz")


def layer(rows: int, features: int, tokens: int = 0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and correlated inputs for it."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(features) + torch.randn(features, features, generator=generator) / features**0.5
    X = torch.randn(tokens or 3 * features, features, generator=generator) @ mixing
    return torch.randn(rows, features, generator=generator), X


def output_error(W: torch.Tensor, quantized: torch.Tensor, X: torch.Tensor) -> float:
    return float(((quantized - W).double() @ X.double().T).norm())


def optimal_brain_quantizer(
    W: torch.Tensor, H: torch.Tensor, bits: int, group_size: int, block_size: int = 128
) -> torch.Tensor:
    """Brute force in float64: the full inverse Hessian of the columns not yet visited, downdated one at a time.

    An asymmetric grid per group, from the weights at the start of the block in which its first column lies, as in
    IST-DASLab/gptq gptq.py, where `find_params` reads W and only W1 has the block's own updates.
    """
    W, H = W.double(), H.double()
    features, steps = len(H), 2**bits - 1
    H = H + 0.01 * H.diagonal().mean() * torch.eye(features, dtype=torch.float64)
    inverse, result = torch.linalg.inv(H), torch.zeros_like(W)
    for j in range(features):
        if j % block_size == 0:
            at_block_start = W
        if j % group_size == 0:
            group = at_block_start[:, j : j + group_size]
            low, high = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
            scale = (high - low) / steps
            zero = (-low / scale).round()
        result[:, j] = scale * (((W[:, j] / scale).round() + zero).clamp(0, steps) - zero)
        W = W - torch.outer((W[:, j] - result[:, j]) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return result


def test_asymmetric_grid_by_hand():
    """From -1 to 2 in 2^2 - 1 steps of 1, so 0 has code 1; halves go to the even multiple of the step."""
    grid = round_to_nearest_grid(torch.tensor([[-1.0, 2.0, 0.5, 1.5, -0.4]]), bits=2)
    assert grid.scales.tolist() == [[1]] and grid.zeros.tolist() == [[1]]
    assert grid.codes.tolist() == [[0, 3, 1, 3, 1]]
    assert grid.dequantize().tolist() == [[-1, 2, 0, 2, 0]]
    assert round_to_nearest(torch.tensor([[3.0, 1.2]]), 2).tolist() == [[3, 1]]  # 0 is on the grid of positive weights


def test_symmetric_grid_by_hand():
    """From -3.5 to 3.5 in 7 steps of 1 with 0 at code 4: codes 0 ... 7 stand for -4 ... 3."""
    grid = round_to_nearest_grid(torch.tensor([[-3.5, 1.2, 3.5]]), bits=3, symmetric=True)
    assert grid.scales.tolist() == [[1]] and grid.zeros.tolist() == [[4]]
    assert grid.dequantize().tolist() == [[-4, 1, 3]]
    positive = round_to_nearest(torch.tensor([[7.0, 3.0]]), 3, symmetric=True)  # steps of 2 up to 3 * 2
    assert positive.tolist() == [[6, 4]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_row_of_zeros_stays_zero(symmetric: bool):
    grid = round_to_nearest_grid(torch.zeros(2, 3), 4, symmetric=symmetric)
    assert not grid.dequantize().any() and grid.scales.flatten().tolist() == pytest.approx([2 / 15] * 2)
    assert round_to_nearest(torch.full((1, 3), 1e-44), 4, symmetric=symmetric).isfinite().all()


def test_short_last_group():
    W = torch.tensor([[1.0, -2.0, 30.0, 15.0, 0.25]])
    grid = round_to_nearest_grid(W, bits=8, group_size=2)
    assert grid.group_index.tolist() == [0, 0, 1, 1, 2] and grid.scales.shape == (1, 3)
    for first, last in ((0, 2), (2, 4), (4, 5)):
        assert torch.equal(grid.dequantize()[:, first:last], round_to_nearest(W[:, first:last], 8))


@pytest.mark.parametrize("bits", [2, 4, 8, 9, 16])
def test_rounding_error_is_at_most_half_a_step(bits: int):
    W, _ = layer(5, 30)
    grid = round_to_nearest_grid(W, bits, 8)
    assert grid.codes.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert grid.codes.min() >= 0 and grid.codes.max() <= 2**bits - 1
    steps = (grid.dequantize() - W).abs() / grid.scales[:, grid.group_index]
    assert steps.max() <= 1.0 + 1e-2  # a half, and up to a half more where rounding the zero moves the grid's end


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_agrees_with_the_published_code(bits: int, symmetric: bool, act_order: bool):
    W, H, X = (torch.from_numpy(GOLDEN[key]) for key in ("weight", "hessian", "inputs"))
    published = torch.from_numpy(GOLDEN[f"gptq_b{bits}_g-1_act{act_order:d}_sym{symmetric:d}"])
    quantized = gptq_quantize(W, H, bits, symmetric=symmetric, act_order=act_order)
    assert torch.isclose(quantized, published, rtol=1e-4, atol=1e-6).float().mean() > 0.999
    inputs = X.reshape(-1, 192)
    assert output_error(W, quantized, inputs) == pytest.approx(output_error(W, published, inputs), rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_agrees_with_the_published_code_in_groups_smaller_than_a_block(bits: int, symmetric: bool):
    """Groups of 64 in blocks of 128: the grid of the second group lacks the block's own corrections."""
    W, H, X = (torch.from_numpy(GOLDEN[key]) for key in ("weight", "hessian", "inputs"))
    published = torch.from_numpy(GOLDEN[f"gptq_b{bits}_g64_act0_sym{symmetric:d}"])
    quantized = gptq_quantize(W, H, bits, 64, symmetric=symmetric)
    assert torch.isclose(quantized, published, rtol=1e-4, atol=1e-6).float().mean() > 0.999
    inputs = X.reshape(-1, 192)
    assert output_error(W, quantized, inputs) == pytest.approx(output_error(W, published, inputs), rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 192])
def test_equals_the_brute_force_quantizer_on_a_layer_of_more_than_a_block(bits: int, group_size: int):
    W, X = layer(64, 192)
    expected = optimal_brain_quantizer(W, X.T @ X, bits, group_size)
    quantized = gptq_quantize(W, X.T @ X, bits, group_size)
    # Where float32 rounds a weight to the other side, the rest of its row differs.
    same = torch.isclose(quantized.double(), expected, rtol=1e-4, atol=1e-4)
    assert same.all(dim=1).float().mean() > 0.9
    assert output_error(W, quantized, X) == pytest.approx(output_error(W, expected.float(), X), rel=1e-3)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("group_size", [5, 8, 12, 24])
@pytest.mark.parametrize("block_size", [4, 8, 128])
def test_equals_the_brute_force_quantizer_for_any_blocks_and_groups(bits: int, group_size: int, block_size: int):
    W, X = layer(7, 24)
    expected = optimal_brain_quantizer(W, X.T @ X, bits, group_size, block_size)
    quantized = gptq_quantize(W, X.T @ X, bits, group_size, block_size=block_size)
    torch.testing.assert_close(quantized.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
def test_act_order_is_the_same_on_reordered_inputs(act_order: bool):
    """Groups in the order of visit: putting the inputs into that order beforehand must change nothing."""
    W, X = layer(6, 20)
    X = X * torch.randperm(20, generator=torch.Generator().manual_seed(1)).add(1)
    order = (X.T @ X).diagonal().argsort(descending=True)
    sorted_first = gptq_quantize(W[:, order], X[:, order].T @ X[:, order], 4, 8, act_order=act_order)
    quantized = gptq_quantize(W, X.T @ X, 4, 8, act_order=True)
    torch.testing.assert_close(quantized[:, order], sorted_first, rtol=1e-4, atol=1e-4)


def test_static_groups_use_the_grids_of_the_dense_weight():
    W, X = layer(6, 20)
    dense = round_to_nearest_grid(W, 4, 8)
    for act_order in (False, True):
        grid = gptq_grid(W, X.T @ X, 4, 8, act_order=act_order, static_groups=True)
        assert torch.equal(grid.scales, dense.scales) and torch.equal(grid.zeros, dense.zeros)
        assert torch.equal(grid.group_index, dense.group_index) and not torch.equal(grid.codes, dense.codes)


def test_groups_of_reordered_inputs_are_handed_out():
    W, X = layer(6, 20)
    factor = factor_inverse(X.T @ X, act_order=True)
    grid = gptq_grid(W, factor, 4, 8, act_order=True)
    assert torch.equal(grid.group_index[factor.order], torch.arange(20) // 8)
    assert torch.equal(grid.dequantize(), gptq_quantize(W, X.T @ X, 4, 8, act_order=True))


@pytest.mark.parametrize("options", [{}, {"group_size": 8}, {"symmetric": True}, {"group_size": 8, "act_order": True}])
def test_uncorrelated_equal_inputs_give_round_to_nearest(options: dict):
    W, _ = layer(9, 30)
    expected = round_to_nearest(W, 4, options.get("group_size", -1), options.get("symmetric", False))
    assert torch.equal(gptq_quantize(W, 5 * torch.eye(30), 4, **options), expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [-1, 16])
def test_output_error_is_below_that_of_rounding(seed: int, bits: int, group_size: int):
    W, X = layer(24, 48, seed=seed)
    rounded = round_to_nearest(W, bits, group_size)
    for options in ({}, {"act_order": True}, {"act_order": True, "static_groups": True}):
        quantized = gptq_quantize(W, X.T @ X, bits, group_size, **options)
        assert output_error(W, quantized, X) < output_error(W, rounded, X)


@pytest.mark.parametrize("shape", [(1, 20), (20, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_row_one_column_and_dtypes(shape: tuple[int, int], dtype: torch.dtype):
    W, X = layer(*shape)
    W, H = W.to(dtype), X.T @ X
    before = W.clone(), H.clone()
    quantized = gptq_quantize(W, H, 4, 8, act_order=True)
    assert quantized.dtype == dtype and quantized.shape == W.shape and quantized.isfinite().all()
    assert torch.equal(W, before[0]) and torch.equal(H, before[1])


def test_rank_deficient_hessian_and_dead_inputs():
    W, X = layer(12, 40, tokens=10)
    X[:, [3, 17]] = 0
    for options in ({}, {"act_order": True}, {"group_size": 16}, {"group_size": 16, "static_groups": True}):
        quantized = gptq_quantize(W, X.T @ X, 3, **options)
        assert quantized.isfinite().all() and (quantized[:, [3, 17]] == 0).all()
        assert output_error(W, quantized, X) < output_error(W, round_to_nearest(W, 3, options.get("group_size", -1)), X)


def test_the_grid_of_a_row_counts_the_weights_of_dead_inputs_and_that_of_a_group_does_not():
    """The published code finds the grid of a row before it zeroes them, and those of groups afterwards."""
    W, H = torch.tensor([[9.0, 1.0, 3.0]]), torch.tensor([0.0, 1.0, 1.0]).diag()
    assert gptq_grid(W, H, 2).scales.tolist() == [[3]]
    for static_groups in (False, True):
        assert gptq_grid(W, H, 2, 3, static_groups=static_groups).scales.tolist() == [[1]]


def test_shared_factor_equals_the_hessian_bit_for_bit():
    W, X = layer(8, 30)
    for act_order in (False, True):
        factor = factor_inverse(X.T @ X, act_order=act_order)
        for rows in (8, 3):
            separate = gptq_quantize(W[:rows], X.T @ X, 4, 8, act_order=act_order)
            assert torch.equal(gptq_quantize(W[:rows], factor, 4, 8, act_order=act_order), separate)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("rows", [1, 130, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_kernel_equals_the_torch_loop(bits: int, rows: int, threads: int):
    """Codes are equal where error feedback has not yet had a tie to break: columns here do not depend on each other."""
    generator = torch.Generator().manual_seed(4)
    columns = torch.randn(32, rows, generator=generator)
    upper = torch.diag(torch.rand(32, generator=generator) + 0.5)
    scales = torch.rand(3, rows, generator=generator) * 4 / 2**bits
    zeros = torch.randint(0, 2**bits, (3, rows), generator=generator).float()
    scales[0] = 2.0**-7  # a step that makes halves exact
    columns[:8] = torch.randint(-9, 9, (8, rows), generator=generator) / 2**8
    group_index = torch.arange(32) // 12
    ours, twin = (columns.clone(), torch.empty_like(columns)), (columns.clone(), torch.empty_like(columns))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        column_kernels.round_columns(ours[0], upper, scales, zeros, group_index, ours[1], 2**bits - 1)
    finally:
        torch.set_num_threads(before)
    gptq._round_columns_torch(twin[0], upper, scales, zeros, group_index, twin[1], 2**bits - 1)
    assert torch.equal(ours[0], twin[0])
    torch.testing.assert_close(ours[1], twin[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_torch_loop_equals_the_brute_force_quantizer(monkeypatch: pytest.MonkeyPatch, spread: float):
    monkeypatch.setattr(column_kernels, "round_columns", gptq._round_columns_torch)
    W, X = layer(7, 24)
    W = W * spread
    expected = optimal_brain_quantizer(W, X.T @ X, 4, 8)
    torch.testing.assert_close(gptq_quantize(W, X.T @ X, 4, 8).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits 1 is outside 2 ... 16"),
        ({"bits": 17}, "bits 17 is outside"),
        ({"group_size": 0}, "group_size 0"),
        ({"group_size": -2}, "group_size -2"),
        ({"W": torch.full((2, 8), torch.nan)}, "NaN"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str):
    both = {"W": torch.ones(2, 8), "bits": 4} | arguments
    with pytest.raises(ValueError, match=message):
        round_to_nearest(**both)
    with pytest.raises(ValueError, match=message):
        gptq_quantize(hessian=torch.eye(8), **both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 0}, "block_size 0"),
        ({"hessian": torch.eye(9)}, r"shape \(9, 9\) does not fit 8 inputs"),
        ({"hessian": torch.full((8, 8), torch.inf)}, "the Hessian holds NaN or infinity"),
        ({"hessian": factor_inverse(torch.eye(8)), "act_order": True}, "factored with act_order=False"),
    ],
)
def test_bad_hessian_is_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        gptq_quantize(**({"W": torch.ones(2, 8), "hessian": torch.eye(8), "bits": 4} | arguments))


GRIDS = [{}, {"group_size": 64}, {"group_size": 48, "static_groups": True, "symmetric": True}, {"act_order": True},
         {"group_size": 64, "act_order": True}]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (GRIDS[0], torch.float32),
        (GRIDS[2], torch.float16),
        (GRIDS[4], torch.bfloat16),
        *slow_cases(
            *((options, torch.float32) for options in GRIDS[1:]),
            *((options, torch.bfloat16) for options in GRIDS[:4]),
            *((options, torch.float16) for options in GRIDS if options is not GRIDS[2]),
        ),
    ],
)
def test_an_accelerator_agrees_with_the_cpu(accelerator: str, options: dict, dtype: torch.dtype):
    W, X = layer(64, 256)
    X[:, 9] = 0
    W, H = W.to(dtype), X.T @ X
    on_cpu = gptq_quantize(W, H, 4, **options)
    there = gptq_quantize(W.to(accelerator), H.to(accelerator), 4, **options)
    assert there.device.type == accelerator and there.dtype == dtype
    assert output_error(W, there.cpu(), X) == pytest.approx(output_error(W, on_cpu, X), rel=5e-3)
    assert (there.cpu()[:, 9] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"group_size": 64}, {"group_size": 48, "symmetric": True}])
def test_round_to_nearest_on_an_accelerator_is_that_of_the_cpu(accelerator: str, options: dict, dtype: torch.dtype):
    W = layer(16, 256)[0].to(dtype)
    mine, there = round_to_nearest_grid(W, 4, **options), round_to_nearest_grid(W.to(accelerator), 4, **options)
    for ours, theirs in zip(mine, there, strict=True):
        assert torch.equal(ours, theirs.cpu())
    assert torch.equal(there.dequantize(dtype).cpu(), mine.dequantize(dtype))


@pytest.mark.parametrize("options", [GRIDS[2], *slow_cases(*GRIDS[:2], *GRIDS[3:])])
def test_waits_do_not_grow_with_the_columns(options: dict):
    """For W's values and the factor's: one for H's values, one for whether it exists; none to round to nearest."""
    plain = {name: value for name, value in options.items() if name in ("group_size", "symmetric")}
    for features in (64, 320):
        W, X = layer(5, features)
        with fake_accelerator() as meter:
            W, H = W.to("fake"), (X.T @ X).to("fake")
            meter.reset()
            gptq_quantize(W, H, 4, block_size=64, **options)
            assert meter.traffic == Traffic(0, 1, 0, 4 * features, waits=3)
            meter.reset()
            round_to_nearest(W, 4, **plain)
            assert meter.traffic == Traffic(0, 0, 0, 0, waits=1)


@pytest.mark.parametrize("bits", [3, 12])
def test_weights_computed_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch, bits: int):
    W = layer(7, 40)[0]
    whole = round_to_nearest_grid(W, bits, 16)
    dense = whole.dequantize()
    monkeypatch.setattr(gptq, "WEIGHTS_AT_ONCE", 100)  # two rows at once, the last by itself
    parts = round_to_nearest_grid(W, bits, 16)
    assert all(map(torch.equal, whole, parts)) and torch.equal(parts.dequantize(), dense)
