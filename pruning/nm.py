"""N:M sparsity: N weights are NON-ZERO in every M consecutive inputs of an output (paper, section 2).

The original's code and most others count N as the number of weights pruned; the two agree at 1:2, 2:4 and 4:8 only.
"""

import numpy as np
import torch
from torch import Tensor


def parse_nm(text: str) -> tuple[int, int]:
    """("6:8") -> (6, 8): six of eight weights are kept.

    Raises:
        ValueError: not of the form N:M with 1 <= N < M (for the original's two digits, the message says what to write).
    """
    parts = text.split(":")
    if len(parts) == 1 and text.isascii() and text.isdigit() and len(text) == 2 and 0 < int(text[0]) < int(text[1]):
        pruned, group = int(text[0]), int(text[1])
        raise ValueError(
            f"{text!r} is the original's notation for {pruned} pruned of {group}; "
            f"write what is kept: {group - pruned}:{group}"
        )
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not of the form N:M, N weights kept of every M, such as 2:4 or 6:8")
    n_kept, m_group = int(parts[0]), int(parts[1])
    if not 1 <= n_kept < m_group:
        raise ValueError(f"{text!r} keeps {n_kept} of every {m_group} weights; N must be from 1 to M - 1")
    return n_kept, m_group


def valid_nm(text: str) -> str:
    """The text, if parse_nm reads it: a type for argparse."""
    parse_nm(text)
    return text


def nm_mask(scores: Tensor, n_kept: int, m_group: int) -> Tensor:
    """Keep-mask with exactly the n_kept highest scores of every m_group consecutive inputs.

    Args:
        scores: importance, (out_features, in_features); higher is kept.
        n_kept: number of weights kept in each group, 0 to m_group.
        m_group: size of a group; divides in_features.
    Returns:
        Boolean tensor shaped like scores, True where the weight is kept. Of equal scores, the later one is kept.
    Raises:
        ValueError: m_group does not divide in_features, n_kept is outside 0 ... m_group, or a score is NaN.
    """
    if not 0 <= n_kept <= m_group:
        raise ValueError(f"{n_kept} of {m_group}: N must be from 0 to M")
    if scores.shape[-1] % m_group:
        raise ValueError(f"groups of {m_group} do not divide {scores.shape[-1]} inputs")
    _refuse_nan(scores)
    return unchecked_nm_mask(scores, n_kept, m_group)


def unchecked_nm_mask(scores: Tensor, n_kept: int, m_group: int) -> Tensor:
    """nm_mask of valid arguments without a wait for the device; wrong if a score is NaN."""
    groups = scores.detach().reshape(-1, m_group)
    choose = _lowest_by_pairs if m_group <= 32 else unchecked_lowest_k_of_rows_mask
    return choose(groups, m_group - n_kept).view(scores.shape)


def _lowest_by_pairs(groups: Tensor, dropped: int) -> Tensor:
    """lowest_k_of_rows_mask for short rows: columns are compared pair by pair, all rows at once.

    A score's rank is the number of lower scores plus that of equal ones before it; a partition of each row is slower.
    """
    if groups.device.type != "cpu":
        return _lowest_by_pairs_torch(groups, dropped)
    columns = np.ascontiguousarray(groups.float().numpy().T)
    count = len(columns)
    ranks = np.empty(columns.shape, np.uint8)
    ranks[:] = np.arange(count - 1, -1, -1)[:, None]  # as if all later columns were lower; corrected pair by pair
    for earlier in range(count):
        for later in range(earlier + 1, count):
            not_lower = (columns[earlier] <= columns[later]).view(np.uint8)
            ranks[earlier] -= not_lower
            ranks[later] += not_lower
    return torch.from_numpy(np.ascontiguousarray((ranks >= dropped).T))


def _lowest_by_pairs_torch(groups: Tensor, dropped: int) -> Tensor:
    """_lowest_by_pairs in torch, for accelerators: a column is compared with all later ones at once."""
    count = groups.shape[1]
    ranks = torch.arange(count - 1, -1, -1, dtype=torch.uint8, device=groups.device).repeat(len(groups), 1)
    for earlier in range(count - 1):
        not_lower = groups[:, earlier : earlier + 1] <= groups[:, earlier + 1 :]
        ranks[:, earlier].sub_(not_lower.sum(dim=1, dtype=torch.uint8))
        ranks[:, earlier + 1 :].add_(not_lower)
    return ranks >= dropped


def _refuse_nan(scores: Tensor) -> None:
    if scores.numel() and bool(scores.max().isnan()):
        raise ValueError("a score is NaN")


def lowest_k_of_rows_mask(scores: Tensor, dropped: int) -> Tensor:
    """Keep-mask that drops exactly `dropped` lowest scores of every row, by a partition instead of a sort.

    Args:
        scores: importance, (rows, columns); higher is kept.
        dropped: number of weights dropped in each row, 0 to columns.
    Returns:
        Boolean tensor shaped like scores, True where the weight is kept. Of equal scores, the later one is kept.
    Raises:
        ValueError: a score is NaN.
    """
    if dropped:
        _refuse_nan(scores)
    return unchecked_lowest_k_of_rows_mask(scores, dropped)


def unchecked_lowest_k_of_rows_mask(scores: Tensor, dropped: int) -> Tensor:
    """lowest_k_of_rows_mask without a wait for the device; wrong if a score is NaN."""
    if dropped == 0 or scores.numel() == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    scores = scores.detach().float()
    if scores.device.type != "cpu":
        return _lowest_k_of_rows_torch(scores, dropped)
    values = scores.numpy()  # numpy partitions, compares and counts faster than torch does
    thresholds = np.partition(values, dropped - 1, axis=1)[:, dropped - 1 : dropped].copy()
    above = values > thresholds
    thresholds, keep = torch.from_numpy(thresholds), torch.from_numpy(above)
    missing = scores.shape[1] - dropped - torch.from_numpy(np.count_nonzero(above, axis=1))
    rows = missing.nonzero().flatten()  # more scores equal the threshold than are dropped: the last of them are kept
    if len(rows):
        ties = scores[rows] == thresholds[rows]
        from_the_end = ties.flip(1).cumsum(dim=1).flip(1)
        keep[rows] |= ties & (from_the_end <= missing[rows, None])
    return keep


def _lowest_k_of_rows_torch(scores: Tensor, dropped: int) -> Tensor:
    """unchecked_lowest_k_of_rows_mask in torch, for accelerators."""
    thresholds = scores.kthvalue(dropped, dim=1, keepdim=True).values
    above, equal = scores > thresholds, scores == thresholds
    number = equal.cumsum(dim=1, dtype=torch.int32)  # of each tie in its row, from 1
    lower = scores.shape[1] - above.sum(dim=1, keepdim=True, dtype=torch.int32) - number[:, -1:]
    return above.logical_or_(equal.logical_and_(number > dropped - lower))
