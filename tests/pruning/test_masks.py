import itertools

import pytest
import torch
from fake_accelerator import fake_accelerator
from torch import nn

from pruning.masks import apply_masks, hold_masks, lowest_k_mask, lowest_k_masks, zero_fraction

SPARSITIES = [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.99, 1.0]


def sorted_twin(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Drop the first k of a stable sort: the plainest statement of the rule, ties to the later position."""
    flat = scores.float().flatten()
    keep = torch.ones(flat.numel(), dtype=torch.bool)
    keep[flat.argsort(stable=True)[: round(sparsity * flat.numel())]] = False
    return keep.view(scores.shape)


def test_drops_the_lowest_by_hand():
    scores = torch.tensor([[3.0, 1.0], [4.0, 2.0]])
    assert lowest_k_mask(scores, 0.5).tolist() == [[True, False], [True, False]]
    assert lowest_k_mask(scores, 0.25).tolist() == [[True, False], [True, True]]


def test_sparsity_0_keeps_all_and_1_drops_all():
    assert lowest_k_mask(torch.ones(3), 0.0).all()
    assert not lowest_k_mask(torch.ones(3), 1.0).any()


def test_ties_go_to_the_later_position():
    assert lowest_k_mask(torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.5).tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(1,), (7,), (10, 10), (33, 17)])
def test_equals_the_sorted_twin_with_many_ties(dtype: torch.dtype, size: tuple[int, ...]):
    scores = torch.randn(size, generator=torch.Generator().manual_seed(1)).mul(8).round().to(dtype)
    together = lowest_k_masks([scores], SPARSITIES)
    for sparsity, (mask,) in zip(SPARSITIES, together, strict=True):
        assert torch.equal(mask, sorted_twin(scores, sparsity))
        assert torch.equal(mask, lowest_k_mask(scores, sparsity))
        assert int((~mask).sum()) == round(sparsity * scores.numel())


def test_several_tensors_are_ranked_as_one_and_masks_are_nested():
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(5, 4, generator=generator), torch.randn(3, generator=generator), torch.randn(2, 2, 2)]
    masks = lowest_k_masks(tensors, SPARSITIES)
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    for sparsity, parts in zip(SPARSITIES, masks, strict=True):
        assert [part.shape for part in parts] == [tensor.shape for tensor in tensors]
        assert torch.equal(torch.cat([part.flatten() for part in parts]), sorted_twin(flat, sparsity))
    for looser, tighter in itertools.pairwise(masks):
        for wide, narrow in zip(looser, tighter, strict=True):
            assert not (narrow & ~wide).any()


def test_unordered_and_repeated_sparsities():
    scores = torch.arange(10.0)
    (half,), (fifth,), (again,) = lowest_k_masks([scores], [0.5, 0.2, 0.5])
    assert half.sum() == 5 and fifth.sum() == 8 and torch.equal(half, again)


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_sparsity_outside_the_range_is_refused(sparsity: float):
    with pytest.raises(ValueError, match=r"sparsity .* is outside \[0, 1\]"):
        lowest_k_mask(torch.ones(3), sparsity)


def test_nan_score_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        lowest_k_mask(torch.tensor([1.0, float("nan")]), 0.5)


def test_scores_are_left_alone():
    scores = torch.tensor([3.0, 1.0, 2.0])
    lowest_k_mask(scores, 0.5)
    assert scores.tolist() == [3.0, 1.0, 2.0]


def trained_layer(
    dtype: torch.dtype, frozen: bool, optimizer_class: type, device: str = "cpu"
) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer after five noisy steps under a mask; returns it, the mask and its weights before."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).to(device, dtype)
    before = layer.weight.detach().clone()
    keep = lowest_k_mask(before.abs(), 0.4)
    optimizer = optimizer_class(layer.parameters(), lr=0.1, weight_decay=0.1)
    parameters = dict(layer.named_parameters())
    if not frozen:
        apply_masks(parameters, {"weight": keep})
    hold_masks(optimizer, parameters, {"weight": keep}, {"weight": before} if frozen else None)
    for _ in range(5):
        optimizer.zero_grad()
        layer(torch.randn(8, 6).to(device, dtype)).square().sum().backward()
        optimizer.step()
    return layer, keep, before


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_held_weights_are_zero_after_the_last_step_and_others_train(dtype: torch.dtype, optimizer_class: type):
    layer, keep, before = trained_layer(dtype, frozen=False, optimizer_class=optimizer_class)
    assert layer.weight.dtype == dtype
    assert zero_fraction([layer.weight]) == round(0.4 * 30) / 30
    assert (layer.weight[~keep] == 0).all()
    assert (layer.weight[keep] != before[keep]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_are_bit_equal_to_pretrained_ones(dtype: torch.dtype):
    layer, keep, before = trained_layer(dtype, frozen=True, optimizer_class=torch.optim.AdamW)
    assert torch.equal(layer.weight[~keep], before[~keep])
    assert (layer.weight[keep] != before[keep]).all()


def test_mask_that_is_let_go_holds_no_longer():
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    handle = hold_masks(optimizer, dict(layer.named_parameters()), {"weight": torch.zeros(2, 2, dtype=torch.bool)})
    handle.remove()
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert layer.weight.all()


def test_zero_fraction_by_hand():
    assert zero_fraction([torch.tensor([0.0, -0.0, 1.0]), torch.tensor([2.0])]) == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_on_an_accelerator_leave_exact_zeros(accelerator: str, dtype: torch.dtype):
    """The masks may be on the CPU."""
    weights = {name: torch.randn(16, 25, generator=torch.Generator().manual_seed(1)).to(dtype) for name in "ab"}
    there = {name: weight.to(accelerator) for name, weight in weights.items()}
    keep = lowest_k_mask(weights["a"].abs(), 0.4)
    apply_masks(there, {"a": keep, "b": keep.to(accelerator)})
    for name, weight in there.items():
        assert torch.equal(weight.cpu(), weights[name].masked_fill(~keep, 0))
    assert zero_fraction(there.values()) == zero_fraction([*there.values(), *there.values()]) == 0.4


def test_zeros_of_many_weights_take_one_wait():
    with fake_accelerator() as meter:
        weights = [torch.eye(3).to("fake") for _ in range(5)]
        meter.reset()
        assert zero_fraction(weights) == 2 / 3
        assert meter.traffic.waits == 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [False, True])
def test_masks_hold_on_a_gpu(dtype: torch.dtype, frozen: bool):
    layer, keep, before = trained_layer(dtype, frozen, torch.optim.SGD, "cuda")
    held = before.masked_fill(keep, 0) if frozen else torch.zeros_like(before)
    assert torch.equal(layer.weight.masked_fill(keep, 0), held)
    assert (layer.weight[keep] != before[keep]).any()
