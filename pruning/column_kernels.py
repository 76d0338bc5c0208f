"""The inner loops of SparseGPT and GPTQ over the columns of a sub-block, compiled by numba for CPUs.

`columns` is a part of W^T, (width, out_features), so that a column of W is contiguous. Rows of W are independent here:
each thread takes some, in strips that fit into its cache, and loops along a strip are vectorised.
"""

import numpy as np
from torch import Tensor

from pruning.row_threads import compiled, share_rows

STRIP = 128  # rows of W at a time: a sub-block of 32 columns of a strip fills 16 kB of a 32 kB or 48 kB cache
ROUNDING = np.float32(1.5 * 2**23)  # adding and subtracting it rounds |x| < 2^22, halves to even, as rint does

_compiled = compiled(fastmath={"contract"})


def prune_columns(columns: Tensor, upper: Tensor, keep: Tensor, errors: Tensor, n_kept: int, m_group: int) -> None:
    """Zero the dropped weights column by column, and let the later columns make up for each column's error.

    Args:
        columns: (width, out_features) float32, contiguous; changed in place.
        upper: (width, width), the sub-block's part of U, where U^T U is the inverse Hessian.
        keep: bool, shaped like columns, True where a weight is kept. With m_group > 0 it is written: each group's mask
            is chosen when its first column is reached; of equal scores, the later column is kept.
        errors: shaped like columns; written: w / U_jj of dropped weights, 0 of kept ones.
        n_kept, m_group: keep n_kept of every m_group columns; 0 and 0 if `keep` is given.
    """
    arrays = columns.numpy(), np.ascontiguousarray(upper.numpy()), keep.numpy(), errors.numpy()
    share_rows(_prune_strips, columns.shape[1], STRIP, *arrays, n_kept, m_group)


def round_columns(
    columns: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, group_index: Tensor, errors: Tensor, max_code: int,
    keep: Tensor | None = None,
) -> None:  # fmt: skip
    """Replace weights by their codes column by column, and let the later columns make up for each rounding error.

    Args:
        columns, upper: as in prune_columns.
        scales, zeros: (groups, out_features) float32; a code stands for scale * (code - zero).
        group_index: (width,) the group of each column.
        errors: shaped like columns; written: (w - rounded w) / U_jj.
        max_code: the largest code.
        keep: bool, shaped like columns; where it is False the code is that of 0, and the weight is its error.
    """
    arrays = columns.numpy(), np.ascontiguousarray(upper.numpy()), scales.numpy(), zeros.numpy(), group_index.numpy()
    rest = errors.numpy(), np.float32(max_code)
    if keep is None:
        share_rows(_round_strips, columns.shape[1], STRIP, *arrays, *rest)
    else:
        share_rows(_round_kept_strips, columns.shape[1], STRIP, *arrays, *rest, keep.numpy())


@_compiled
def _prune_strips(
    first_row: int, last_row: int, columns: np.ndarray, upper: np.ndarray, keep: np.ndarray, errors: np.ndarray,
    n_kept: int, m_group: int,
) -> None:  # fmt: skip
    for first in range(first_row, last_row, STRIP):
        last = min(first + STRIP, last_row)
        for j in range(len(columns)):
            if m_group and j % m_group == 0:
                _choose_group(columns[:, first:last], upper, keep[:, first:last], n_kept, m_group, j)
            column, error, kept = columns[j, first:last], errors[j, first:last], keep[j, first:last]
            diagonal = upper[j, j]
            for row in range(len(column)):
                error[row] = np.float32(0) if kept[row] else column[row] / diagonal
                column[row] = column[row] if kept[row] else np.float32(0)
            _correct_later_columns(columns[:, first:last], upper, error, j)


@_compiled
def _round_strips(
    first_row: int, last_row: int, columns: np.ndarray, upper: np.ndarray, scales: np.ndarray, zeros: np.ndarray,
    group_index: np.ndarray, errors: np.ndarray, max_code: np.float32,
) -> None:  # fmt: skip
    for first in range(first_row, last_row, STRIP):
        last = min(first + STRIP, last_row)
        for j in range(len(columns)):
            column, error, diagonal = columns[j, first:last], errors[j, first:last], upper[j, j]
            scale, zero = scales[group_index[j], first:last], zeros[group_index[j], first:last]
            for row in range(len(column)):
                code = (column[row] / scale[row] + ROUNDING) - ROUNDING + zero[row]
                code = min(max(code, np.float32(0)), max_code)
                error[row] = (column[row] - (code - zero[row]) * scale[row]) / diagonal
                column[row] = code
            _correct_later_columns(columns[:, first:last], upper, error, j)


@_compiled
def _round_kept_strips(
    first_row: int, last_row: int, columns: np.ndarray, upper: np.ndarray, scales: np.ndarray, zeros: np.ndarray,
    group_index: np.ndarray, errors: np.ndarray, max_code: np.float32, keep: np.ndarray,
) -> None:  # fmt: skip
    for first in range(first_row, last_row, STRIP):
        last = min(first + STRIP, last_row)
        for j in range(len(columns)):
            column, error, kept = columns[j, first:last], errors[j, first:last], keep[j, first:last]
            scale, zero, diagonal = scales[group_index[j], first:last], zeros[group_index[j], first:last], upper[j, j]
            for row in range(len(column)):
                code = (column[row] / scale[row] + ROUNDING) - ROUNDING + zero[row]
                code = min(max(code, np.float32(0)), max_code) if kept[row] else zero[row]
                error[row] = (column[row] - (code - zero[row]) * scale[row]) / diagonal
                column[row] = code
            _correct_later_columns(columns[:, first:last], upper, error, j)


@_compiled
def _correct_later_columns(columns: np.ndarray, upper: np.ndarray, error: np.ndarray, j: int) -> None:
    """Subtract upper[j, k] * error from every column k after j, in place; `error` is column j's, (out_features,)."""
    for later in range(j + 1, len(columns)):
        factor, column = upper[j, later], columns[later]
        for row in range(len(error)):
            column[row] -= factor * error[row]


@_compiled
def _choose_group(
    columns: np.ndarray, upper: np.ndarray, keep: np.ndarray, n_kept: int, m_group: int, start: int
) -> None:
    """In each row, keep the n_kept weights with the highest |w| / U_jj of the m_group columns from `start` on.

    A weight's rank is the number of lower scores, counted pair by pair, which is faster than a sort.
    """
    rows = columns.shape[1]
    scores = np.empty((m_group, rows), np.float32)
    for j in range(m_group):
        diagonal, column, score = upper[start + j, start + j], columns[start + j], scores[j]
        for row in range(rows):
            score[row] = abs(column[row]) / diagonal
    lower = np.empty(rows, np.int32)
    for j in range(m_group):
        lower[:] = 0
        score, kept = scores[j], keep[start + j]
        for other in range(j):
            other_score = scores[other]
            for row in range(rows):
                lower[row] += other_score[row] <= score[row]
        for other in range(j + 1, m_group):
            other_score = scores[other]
            for row in range(rows):
                lower[row] += other_score[row] < score[row]
        for row in range(rows):
            kept[row] = lower[row] >= m_group - n_kept
