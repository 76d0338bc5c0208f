import pytest
import torch
from fake_accelerator import Traffic, fake_accelerator

from pruning.ria import ria_mask


def test_score_by_hand():
    W = torch.tensor([[3.0, -1.0], [1.0, 1.0]])
    # rows sum to 4 and 2, columns to 4 and 2: row 0: 3/4 + 3/4, 1/4 + 1/2; row 1: 1/2 + 1/4, 1/2 + 1/2
    assert ria_mask(W, torch.ones(2), 0.5).tolist() == [[True, False], [False, True]]
    # norms 2 and 0.5 count by their square root, 1.41 and 0.71: scores 2.12 0.53 / 1.06 0.71
    assert ria_mask(W, torch.tensor([4.0, 0.25]), 0.25).tolist() == [[True, False], [True, True]]
    assert ria_mask(W, torch.tensor([4.0, 0.25]), nm=(1, 2)).tolist() == [[True, False], [True, False]]


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_equals_the_definition_in_float64(sparsity: float):
    generator = torch.Generator().manual_seed(0)
    W, norms = torch.randn(9, 14, generator=generator), torch.rand(14, generator=generator)
    magnitude = W.double().abs()
    scores = magnitude / magnitude.sum(1, keepdim=True) + magnitude / magnitude.sum(0, keepdim=True)
    order = (scores * norms.double() ** 0.25).flatten().argsort()
    expected = torch.ones(126, dtype=torch.bool)
    expected[order[: round(sparsity * 126)]] = False
    for scale in (2.0**-30, 1.0, 2.0**30):  # that of the weights does not matter
        assert torch.equal(ria_mask(W * scale, norms, sparsity).flatten(), expected)


def test_zero_rows_and_columns_go_first():
    W = torch.ones(4, 4)
    W[1], W[:, 2] = 0, 0
    keep = ria_mask(W, torch.ones(4), 7 / 16)
    assert torch.equal(keep, W != 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "not both and not neither"), ({"nm": (1, 3)}, "groups of 3"), ({"sparsity": -0.1}, "sparsity -0.1")],
)
def test_bad_input_is_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ria_mask(torch.ones(2, 4), torch.ones(4), **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [{"sparsity": 0.4}, {"nm": (2, 4)}])
def test_masks_on_an_accelerator_are_those_of_the_cpu(accelerator: str, strength: dict, dtype: torch.dtype):
    """Sums may be rounded differently, which can exchange weights of about the same score."""
    generator = torch.Generator().manual_seed(4)
    W, norms = torch.randn(64, 96, generator=generator).to(dtype), torch.rand(96, generator=generator)
    there = ria_mask(W.to(accelerator), norms.to(accelerator), **strength).cpu()
    mine = ria_mask(W, norms, **strength)
    assert there.sum() == mine.sum() and (there != mine).float().mean() < (0 if accelerator == "fake" else 0.001) + 1e-9


@pytest.mark.parametrize("strength", [{"sparsity": 0.4}, {"nm": (2, 4)}])
def test_a_weight_is_waited_for_three_times(strength: dict):
    """To check the weight, the norms and the scores."""
    with fake_accelerator() as meter:
        W, norms = torch.randn(64, 96).to("fake"), torch.rand(96).to("fake")
        meter.reset()
        ria_mask(W, norms, **strength)
        assert meter.traffic == Traffic(0, 0, 0, 0, waits=3)
