"""Wanda (Sun et al., ICLR 2024): drops the weights of smallest |weight| * input norm in each row."""

import torch
from torch import Tensor

from pruning.nm import unchecked_lowest_k_of_rows_mask, unchecked_nm_mask
from pruning.validation import check_strength, check_weight

# float32 scores in memory at once, on a CPU and on an accelerator; rows are ranked independently
SCORES_AT_ONCE_CPU, SCORES_AT_ONCE = 2**21, 2**24


def wanda_mask(
    W: Tensor, input_sq_norms: Tensor, sparsity: float | None = None, nm: tuple[int, int] | None = None
) -> Tensor:
    """Keep-mask that drops exactly round(sparsity * in_features) weights of every row, or keeps N of every M.

    Args:
        W: weight, (out_features, in_features).
        input_sq_norms: squared Euclidean norm of each input over the calibration tokens, (in_features,);
            their scale does not matter.
        sparsity: fraction to drop, in [0, 1]; this or nm.
        nm: (n_kept, m_group), keep N of every M consecutive inputs.
    Returns:
        Boolean tensor shaped like W, True where the weight is kept. Of equal scores, the later one is kept.
    Raises:
        ValueError: see check_strength and input_norms.
    Source: sec. 3; locuslab/wanda, which truncates sparsity * in_features instead of rounding it.
    """
    check_strength(sparsity, nm, W.shape[-1])
    norms = input_norms(W, input_sq_norms)
    keep = torch.empty(W.shape, dtype=torch.bool, device=W.device)
    rows = max(1, (SCORES_AT_ONCE_CPU if W.device.type == "cpu" else SCORES_AT_ONCE) // W.shape[1])
    for weights, kept in zip(W.detach().split(rows), keep.split(rows), strict=True):
        scores = weights.float().abs() * norms  # finite numbers, so that none is NaN
        if nm is not None:
            kept.copy_(unchecked_nm_mask(scores, *nm))
        else:
            kept.copy_(unchecked_lowest_k_of_rows_mask(scores, round(sparsity * W.shape[1])))
    return keep


def input_norms(W: Tensor, input_sq_norms: Tensor) -> Tensor:
    """Euclidean norm of each input, (in_features,) float32 on W's device, after checks of W and the squared norms.

    Raises:
        ValueError: W is not a matrix or holds NaN or infinity, norms that do not fit it, are negative or not finite.
    """
    check_weight(W)
    if input_sq_norms.shape != (W.shape[1],):
        raise ValueError(f"input_sq_norms of shape {tuple(input_sq_norms.shape)} do not fit {W.shape[1]} inputs")
    norms = input_sq_norms.detach().to(W.device, torch.float32)
    if not bool(((norms >= 0) & norms.isfinite()).all()):
        raise ValueError("input_sq_norms hold NaN, infinity or a negative value")
    return norms.sqrt()
