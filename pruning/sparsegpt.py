"""SparseGPT (Frantar and Alistarh, ICML 2023): the weights to the right of a pruned one make up for its error.

Columns are visited from left to right. With U^T U the inverse Hessian, a weight w pruned in column j has the error
w / U_jj; error * U_jk is subtracted from the weight of the same row in every later column k. Rows are independent,
except in the choice of a block's mask.
"""

import functools

import torch
from torch import Tensor

from pruning.hessian import InverseFactor, resolve_factor
from pruning.masks import refuse_nan, unchecked_masks
from pruning.nm import unchecked_nm_mask
from pruning.validation import check_strength, check_weight

SUB_BLOCK = 32  # columns corrected after each single column; later ones by one matmul per sub-block


def sparsegpt_prune(
    W: Tensor,
    hessian: Tensor | InverseFactor,
    sparsity: float | None = None,
    nm: tuple[int, int] | None = None,
    block_size: int = 128,
    damping: float = 0.01,
) -> Tensor:
    """A pruned copy of W whose kept weights make up for the pruned ones on the calibration inputs.

    Args:
        W: weight, (out_features, in_features).
        hessian: X^T X at any positive scale, or its factor without act_order, shared by layers with the same X.
        sparsity: fraction to drop, in [0, 1], from each block of columns, ranked over all rows; this or nm.
        nm: (n_kept, m_group), keep N of every M consecutive inputs, ranked after earlier columns' errors are applied.
        block_size: columns whose mask is chosen together; with nm a multiple of m_group.
        damping: fraction of H's mean diagonal added to its diagonal; ignored with a factor.
    Returns:
        W's shape and dtype. Exactly round(sparsity * numel) weights are pruned. There can be more zeros: a kept weight
        may be 0 before, by rounding, or at an input that is always 0.
    Raises:
        ValueError: see check_weight, check_strength, check_block_size and resolve_factor.
    Source: alg. 1; IST-DASLab/sparsegpt, which prunes one weight more in each block (`<=` a threshold). Here the
        counts of the blocks are rounded so that their sum is exact.
    """
    check_weight(W)
    check_strength(sparsity, nm, W.shape[1])
    check_block_size(block_size, 1 if nm is None else nm[1])
    factor = resolve_factor(hessian, W.shape[1], damping)
    columns = W.detach().T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    columns.masked_fill_(factor.dead[:, None], 0)
    found_nan: list[Tensor] = []
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        upper = factor.upper[start:stop, start:stop]
        keep = _block_mask(columns, upper, sparsity, start, stop, found_nan)
        errors = _prune_block(columns[start:stop], upper, keep, nm, found_nan)
        columns[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    refuse_nan(found_nan)  # once for all blocks, since the CPU waits for the device here
    return columns.T.to(W.dtype, memory_format=torch.contiguous_format)


def check_block_size(block_size: int, m_group: int = 1) -> None:
    """Raises ValueError unless block_size is a positive multiple of m_group."""
    if block_size < 1 or block_size % m_group:
        raise ValueError(f"block_size {block_size} is not a positive multiple of {m_group}")


def _block_mask(
    columns: Tensor, upper: Tensor, sparsity: float | None, start: int, stop: int, found_nan: list[Tensor]
) -> Tensor:
    """Keep-mask of columns start ... stop - 1, by saliency |w| / U_jj over all rows; uninitialised without sparsity.

    The paper's (w / U_jj)^2 has the same order.

    All blocks up to `stop` together drop round(sparsity * their numel) weights. `found_nan` gets whether a saliency is
    NaN.
    """
    block = columns[start:stop]
    if sparsity is None:
        return torch.empty_like(block, dtype=torch.bool)
    rows = block.shape[1]
    dropped = round(sparsity * rows * stop) - round(sparsity * rows * start)
    [[keep]], has_nan = unchecked_masks([block.abs() / upper.diagonal()[:, None]], [dropped])
    found_nan.append(has_nan)
    return keep


def _prune_block(
    columns: Tensor, upper: Tensor, keep: Tensor, nm: tuple[int, int] | None, found_nan: list[Tensor]
) -> Tensor:
    """Prune a block in place and return its errors, (width, out_features), for the columns after it.

    Args:
        columns: the block's part of W^T, (width, out_features), so that a column of W is contiguous.
        upper: the block's part of U, (width, width).
        keep: the block's keep-mask, shaped like columns; with nm it is written.
        found_nan: with nm, on an accelerator, gets whether a score is NaN.
    """
    n_kept, m_group = nm or (0, 0)
    step = SUB_BLOCK if nm is None else m_group * max(1, SUB_BLOCK // m_group)
    errors = torch.empty_like(columns)
    prune = functools.partial(_prune_columns_torch, found_nan=found_nan)
    if columns.device.type == "cpu":
        from pruning.column_kernels import prune_columns as prune  # importing numba takes a second and 55 MB
    for start in range(0, len(columns), step):
        part = slice(start, start + step)
        prune(columns[part], upper[part, part], keep[part], errors[part], n_kept, m_group)
        columns[start + step :].addmm_(upper[part, start + step :].T, errors[part], alpha=-1)
    return errors


def _prune_columns_torch(
    columns: Tensor, upper: Tensor, keep: Tensor, errors: Tensor, n_kept: int, m_group: int, found_nan: list[Tensor]
) -> None:
    """column_kernels.prune_columns in torch, for accelerators."""
    for j in range(len(columns)):
        if m_group and j % m_group == 0:
            group = slice(j, j + m_group)
            scores = columns[group].abs() / upper.diagonal()[group, None]
            keep[group] = unchecked_nm_mask(scores.T, n_kept, m_group).T
            found_nan.append(scores.isnan().any())
        torch.div(columns[j].masked_fill(keep[j], 0), upper[j, j], out=errors[j])
        columns[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
    columns.masked_fill_(~keep, 0)
