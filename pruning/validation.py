"""Checks of arguments that the compression methods share."""

import torch
from torch import Tensor

VALUES_AT_ONCE = 2**21


def check_strength(sparsity: float | None, nm: tuple[int, int] | None, in_features: int) -> None:
    """Raises ValueError unless exactly one of sparsity and nm (n_kept, m_group) is given and within its range."""
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


def check_removed(sparsity: float | None, removed: float) -> None:
    """Raises ValueError where a sparsity above 0 removed nothing; `removed` is the share of weights that are gone."""
    if sparsity and not removed:
        raise ValueError(f"--sparsity {sparsity:g} removed nothing: it rounds to 0 of the weights it is a share of")


def check_weight(W: Tensor) -> None:
    """Raises ValueError unless W is a matrix of finite floats."""
    if W.ndim != 2 or not W.is_floating_point():
        raise ValueError(f"a weight is a matrix of floats, (out_features, in_features); got {tuple(W.shape)} {W.dtype}")
    if not all_finite(W.detach()):
        raise ValueError("the weight holds NaN or infinity")


def all_finite(values: Tensor) -> bool:
    """Whether no value of a matrix is NaN or infinite.

    On a CPU it tests sums, which are NaN or infinite if a value is: 20 times faster than testing each value. A sum is
    over some rows, since a float32 sum copies values of another dtype. On an accelerator it tests the smallest and
    the largest value, and the CPU waits once.
    """
    if values.device.type != "cpu" and values.numel():
        return bool(torch.stack([values.amin(), values.amax()]).isfinite().all())
    return all(
        bool(part.sum(dtype=torch.float32).isfinite()) or bool(part.isfinite().all())  # large sums overflow
        for part in values.split(max(1, VALUES_AT_ONCE // max(1, values.shape[1:].numel())))
    )
