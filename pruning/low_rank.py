"""Low-rank approximation (paper, appendix E): each weight is replaced by the closest matrix of a given rank."""

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
    """Two float32 factors of W: r columns of one times r rows of the other is the best matrix of rank r, r <= `rank`.

    Args:
        W: weight, (out_features, in_features).
        rank: at least 1; at most min(out_features, in_features) columns are returned.
    Returns:
        (out_features, rank), the left singular vectors times the singular values, and (rank, in_features).
    Raises:
        ValueError: W is not a matrix or holds NaN or infinity.
    """
    check_weight(W)
    left, values, right = torch.linalg.svd(W.detach().float(), full_matrices=False)
    # copies, so that the rest of the decomposition is freed
    return (left[:, :rank] * values[:rank]).contiguous(), right[:rank].clone()


def parameter_ratio(shape: tuple[int, int], rank: int) -> float:
    """Parameters of two factors of this rank, divided by those of the dense matrix: r(m + n) / (mn).

    Above rank mn / (m + n) the ratio exceeds 1: factors save nothing.
    """
    rows, columns = shape
    return rank * (rows + columns) / (rows * columns)
