"""Quantization by round-to-nearest and by GPTQ (Frantar et al., ICLR 2023): later weights make up for errors."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.hessian import InverseFactor, resolve_factor
from pruning.sparsegpt import SUB_BLOCK, check_block_size
from pruning.validation import check_weight

WEIGHTS_AT_ONCE = 2**20  # weights whose float32 scales and zeros are in memory at once


class Quantized(NamedTuple):
    """A weight as integers on a grid per row and group of inputs: weight = scale * (code - zero).

    Fields:
        codes: (out, in), 0 ... 2^bits - 1; uint8 up to 8 bits, else int32.
        scales: (out, groups) float32.
        zeros: (out, groups) int32, the code of weight 0.
        group_index: (in,) int64, the group of each input.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    group_index: Tensor

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight, (out, in)."""
        weight = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        for part, codes, scales, zeros in _in_rows(weight, self.codes, self.scales, self.zeros):
            steps = codes.float().sub_(zeros.float().index_select(1, self.group_index))
            part.copy_(steps.mul_(scales.index_select(1, self.group_index)))
        return weight


def with_zeros(quantized: Quantized, keep_mask: Tensor) -> Quantized:
    """The same integers, but that of 0 where keep_mask, bool and shaped like the codes, is False; changed in place."""
    for codes, zeros, keep in _in_rows(quantized.codes, quantized.zeros, keep_mask):
        codes.copy_(torch.where(keep, codes, zeros.index_select(1, quantized.group_index).to(codes.dtype)))
    return quantized


def round_to_nearest(W: Tensor, bits: int, group_size: int = -1, symmetric: bool = False) -> Tensor:
    """W with every weight rounded to its group's grid, in W's dtype; see round_to_nearest_grid."""
    return round_to_nearest_grid(W, bits, group_size, symmetric).dequantize(W.dtype)


def gptq_quantize(
    W: Tensor,
    hessian: Tensor | InverseFactor,
    bits: int,
    group_size: int = -1,
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    block_size: int = 128,
    damping: float = 0.01,
) -> Tensor:
    """W quantized by gptq_grid, in W's dtype."""
    quantized = gptq_grid(
        W, hessian, bits, group_size, symmetric, act_order, static_groups, block_size=block_size, damping=damping
    )
    return quantized.dequantize(W.dtype)


def round_to_nearest_grid(W: Tensor, bits: int, group_size: int = -1, symmetric: bool = False) -> Quantized:
    """Quantize each weight to the nearest grid point; halves are rounded to the even code.

    Args:
        W: weight, (out_features, in_features).
        bits: 2 to 16.
        group_size: consecutive inputs that share a scale within a row; the last group may be shorter; -1: a whole row.
        symmetric: codes lie around that of 0; otherwise they span the group's minimum to its maximum. In both 0 is a
            code, so that an extreme may lie up to half a step outside the grid; it becomes the grid's end.
    Raises:
        ValueError: bits or group_size outside their range, or W is not a matrix or holds NaN or infinity.
    """
    check_weight(W)
    _check_grid(bits, group_size)
    dense = W.detach().float()
    group_index = _group_index(dense.T, group_size)
    scales, zeros = (part.T.contiguous() for part in _group_grids(dense.T, bits, group_size, symmetric))
    codes = torch.empty(W.shape, dtype=_code_dtype(bits), device=W.device)
    for part, weights, scale, zero in _in_rows(codes, dense, scales, zeros):
        steps = weights / scale.index_select(1, group_index)
        part.copy_(steps.round_().add_(zero.index_select(1, group_index)).clamp_(0, 2**bits - 1))
    return Quantized(codes, scales, zeros.to(torch.int32), group_index)


def gptq_grid(
    W: Tensor,
    hessian: Tensor | InverseFactor,
    bits: int,
    group_size: int = -1,
    symmetric: bool = False,
    act_order: bool = False,
    static_groups: bool = False,
    block_size: int = 128,
    damping: float = 0.01,
    keep_mask: Tensor | None = None,
) -> Quantized:
    """Quantize input by input with GPTQ: weights of inputs not yet rounded make up for each rounding error.

    Args:
        W: weight, (out_features, in_features).
        hessian: X^T X at any positive scale, or its factor with the same act_order, shared by layers with the same X.
        bits, group_size, symmetric: as in round_to_nearest_grid.
        act_order: visit inputs by decreasing diagonal of H; a group is then consecutive in that order.
        static_groups: a group is consecutive in W's order, and its grid is that of the dense W.
        block_size: inputs after which their errors are applied to all later inputs. A group that begins inside a block
            takes its grid from the weights at the start of that block.
        damping: fraction of H's mean diagonal added to its diagonal; ignored with a factor.
        keep_mask: bool, shaped like W: where it is False the weight becomes exactly 0, whatever the errors of earlier
            inputs made of it, and later inputs make up for what it was. Grids are those of the kept weights and 0.
    Raises:
        ValueError: see round_to_nearest_grid, check_block_size and resolve_factor; a mask of another shape or dtype.
    Source: alg. 1; IST-DASLab/gptq gptq.py. The mask: Frantar and Alistarh (SparseGPT, ICML 2023), section 3.5, with
        the mask chosen beforehand.
    """
    check_weight(W)
    _check_grid(bits, group_size)
    check_block_size(block_size)
    if keep_mask is not None and (keep_mask.shape != W.shape or keep_mask.dtype != torch.bool):
        raise ValueError(f"a keep_mask of {keep_mask.dtype} {tuple(keep_mask.shape)} for a weight {tuple(W.shape)}")
    factor = resolve_factor(hessian, W.shape[1], damping, act_order)
    columns = W.detach().T.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    keep = None if keep_mask is None else keep_mask.T.contiguous()
    scales, zeros = _first_grids(columns, keep, factor.dead, bits, group_size, symmetric, static_groups)
    group_index = _group_index(columns, group_size)
    dynamic = group_size != -1 and not static_groups
    if factor.order is not None:
        columns, keep = columns[factor.order], None if keep is None else keep[factor.order]
        group_index = group_index if dynamic else group_index[factor.order]
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        for group in range(-(-start // group_size), -(-stop // group_size)) if dynamic else ():
            part = slice(group * group_size, (group + 1) * group_size)
            scales[group], zeros[group] = _grid(_kept(columns[part], keep, part), bits, symmetric)
        block = slice(start, stop)
        mask = None if keep is None else keep[block]
        errors = _round_block(columns[block], factor.upper[block, block], scales, zeros, group_index[block], bits, mask)
        columns[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    if factor.order is not None:
        inverse_order = factor.order.argsort()
        columns, group_index = columns[inverse_order], group_index[inverse_order]
    codes = columns.to(_code_dtype(bits)).T.contiguous()
    return Quantized(codes, scales.T.contiguous(), zeros.T.to(torch.int32).contiguous(), group_index)


def _first_grids(
    columns: Tensor, keep: Tensor | None, dead: Tensor, bits: int, group_size: int, symmetric: bool, static: bool
) -> tuple[Tensor, Tensor]:
    """Zero the weights of dead inputs in place; scale and zero of every group and row, each (groups, rows).

    Those of groups that are not static are left empty: they are made when the group's block is reached.
    """
    whole_rows = _grid(_kept(columns, keep), bits, symmetric) if group_size == -1 else None
    columns.masked_fill_(dead[:, None], 0)
    if group_size == -1:
        return whole_rows[0][None], whole_rows[1][None]
    if static:
        return _group_grids(_kept(columns, keep), bits, group_size, symmetric)
    empty = torch.empty(2, -(-len(columns) // group_size), columns.shape[1], device=columns.device)
    return empty[0], empty[1]


def _kept(columns: Tensor, keep: Tensor | None, part: slice = slice(None)) -> Tensor:
    """The columns with 0 in the place of what this part of the mask drops."""
    return columns if keep is None else columns.masked_fill(~keep[part], 0)


def _in_rows(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matrices with the same rows, in parts of as many rows, so that what is computed of a part takes little memory."""
    rows = max(1, WEIGHTS_AT_ONCE // max(1, matrices[0].shape[1]))
    return zip(*(matrix.split(rows) for matrix in matrices), strict=True)


def _check_grid(bits: int, group_size: int) -> None:
    if not 2 <= bits <= 16:
        raise ValueError(f"bits {bits} is outside 2 ... 16")
    if group_size < 1 and group_size != -1:
        raise ValueError(f"group_size {group_size} is neither positive nor -1, a whole row")


def _group_index(columns: Tensor, group_size: int) -> Tensor:
    inputs = torch.arange(len(columns), device=columns.device)
    return torch.zeros_like(inputs) if group_size == -1 else inputs // group_size


def _group_grids(columns: Tensor, bits: int, group_size: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero of every group and row of W, each (groups, rows)."""
    groups = columns.split(len(columns) if group_size == -1 else group_size)
    scales, zeros = zip(*(_grid(group, bits, symmetric) for group in groups), strict=True)
    return torch.stack(scales), torch.stack(zeros)


def _grid(columns: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero of every row of W.

    A grid has 2^bits - 1 steps, as long together as from the row's minimum to its maximum, 0 counted among the row's
    weights; it is shifted by up to half a step so that 0 is on it, and an extreme may lie so far outside. A symmetric
    one spans twice the largest absolute value and has the codes -2^(bits - 1) ... 2^(bits - 1) - 1 around 0, so that a
    largest weight that is positive lies half a step outside. A row of zeros has the grid of one from -1 to 1.

    Source: IST-DASLab/gptq quant.py, where a symmetric grid for a row without negative weights spreads its 2^bits - 1
        steps from 0 to the maximum but can use only half of them, so that large weights are clipped; not here.
    """
    low, high = columns.amin(dim=0).clamp(max=0), columns.amax(dim=0).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1), high.masked_fill(empty, 1)
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp(min=torch.finfo(torch.float32).tiny)
    zero = torch.full_like(scale, (steps + 1) / 2) if symmetric else (-low / scale).round()
    return scale, zero


def _code_dtype(bits: int) -> torch.dtype:
    return torch.uint8 if bits <= 8 else torch.int32


def _round_block(
    columns: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, group_index: Tensor, bits: int, keep: Tensor | None
) -> Tensor:
    """Replace a block's weights by their codes; return the errors, (width, out_features), for the columns after it.

    Args:
        columns: the block's part of W^T, (width, out_features), so that a column of W is contiguous.
        upper: the block's part of U, (width, width).
        scales, zeros: of all groups, (groups, out_features).
        group_index: (width,) the group of each column.
        keep: the block's part of the keep-mask, shaped like columns; None keeps all.
    """
    errors = torch.empty_like(columns)
    quantize = _round_columns_torch
    if columns.device.type == "cpu":
        from pruning.column_kernels import round_columns as quantize  # importing numba takes a second and 55 MB
    for start in range(0, len(columns), SUB_BLOCK):
        part, rest = slice(start, start + SUB_BLOCK), slice(start + SUB_BLOCK, None)
        of_part = columns[part], upper[part, part], scales, zeros, group_index[part], errors[part], 2**bits - 1
        quantize(*of_part, None if keep is None else keep[part])
        columns[rest].addmm_(upper[part, rest].T, errors[part], alpha=-1)
    return errors


def _round_columns_torch(
    columns: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, group_index: Tensor, errors: Tensor, max_code: int,
    keep: Tensor | None = None,
) -> None:  # fmt: skip
    """column_kernels.round_columns in torch, for accelerators."""
    scales, zeros = scales[group_index], zeros[group_index]
    for j in range(len(columns)):
        code = ((columns[j] / scales[j]).round() + zeros[j]).clamp(0, max_code)
        if keep is not None:
            code = torch.where(keep[j], code, zeros[j])
        torch.div(columns[j] - (code - zeros[j]) * scales[j], upper[j, j], out=errors[j])
        columns[j + 1 :].addr_(upper[j, j + 1 :], errors[j], alpha=-1)
        columns[j] = code
