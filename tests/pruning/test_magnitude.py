import pytest
import torch

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
