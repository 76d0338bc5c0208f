"""The Hessian X^T X of a linear layer's inputs X, and the triangular factor of its inverse.

SparseGPT and GPTQ use nothing else of the inputs, so layers with the same inputs (q, k, v; gate, up) share one factor.
"""

import ctypes
import functools
import logging
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from harness.device import has_float64
from pruning.validation import all_finite

logger = logging.getLogger(__name__)

LEAF = 256  # below this size LAPACK's Cholesky costs less than the matmuls that would replace it
GRAM_AT_ONCE = 2**27  # elements of X^T X in a temporary tensor on a GPU: 512 MB


class InverseFactor(NamedTuple):
    """The inverse of a damped Hessian as U^T U, with the inputs in the order in which a method visits them.

    Fields:
        upper: (in, in) float32, upper triangular U with (H + damping * mean(diag H) * I)^-1 = U^T U.
        dead: (in,) bool in the layer's order: inputs that were 0 in every token. Their diagonal is set to 1.
        damping: fraction of the mean diagonal that was added; more than requested if H needed more.
        order: (in,) int64, index of the input in each row of `upper`, by decreasing diagonal; None for the layer's
            order.
    """

    upper: Tensor
    dead: Tensor
    damping: float
    order: Tensor | None


def factor_inverse(hessian: Tensor, damping: float = 0.01, act_order: bool = False) -> InverseFactor:
    """Triangular factor of the inverse Hessian, by one recursion over matmuls instead of three factorisations.

    If H plus damping is not positive definite in float32, damping is raised tenfold up to 1, then float64 is tried; a
    warning names the value used.

    Args:
        hessian: X^T X, (in, in), at any positive scale.
        damping: fraction of the mean diagonal added to the diagonal, 0 or more.
        act_order: order inputs by decreasing diagonal (GPTQ's act-order).
    Raises:
        ValueError: not a square matrix, NaN or infinity in it, a negative diagonal or damping, or not positive definite
            at any damping.
    Source: GPTQ sec. 3.3; IST-DASLab/gptq and sparsegpt, whose mean diagonal counts a dead input as 1, so that damping
        depends on the scale of H; here it counts as 0.
    """
    mean_diagonal = _check_hessian(hessian, damping)
    diagonal = hessian.diagonal().float()
    dead = diagonal == 0
    order = diagonal.argsort(descending=True, stable=True) if act_order else None
    for dtype, fraction in _attempts(damping):
        upper = _inverse_upper(hessian, dtype, fraction * mean_diagonal, dead, order)
        if upper is not None:
            if (dtype, fraction) != (torch.float32, damping):
                logger.warning("Hessian not positive definite at damping %g: used %g in %s", damping, fraction, dtype)
            return InverseFactor(upper, dead, fraction, order)
    raise ValueError(
        f"the Hessian is not positive definite even at damping {fraction:g} in float64: it is not of "
        "the form X^T X, or was accumulated in too low a precision"
    )


def resolve_factor(
    hessian: Tensor | InverseFactor, in_features: int, damping: float, act_order: bool = False
) -> InverseFactor:
    """The factor for a layer with `in_features` inputs: computed from a Hessian, or the given factor, checked.

    Raises:
        ValueError: the size or order of the inputs does not fit, or factor_inverse refuses the Hessian.
    """
    if not isinstance(hessian, InverseFactor):
        _check_size(hessian, in_features)
        return factor_inverse(hessian, damping, act_order)
    _check_size(hessian.upper, in_features)
    if (hessian.order is not None) != act_order:
        raise ValueError(f"act_order is {act_order}, but the Hessian was factored with act_order={not act_order}")
    return hessian


def _check_size(matrix: Tensor, in_features: int) -> None:
    if matrix.shape != (in_features, in_features):
        raise ValueError(f"a Hessian of shape {tuple(matrix.shape)} does not fit {in_features} inputs")


def _check_hessian(hessian: Tensor, damping: float) -> float:
    """Raise ValueError for what factor_inverse refuses; returns the mean of the diagonal."""
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"a Hessian of shape {tuple(hessian.shape)} is not square")
    if not damping >= 0:
        raise ValueError(f"damping {damping} is negative")
    if not all_finite(hessian):
        raise ValueError("the Hessian holds NaN or infinity")
    diagonal = hessian.diagonal().float().cpu()
    if bool((diagonal < 0).any()):
        raise ValueError(f"the Hessian's diagonal holds {float(diagonal.min()):g}: it is not of the form X^T X")
    return float(diagonal.double().mean())


def _attempts(damping: float) -> list[tuple[torch.dtype, float]]:
    """Dtype and damping to try: the given damping, then ten times more up to 1, in float32; last 1 in float64."""
    fractions = [damping]
    while fractions[-1] < 1:
        fractions.append(min(max(10 * fractions[-1], 0.01), 1.0))
    return [(torch.float32, fraction) for fraction in fractions] + [(torch.float64, fractions[-1])]


def _inverse_upper(
    hessian: Tensor, dtype: torch.dtype, damping: float, dead: Tensor, order: Tensor | None
) -> Tensor | None:
    """U, in float32, with (H + damping * I)^-1 = U^T U, or None if that is not positive definite in `dtype`.

    With J the reversal of rows and columns and J H J = L L^T, U is J L^-1 J.

    Args:
        damping: added to the diagonal, which then becomes 1 where `dead`, in the layer's order.
        order: of the rows and columns of U; None for the layer's order.
    """
    backward = None if order is None else order.flip(0)
    matrix = hessian.flip(0, 1) if backward is None else hessian[backward[:, None], backward]
    reversed_dead = dead.flip(0) if backward is None else dead[backward]
    matrix = matrix.to(dtype) if dtype != torch.float64 or has_float64(matrix.device) else matrix.cpu().to(dtype)
    matrix.diagonal().add_(damping).masked_fill_(reversed_dead.to(matrix.device), 1)
    infos: list[Tensor] = []
    _invert_factor_(matrix, infos)
    if bool(torch.stack(infos).any()):  # once for all leaves, since the CPU waits for the device here
        return None
    return matrix.flip(0, 1).to(torch.float32).to(hessian.device)


def _invert_factor_(matrix: Tensor, infos: list[Tensor]) -> None:
    """Overwrite matrix = L L^T by L^-1.

    By halves: L21 = A21 L11^-T, L22 is the factor of A22 - L21 L21^T, and -L22^-1 L21 L11^-1 is the lower left of L^-1.

    Args:
        infos: gets for every leaf of the recursion a tensor that is not 0 if the matrix is not positive definite.
    """
    size = len(matrix)
    if size <= LEAF:
        lower, info = torch.linalg.cholesky_ex(matrix)
        infos.append(info)
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        matrix.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
        return
    half = size // 2
    first, second, lower_left = matrix[:half, :half], matrix[half:, half:], matrix[half:, :half]
    _invert_factor_(first, infos)
    coupling = lower_left @ first.T
    _invert_factor_(second.addmm_(coupling, coupling.T, alpha=-1), infos)
    torch.mm(second, (coupling @ first).neg_(), out=lower_left)
    matrix[:half, half:] = 0


def add_gram(hessian: Tensor, X: Tensor) -> None:
    """Add X^T X to `hessian` in place, with float32 accumulation.

    Args:
        hessian: (in, in) float32, changed in place.
        X: (tokens, in) of any float dtype, on the same device.
    Raises:
        ValueError: shapes that do not fit, or a Hessian that is not float32.
    """
    if X.ndim != 2 or hessian.shape != (X.shape[1], X.shape[1]):
        raise ValueError(f"inputs of shape {tuple(X.shape)} do not fit a Hessian of shape {tuple(hessian.shape)}")
    if hessian.dtype != torch.float32:
        raise ValueError(f"a Hessian must be float32: sums in {hessian.dtype} lose small inputs")
    if X.is_cuda and torch.version.hip is None and X.dtype in (torch.bfloat16, torch.float16):
        rows = max(1, GRAM_AT_ONCE // X.shape[1])
        for sums, inputs in zip(hessian.split(rows), X.T.split(rows), strict=True):
            sums.add_(torch.mm(inputs, X, out_dtype=torch.float32))
    elif _has_bfloat16_matmul(X) and hessian.is_contiguous() and len(X):
        _add_gram_bfloat16(hessian, X.contiguous())
    else:
        X = X.float()
        hessian.addmm_(X.T, X)


def _has_bfloat16_matmul(X: Tensor) -> bool:
    return X.device.type == "cpu" and X.dtype == torch.bfloat16 and _bfloat16_matmul() is not None


@functools.cache
def _bfloat16_matmul() -> object | None:
    """The matmul of bfloat16 to float32 of the MKL inside torch; None if the CPU has no bfloat16 instructions.

    torch's bfloat16 matmul rounds its result to bfloat16, which is too coarse for a sum over thousands of tokens.
    """
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not ("avx512_bf16" in flags or "amx_bf16" in flags) or not library.exists():
        return None
    return getattr(ctypes.CDLL(str(library)), "cblas_gemm_bf16bf16f32", None)


def _add_gram_bfloat16(hessian: Tensor, X: Tensor) -> None:
    """hessian += X^T X by MKL; both contiguous, X bfloat16 with at least one row."""
    row_major, transposed, plain = 101, 112, 111
    tokens, features = X.shape
    one = ctypes.c_float(1)
    data = ctypes.c_void_p(X.data_ptr())
    _bfloat16_matmul()(
        row_major, transposed, plain, features, features, tokens, one, data, features, data, features, one,
        ctypes.c_void_p(hessian.data_ptr()), features,
    )  # fmt: skip
