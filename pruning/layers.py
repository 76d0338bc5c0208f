"""Which weights of a model are pruned."""

from collections.abc import Collection

from torch import nn
from transformers.pytorch_utils import Conv1D


def prunable_weights(
    model: nn.Module,
    new_parameters: Collection[str] = (),
    include_embeddings: bool = True,
    include_new: bool = False,
) -> dict[str, nn.Parameter]:
    """The matrices that pruning ranks: weights of linear layers and of embeddings, by name, in the model's order.

    Biases and norms are never pruned. A weight that two modules share is listed once.

    Args:
        model: any encoder or decoder; its weights may be on the meta device.
        new_parameters: names of parameters that no checkpoint held (a new head), pruned only with `include_new`.
        include_embeddings: rank word, position and token-type embeddings too (the original without --noembed).
    Raises:
        ValueError: the model holds no such weight.
    Source: the original's sparse_core.py takes 2-D tensors whose names lack "embed"; on RoBERTa and BERT that is this
        set, but it prunes the randomly initialised head as well (--prune_new_head).
    """
    kinds = (nn.Linear, Conv1D, nn.Embedding) if include_embeddings else (nn.Linear, Conv1D)
    owners = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, kinds)}
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name in owners and (include_new or name not in new_parameters)
    }
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer to prune")
    return chosen
