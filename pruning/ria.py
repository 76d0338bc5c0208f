"""RIA (Zhang et al., "Plug-and-Play", ICLR 2024): scores weights relative to their row and column."""

from torch import Tensor

from pruning.masks import lowest_k_mask
from pruning.nm import nm_mask
from pruning.validation import check_strength
from pruning.wanda import input_norms


def ria_mask(
    W: Tensor, input_sq_norms: Tensor, sparsity: float | None = None, nm: tuple[int, int] | None = None
) -> Tensor:
    """Keep-mask that drops exactly round(sparsity * numel) weights of the whole layer, or keeps N of every M.

    A weight's score is (|w| / sum of its row + |w| / sum of its column) * input norm ** 0.5.

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
    Source: sec. 4.1 with a = 0.5; biomedical-cybernetics/Relative-importance-and-activation-pruning, whose default
        ranks the layer as one. Its channel permutation is left out. In a row or column of zeros, weights score 0 here,
        NaN there.
    """
    check_strength(sparsity, nm, W.shape[-1])
    norms = input_norms(W, input_sq_norms)
    magnitude = W.detach().abs().float()
    tiny = 1e-38  # instead of 0 / 0 in a row or column of zeros
    row_sums, column_sums = magnitude.sum(dim=1, keepdim=True), magnitude.sum(dim=0)
    scores = magnitude / row_sums.clamp_(min=tiny)
    scores.add_(magnitude.div_(column_sums.clamp_(min=tiny))).mul_(norms.sqrt())
    del magnitude
    return nm_mask(scores, *nm) if nm is not None else lowest_k_mask(scores, sparsity)
