"""N:M sparsity: N weights are NON-ZERO in every M consecutive inputs of an output (paper, section 2).

The original's code and most peers count N as the number of weights pruned; the two agree at 1:2, 2:4 and 4:8 only.
"""

import torch
from torch import Tensor


def parse_nm(text: str) -> tuple[int, int]:
    """("6:8") -> (6, 8): six of eight weights are kept.

    Raises:
        ValueError: not of the form N:M with 1 <= N < M; says what to write instead of the original's two digits.
    """
    parts = text.split(":")
    if len(parts) == 1 and text.isdigit() and len(text) == 2 and 0 < int(text[0]) < int(text[1]):
        pruned, group = int(text[0]), int(text[1])
        raise ValueError(
            f"{text!r} is the original's notation for {pruned} pruned of {group}; "
            f"write what is kept: {group - pruned}:{group}"
        )
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not of the form N:M, N weights kept of every M, such as 2:4 or 6:8")
    n_kept, m_group = int(parts[0]), int(parts[1])
    if not 1 <= n_kept < m_group:
        raise ValueError(f"{text!r} keeps {n_kept} of every {m_group} weights; N must be from 1 to M - 1")
    return n_kept, m_group


def nm_mask(scores: Tensor, n_kept: int, m_group: int) -> Tensor:
    """Keep-mask with exactly the n_kept highest scores of every m_group consecutive inputs.

    Args:
        scores: importance, (out_features, in_features); higher is kept.
        n_kept: weights kept in each group, 0 to m_group.
        m_group: size of a group; divides in_features.
    Returns:
        Boolean tensor shaped like scores. Ties go to the later input.
    Raises:
        ValueError: m_group does not divide in_features, or n_kept is outside 0 ... m_group.
    """
    if not 0 <= n_kept <= m_group:
        raise ValueError(f"{n_kept} of {m_group}: N must be from 0 to M")
    if scores.shape[-1] % m_group:
        raise ValueError(f"groups of {m_group} do not divide {scores.shape[-1]} inputs")
    groups = scores.detach().reshape(-1, m_group)
    dropped = groups.argsort(dim=1, stable=True)[:, : m_group - n_kept]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(1, dropped, False)
    return keep.view(scores.shape)
