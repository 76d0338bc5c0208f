"""Which weights of a model are compressed."""

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def prunable_weights(
    model: nn.Module,
    new_parameters: Collection[str] = (),
    include_embeddings: bool = True,
    include_new: bool = False,
) -> dict[str, nn.Parameter]:
    """The matrices of an encoder that pruning ranks: weights of linear layers and of embeddings, in the model's order.

    Biases and norms are never pruned. A weight that two modules share is listed once.

    Args:
        model: any encoder; its weights may be on the meta device.
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


@dataclass(frozen=True)
class LinearWeight:
    """One weight matrix of a decoder block, whatever module holds it."""

    name: str  # within the model; of one expert: "….experts.down_proj[3]"
    owner: nn.Module
    attribute: str = "weight"
    expert: int | None = None

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), a view: writing to it writes to the model.

        Conv1D (GPT-2) keeps its weight as (in, out), mixture-of-experts blocks keep theirs as (experts, out, in).
        """
        data = getattr(self.owner, self.attribute).data
        if self.expert is not None:
            return data[self.expert]
        return data.T if isinstance(self.owner, Conv1D) else data


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the model's decoder blocks.

    Raises:
        ValueError: an encoder or encoder-decoder, or no list as long as the config says.
    """
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder-decoder; a decoder-only language model is needed")
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return name, module
    raise ValueError(f"{type(model).__name__} has no list of {config.num_hidden_layers} decoder blocks to walk over")


def block_weights(block: nn.Module, prefix: str) -> list[LinearWeight]:
    """The weights of one decoder block that are compressed: its Linear, Conv1D and expert matrices.

    Embeddings, norms, biases, routers and lm_head are not among them.

    Raises:
        ValueError: the block has none, or keeps expert weights in a layout that is not known (names it).
    """
    found = []
    for name, module in block.named_modules():
        path = f"{prefix}.{name}"
        if isinstance(module, (nn.Linear, Conv1D)):
            found.append(LinearWeight(f"{path}.weight", module))
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:
                _check_experts(module, path)
                found += [LinearWeight(f"{path}.{attribute}[{i}]", module, attribute, i) for i in range(len(parameter))]
            elif parameter.dim() > 3 or isinstance(module, nn.modules.conv._ConvNd):
                raise ValueError(f"{path} ({type(module).__name__}) is no linear layer; this block cannot be walked")
    if not found:
        raise ValueError(f"{prefix} ({type(block).__name__}) has no linear layer to compress")
    return found


def _check_experts(module: nn.Module, path: str) -> None:
    if getattr(module, "is_transposed", None) is not False:
        raise ValueError(
            f"{path} ({type(module).__name__}) keeps its expert weights in a layout that this walk does not know"
        )


def decoder_weights(model: PreTrainedModel) -> dict[str, LinearWeight]:
    """Every weight that compression of a decoder touches, by name, in the order of the blocks.

    Raises:
        ValueError: see decoder_blocks and block_weights.
    """
    name, blocks = decoder_blocks(model)
    return {
        weight.name: weight for index, block in enumerate(blocks) for weight in block_weights(block, f"{name}.{index}")
    }
