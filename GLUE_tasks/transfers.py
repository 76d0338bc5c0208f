"""Which weights of a model are pruned by magnitude before fine-tuning, and how strongly; see pruning.transfers."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pruning.layers import MOST_LEFT_OUT, prunable_weights, share_left_out
from pruning.magnitude import magnitude_masks
from pruning.nm import nm_mask, parse_nm

logger = logging.getLogger(__name__)


class Strength(NamedTuple):
    """How much of a model is pruned: a sparsity, or N:M with N of every M weights kept; nothing if both are None."""

    sparsity: float | None = None
    nm_ratio: str | None = None

    @property
    def name(self) -> str:
        """The name in folders: "0.5", "6of8", "dense"."""
        if self.nm_ratio is not None:
            return self.nm_ratio.replace(":", "of")
        return "dense" if self.sparsity is None else f"{self.sparsity:g}"

    def facts(self, scope: str) -> dict[str, Any]:
        """Entries of all_results.json: magnitude_scope, strength_kind, strength, requested_sparsity.

        Args:
            scope: recorded for a sparsity alone; N:M ranks within a group of M.
        """
        kept, group = parse_nm(self.nm_ratio) if self.nm_ratio else (None, None)
        if kept is not None:
            kind, strength, requested = "nm", self.nm_ratio, 1 - kept / group
        elif self.sparsity is not None:
            kind, strength, requested = "sparsity", self.sparsity, self.sparsity
        else:
            kind, strength, requested = None, None, 0.0
        return {
            "magnitude_scope": scope if kind == "sparsity" else None,
            "strength_kind": kind,
            "strength": strength,
            "requested_sparsity": requested,
        }


@dataclass(frozen=True)
class Pruning:
    """Which weights of a model may be pruned, and how they are ranked.

    Fields:
        strengths: those that masks are needed for.
        scope: one of pruning.magnitude.SCOPES.
        include_embeddings: prune embeddings too.
        include_new: prune the untrained head too, as the original does.
    """

    strengths: tuple[Strength, ...] = ()
    scope: str = "global"
    include_embeddings: bool = True
    include_new: bool = False

    def weights(self, model: nn.Module, new_parameters: Collection[str] = ()) -> dict[str, nn.Parameter]:
        """The weights of a model that may be pruned, by name.

        Args:
            new_parameters: names of parameters that the checkpoint lacks.
        """
        return prunable_weights(model, new_parameters, self.include_embeddings, self.include_new)

    def check_groups(self, model: nn.Module) -> None:
        """Refuse N:M whose groups of M do not divide the inputs of a layer.

        Args:
            model: base model without head; may be on the meta device.
        Raises:
            ValueError: names the option, the weight and its inputs.
        """
        weights = self.weights(model)
        for ratio in filter(None, (strength.nm_ratio for strength in self.strengths)):
            _, m_group = parse_nm(ratio)
            for name, weight in weights.items():
                inputs = by_inputs(model, name, weight).shape[1]
                if inputs % m_group:
                    raise ValueError(f"--nm_ratio {ratio}: {name} has {inputs} inputs, no multiple of {m_group}")


def select_masks(
    model: nn.Module, new_parameters: Collection[str], pruning: Pruning
) -> dict[Strength, dict[str, Tensor]]:
    """Keep-masks by strength and by name of the weight; one selection serves all sparsities.

    The log warns where more than a quarter of the model cannot be pruned.

    Args:
        new_parameters: names of parameters that the checkpoint lacks.
    """
    weights = pruning.weights(model, new_parameters)
    sparse = [strength for strength in pruning.strengths if strength.sparsity is not None]
    selected = magnitude_masks(weights, [strength.sparsity for strength in sparse], pruning.scope)
    masks = dict(zip(sparse, selected, strict=True))
    for strength in pruning.strengths:
        if strength.nm_ratio:
            n_kept, m_group = parse_nm(strength.nm_ratio)
            masks[strength] = {
                name: by_inputs(
                    model, name, nm_mask(by_inputs(model, name, weight.detach()).abs(), n_kept, m_group)
                ).contiguous()
                for name, weight in weights.items()
            }
    total = sum(weight.numel() for weight in weights.values())
    logger.info("prunable: %d weights in %d matrices", total, len(weights))
    share, largest = share_left_out(model, weights.values(), () if pruning.include_new else new_parameters)
    if share > MOST_LEFT_OUT:
        told = (
            "%.0f %% of the pretrained matrices outside embeddings are not linear layers and never pruned, such as %s"
        )
        logger.warning(told, 100 * share, largest)
    return masks


def by_inputs(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A weight as (out_features, in_features), or such a mask in the form that the weight is stored in: a view.

    Conv1D (GPT-2) stores (in, out), as pruning.layers.LinearWeight.matrix says.
    """
    return tensor.T if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) else tensor


def nm_arithmetic(model: nn.Module) -> int:
    """Number of the arithmetic of N:M: 2 for a model with Conv1D, whose outputs earlier versions grouped as inputs.

    Args:
        model: may be on the meta device.
    """
    return 2 if any(isinstance(module, Conv1D) for module in model.modules()) else 1
