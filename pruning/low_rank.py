"""Low-rank approximation (paper, appendix E): the best matrix of a given rank in place of each weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning.validation import check_weight


def low_rank_approximation(W: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Best approximation of W in the Frobenius norm at each rank, from one float32 decomposition.

    Args:
        W: weight, (out_features, in_features).
        ranks: each from 1 to min(out_features, in_features).
    Returns:
        One dense matrix per rank, in W's shape and dtype.
    Raises:
        ValueError: a rank outside its range, or W is not a matrix or holds NaN or infinity.
    Source: paper, appendix E; Eckart and Young, 1936.
    """
    for rank in ranks:
        if not 1 <= rank <= min(W.shape):
            raise ValueError(f"rank {rank} is outside 1 ... {min(W.shape)} for a weight of shape {tuple(W.shape)}")
    if not ranks:
        return []
    left, right = factors(W, max(ranks))
    return [(left[:, :rank] @ right[:rank]).to(W.dtype) for rank in ranks]


def factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two float32 factors whose first r columns and rows multiply to the best approximation of every rank r <= `rank`.

    Args:
        W: weight, (out_features, in_features).
        rank: at least 1; of a smaller matrix, all that it has.
    Returns:
        (out_features, rank), the left singular vectors times the singular values, and (rank, in_features).
    Raises:
        ValueError: W is not a matrix or holds NaN or infinity.
    """
    check_weight(W)
    left, values, right = torch.linalg.svd(W.detach().float(), full_matrices=False)
    # copies, so that what is left out does not stay in memory
    return (left[:, :rank] * values[:rank]).contiguous(), right[:rank].clone()


def parameter_ratio(shape: tuple[int, int], rank: int) -> float:
    """Parameters of two factors of this rank over those of the dense matrix: r(m + n) / (mn).

    It reaches 1 at r = mn / (m + n); above that nothing is saved.
    """
    rows, columns = shape
    return rank * (rows + columns) / (rows * columns)
