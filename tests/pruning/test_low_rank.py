import pytest
import torch

from pruning import low_rank
from pruning.low_rank import low_rank_approximation, parameter_ratio


def test_by_hand():
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    one, three = low_rank_approximation(W, [1, 3])
    torch.testing.assert_close(one, torch.diag(torch.tensor([3.0, 0.0, 0.0])))
    torch.testing.assert_close(three, W)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 4), (4, 1)])
def test_error_is_the_dropped_singular_values(shape: tuple[int, int]):
    """Eckart and Young: the squared error of the best rank-r matrix is the sum of the squared values left out."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(W.double())
    ranks = list(range(1, min(shape) + 1))
    for rank, approximation in zip(ranks, low_rank_approximation(W, ranks), strict=True):
        assert approximation.shape == W.shape and torch.linalg.matrix_rank(approximation) == rank
        error = (W.double() - approximation.double()).square().sum()
        torch.testing.assert_close(error, values[rank:].square().sum(), rtol=1e-5, atol=1e-10)


def test_ranks_in_any_order_keep_dtype_and_input():
    W = torch.randn(6, 4, dtype=torch.bfloat16)
    before = W.clone()
    high, low, again = low_rank_approximation(W, [4, 1, 4])
    assert high.dtype == low.dtype == torch.bfloat16 and torch.equal(high, again) and torch.equal(W, before)
    torch.testing.assert_close(high, W)  # full rank gives back W within one rounding
    assert low_rank_approximation(W, []) == []


def test_parameter_ratio_by_hand():
    assert parameter_ratio((4, 4), 1) == 0.5
    assert parameter_ratio((4096, 4096), 2048) == 1  # nothing is saved above mn / (m + n)
    assert parameter_ratio((2, 6), 2) == 16 / 12


@pytest.mark.parametrize("rank", [0, -1, 5])
def test_bad_rank_is_named(rank: int):
    with pytest.raises(ValueError, match=rf"rank {rank} is outside 1 ... 4 for a weight of shape \(6, 4\)"):
        low_rank_approximation(torch.ones(6, 4), [2, rank])


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        low_rank_approximation(torch.full((2, 2), torch.nan), [1])


def test_factors_serve_every_smaller_rank():
    W = torch.randn(5, 7, generator=torch.Generator().manual_seed(2))
    left, right = low_rank.factors(W, 3)
    assert (left.shape, right.shape) == ((5, 3), (3, 7))
    for rank, expected in zip((1, 2, 3), low_rank_approximation(W, [1, 2, 3]), strict=True):
        torch.testing.assert_close(left[:, :rank] @ right[:rank], expected)
    left, right = low_rank.factors(W, 100)  # of a smaller matrix, all that it has
    torch.testing.assert_close(left @ right, W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_accelerator_agrees_with_the_cpu(accelerator: str, dtype: torch.dtype):
    W = torch.randn(12, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    for mine, there in zip(
        low_rank_approximation(W, [1, 4]), low_rank_approximation(W.to(accelerator), [1, 4]), strict=True
    ):
        assert there.device.type == accelerator and there.dtype == dtype
        torch.testing.assert_close(there.cpu(), mine, rtol=1e-2, atol=1e-3 if dtype == torch.float32 else 2e-2)
