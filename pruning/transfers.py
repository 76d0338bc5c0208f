"""The four transfers: which weights are pruned before training, which stay zero, which keep their pretrained values.

dense_transfer prunes nothing. dense_transfer_freezing keeps the small weights at their pretrained values during
training; sparse_transfer keeps them at zero; sparse_to_dense sets them to zero once and lets them grow.

Source: paper, sections 3.1.1 and 5, under the names of its figure 8.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.masks import apply_masks, hold_masks

TRANSFERS = ("dense_transfer", "dense_transfer_freezing", "sparse_transfer", "sparse_to_dense")


def start_transfer(
    transfer: str,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    keep_masks: Mapping[str, Tensor],
) -> None:
    """Prune or freeze `parameters` as the transfer says; where masks must hold, `optimizer` gets a hook for it.

    Args:
        keep_masks: by name, True where the weight is kept; empty for dense_transfer.
    """
    if transfer == "dense_transfer_freezing":
        frozen = {name: parameters[name].detach().clone() for name in keep_masks}
        hold_masks(optimizer, parameters, keep_masks, frozen)
    elif transfer in ("sparse_transfer", "sparse_to_dense"):
        apply_masks(parameters, keep_masks)
        if transfer == "sparse_transfer":
            hold_masks(optimizer, parameters, keep_masks)
