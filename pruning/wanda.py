"""Wanda (Sun et al., ICLR 2024): the weights with the smallest |weight| * input norm of each output go."""

import torch
from torch import Tensor

from pruning.nm import lowest_k_of_rows_mask, nm_mask
from pruning.validation import check_strength, check_weight

SCORES_AT_ONCE = 2**21  # rows are ranked by themselves, so that float32 scores of so many weights are in memory


def wanda_mask(
    W: Tensor, input_sq_norms: Tensor, sparsity: float | None = None, nm: tuple[int, int] | None = None
) -> Tensor:
    """Keep-mask that drops exactly round(sparsity * in) weights of every row, or keeps N of every M.

    Args:
        W: weight, (out_features, in_features).
        input_sq_norms: squared Euclidean norm of each input over the calibration tokens, at any positive scale.
        sparsity: fraction to drop, in [0, 1]; this or nm.
        nm: (n_kept, m_group).
    Returns:
        Boolean tensor shaped like W. Ties go to the later input.
    Raises:
        ValueError: both strengths or none, a strength outside its range, norms that do not fit W or are negative, NaN
            in either.
    Source: sec. 3; locuslab/wanda, which truncates the count of weights per row.
    """
    check_strength(sparsity, nm, W.shape[-1])
    norms = input_norms(W, input_sq_norms)
    keep = torch.empty(W.shape, dtype=torch.bool, device=W.device)
    rows = max(1, SCORES_AT_ONCE // W.shape[1])
    for weights, kept in zip(W.detach().split(rows), keep.split(rows), strict=True):
        scores = weights.float().abs() * norms
        kept.copy_(nm_mask(scores, *nm) if nm else lowest_k_of_rows_mask(scores, round(sparsity * W.shape[1])))
    return keep


def input_norms(W: Tensor, input_sq_norms: Tensor) -> Tensor:
    """Norm of each input, float32 on W's device; W and the squared norms are checked against each other.

    Raises:
        ValueError: W is not a matrix or holds NaN or infinity, norms that do not fit it, are negative or not finite.
    """
    check_weight(W)
    if input_sq_norms.shape != (W.shape[1],):
        raise ValueError(f"input_sq_norms of shape {tuple(input_sq_norms.shape)} do not fit {W.shape[1]} inputs")
    norms = input_sq_norms.detach().to(W.device, torch.float32)
    if not bool((norms >= 0).all() and norms.isfinite().all()):
        raise ValueError("input_sq_norms hold NaN, infinity or a negative value")
    return norms.sqrt()
