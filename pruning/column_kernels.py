"""Compiled inner loops of SparseGPT and GPTQ for CPUs, on the columns of a sub-block.

A column of W is a contiguous row of `columns`, (width, out_features). Rows of W never meet here, so threads share them
out, each works on a strip that stays in its cache, and every loop along a strip is vectorised.
"""

import numpy as np
from torch import Tensor

from pruning.row_threads import compiled, share_rows

STRIP = 128  # rows of W at a time: a sub-block of 32 columns of a strip fills 16 kB of a 32 kB or 48 kB cache
ROUNDING = np.float32(1.5 * 2**23)  # adding and subtracting it rounds |x| < 2^22, halves to even, as rint does

_compiled = compiled(fastmath={"contract"})


def prune_columns(columns: Tensor, upper: Tensor, keep: Tensor, errors: Tensor, n_kept: int, m_group: int) -> None:
    """Zero the dropped weights column by column, each taking its error out of the later columns.

    Args:
        columns: (width, out_features) float32, contiguous; changed in place.
        upper: (width, width), the sub-block's part of U.
        keep: shaped like columns; with m_group > 0 it is written: the mask of every m_group columns is chosen when
            they are reached, ties going to the later column.
        errors: shaped like columns; becomes w / U_jj of dropped weights, 0 of kept ones.
    """
    arrays = columns.numpy(), np.ascontiguousarray(upper.numpy()), keep.numpy(), errors.numpy()
    share_rows(_prune_strips, columns.shape[1], STRIP, *arrays, n_kept, m_group)


def round_columns(
    columns: Tensor, upper: Tensor, scales: Tensor, zeros: Tensor, group_index: Tensor, errors: Tensor, max_code: int
) -> None:
    """Replace weights by their codes column by column, each rounding error taken out of the later columns.

    Args:
        columns, upper, errors: as in prune_columns.
        scales, zeros: (groups, out_features) float32.
        group_index: (width,) the group of each column.
        max_code: the largest code.
    """
    arrays = columns.numpy(), np.ascontiguousarray(upper.numpy()), scales.numpy(), zeros.numpy(), group_index.numpy()
    share_rows(_round_strips, columns.shape[1], STRIP, *arrays, errors.numpy(), np.float32(max_code))


@_compiled
def _prune_strips(
    first_row: int, last_row: int, columns: np.ndarray, upper: np.ndarray, keep: np.ndarray, errors: np.ndarray,
    n_kept: int, m_group: int,
) -> None:  # fmt: skip
    for first in range(first_row, last_row, STRIP):
        last = min(first + STRIP, last_row)
        for place in range(len(columns)):
            if m_group and place % m_group == 0:
                _choose_group(columns[:, first:last], upper, keep[:, first:last], n_kept, m_group, place)
            own, error, kept = columns[place, first:last], errors[place, first:last], keep[place, first:last]
            diagonal = upper[place, place]
            for row in range(len(own)):
                error[row] = np.float32(0) if kept[row] else own[row] / diagonal
                own[row] = own[row] if kept[row] else np.float32(0)
            _spread(columns[:, first:last], upper, error, place)


@_compiled
def _round_strips(
    first_row: int, last_row: int, columns: np.ndarray, upper: np.ndarray, scales: np.ndarray, zeros: np.ndarray,
    group_index: np.ndarray, errors: np.ndarray, max_code: np.float32,
) -> None:  # fmt: skip
    for first in range(first_row, last_row, STRIP):
        last = min(first + STRIP, last_row)
        for place in range(len(columns)):
            own, error, diagonal = columns[place, first:last], errors[place, first:last], upper[place, place]
            scale, zero = scales[group_index[place], first:last], zeros[group_index[place], first:last]
            for row in range(len(own)):
                code = (own[row] / scale[row] + ROUNDING) - ROUNDING + zero[row]
                code = min(max(code, np.float32(0)), max_code)
                error[row] = (own[row] - (code - zero[row]) * scale[row]) / diagonal
                own[row] = code
            _spread(columns[:, first:last], upper, error, place)


@_compiled
def _spread(columns: np.ndarray, upper: np.ndarray, error: np.ndarray, place: int) -> None:
    """Subtract upper[place, j] * error from every column j after `place`, in place: these make up for its error.

    Args:
        columns: weights, (in_features, out_features).
        upper: Cholesky factor of the inverse Hessian, upper triangular.
        error: of column `place`, over its diagonal element of `upper`, (out_features,).
    """
    for later in range(place + 1, len(columns)):
        share, column = upper[place, later], columns[later]
        for row in range(len(error)):
            column[row] -= share * error[row]


@_compiled
def _choose_group(
    columns: np.ndarray, upper: np.ndarray, keep: np.ndarray, n_kept: int, m_group: int, start: int
) -> None:
    """Keep the n_kept weights with the highest |w| / U_jj of a group; a weight's rank is counted, not sorted."""
    rows = columns.shape[1]
    scores = np.empty((m_group, rows), np.float32)
    for place in range(m_group):
        diagonal, column, score = upper[start + place, start + place], columns[start + place], scores[place]
        for row in range(rows):
            score[row] = abs(column[row]) / diagonal
    lower = np.empty(rows, np.int32)
    for place in range(m_group):
        lower[:] = 0
        mine, kept = scores[place], keep[start + place]
        for other in range(place):
            theirs = scores[other]
            for row in range(rows):
                lower[row] += theirs[row] <= mine[row]
        for other in range(place + 1, m_group):
            theirs = scores[other]
            for row in range(rows):
                lower[row] += theirs[row] < mine[row]
        for row in range(rows):
            kept[row] = lower[row] >= m_group - n_kept
