import pytest
import torch
from fake_accelerator import fake_accelerator

from pruning import selection
from pruning.magnitude import magnitude_masks

WEIGHTS = {"a": torch.tensor([[1.0, -5.0], [0.1, 3.0]]), "b": torch.tensor([[-0.2, 0.3]])}


def test_global_ranks_all_weights_together_by_absolute_value():
    (half,) = magnitude_masks(WEIGHTS, [0.5])
    assert half["a"].tolist() == [[True, True], [False, True]]
    assert half["b"].tolist() == [[False, False]]


def test_layer_ranks_within_each_weight():
    (half,) = magnitude_masks(WEIGHTS, [0.5], scope="layer")
    assert half["a"].tolist() == [[False, True], [False, True]]
    assert half["b"].tolist() == [[False, True]]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_one_pass_equals_one_call_per_sparsity_and_counts_are_exact(scope: str):
    torch.manual_seed(0)
    weights = {f"layer.{i}": torch.randn(13, 7 + i) for i in range(4)}
    sparsities = [0.0, 0.123, 0.5, 0.9]
    for sparsity, masks in zip(sparsities, magnitude_masks(weights, sparsities, scope), strict=True):
        (alone,) = magnitude_masks(weights, [sparsity], scope)
        assert all(torch.equal(masks[name], alone[name]) for name in weights)
        pruned = [int((~masks[name]).sum()) for name in weights]
        sizes = [weight.numel() for weight in weights.values()]
        if scope == "global":
            assert sum(pruned) == round(sparsity * sum(sizes))
        else:
            assert pruned == [round(sparsity * size) for size in sizes]


def test_no_sparsity_gives_no_mask():
    assert magnitude_masks(WEIGHTS, []) == []


def test_unknown_scope_is_named():
    with pytest.raises(ValueError, match="scope 'row' is not one of global, layer"):
        magnitude_masks(WEIGHTS, [0.5], scope="row")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_masks_on_an_accelerator_are_those_of_the_cpu(accelerator: str, scope: str, dtype: torch.dtype):
    weights = {f"layer.{i}": torch.randn(13, 7 + i, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    weights = {name: weight.to(dtype) for name, weight in weights.items()}
    there = {name: weight.to(accelerator) for name, weight in weights.items()}
    for mine, masks in zip(
        magnitude_masks(weights, [0.0, 0.3, 0.9], scope), magnitude_masks(there, [0.0, 0.3, 0.9], scope), strict=True
    ):
        assert all(torch.equal(mine[name], masks[name].cpu()) for name in weights)


def test_many_weights_take_no_copy_of_them_all(monkeypatch: pytest.MonkeyPatch):
    """Memory of the masks, and for the scores of a part; a copy of the weights would be 256 kB more."""
    monkeypatch.setattr(selection, "PART", 2**10)
    with fake_accelerator() as meter:
        weights = {name: torch.randn(256, 128).to("fake") for name in "abcd"}
        table = 2 * selection.BINS * 8
        magnitude_masks({"a": weights["a"]}, [0.5])
        meter.reset()
        magnitude_masks({"a": weights["a"]}, [0.5])
        of_one = meter.peak_bytes
        meter.reset()
        magnitude_masks(weights, [0.5])
        assert table < of_one
        assert meter.peak_bytes - of_one <= 3 * 256 * 128 + 2**10
