"""One-shot magnitude pruning (paper, section 2): drops the weights of smallest absolute value."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pruning.masks import lowest_k_masks

SCOPES = ("global", "layer")


def magnitude_masks(
    weights: Mapping[str, Tensor], sparsities: Sequence[float], scope: str = "global"
) -> list[dict[str, Tensor]]:
    """Keep-masks that drop the smallest weights, for several sparsities in one pass over the weights.

    Args:
        weights: the prunable weights by name.
        sparsities: fractions to drop, each in [0, 1].
        scope: "global" ranks all weights together and drops exactly round(sparsity * total); "layer" does so within
            each tensor.
    Returns:
        One dict per sparsity: boolean mask per name, True where the weight is kept.
    Raises:
        ValueError: unknown scope, a sparsity outside [0, 1], or a weight is NaN.
    Source: the original ranks globally for GLUE (sparse_core.py) and by layer for Vicuna (lib/prune.py).
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} is not one of {', '.join(SCOPES)}")
    names = list(weights)
    groups = [names] if scope == "global" else [[name] for name in names]
    masks: list[dict[str, Tensor]] = [{} for _ in sparsities]
    for group in groups:
        chosen = lowest_k_masks([weights[name] for name in group], sparsities, torch.abs)
        for mask, tensors in zip(masks, chosen, strict=True):
            mask.update(zip(group, tensors, strict=True))
    return masks
