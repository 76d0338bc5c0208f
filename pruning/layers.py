"""The weights of a model that are compressed, and hooks that show the inputs of each."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

GATES = {"router", "gate", "shared_expert_gate"}  # one of these is in the name of a layer that chooses experts
MOST_LEFT_OUT = 1 / 4  # of the matrices; beyond it, what is compressed would pass for a whole that it is not


def prunable_weights(
    model: nn.Module,
    new_parameters: Collection[str] = (),
    include_embeddings: bool = True,
    include_new: bool = False,
) -> dict[str, nn.Parameter]:
    """The prunable weights of an encoder: matrices of linear layers and of embeddings, by name in the model's order.

    Biases and norms are never pruned. A weight that two modules share is listed once.

    Args:
        model: any encoder; its weights may be on the meta device.
        new_parameters: names of parameters that were not in the checkpoint (a new head).
        include_embeddings: prune word, position and token-type embeddings too (the original without --noembed).
        include_new: prune `new_parameters` too.
    Raises:
        ValueError: the model holds no such weight.
    Source: the original's sparse_core.py takes 2-D tensors whose names lack "embed"; on RoBERTa and BERT that is this
        set, but it prunes the randomly initialised head as well (--prune_new_head).
    """
    types = (nn.Linear, Conv1D, nn.Embedding) if include_embeddings else (nn.Linear, Conv1D)
    names = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, types)}
    chosen = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name in names and (include_new or name not in new_parameters)
    }
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no linear layer to prune")
    return chosen


def share_left_out(
    module: nn.Module, chosen: Iterable[nn.Parameter], new_parameters: Collection[str] = ()
) -> tuple[float, str]:
    """The share of a module's matrices that are not among `chosen`, and the name of the largest of these.

    Embeddings, vectors and depthwise convolutions are no matrices.

    Args:
        new_parameters: names of parameters that do not count.
    """
    aside = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding) or _is_depthwise(part)}
    matrices = {
        name: parameter
        for name, parameter in module.named_parameters()
        if not _is_vector(parameter) and id(parameter) not in aside and name not in new_parameters
    }
    taken = set(map(id, chosen))
    left_out = {name: parameter.numel() for name, parameter in matrices.items() if id(parameter) not in taken}
    total = sum(parameter.numel() for parameter in matrices.values())
    return sum(left_out.values()) / max(1, total), max(left_out, key=left_out.get, default="")


def _is_vector(parameter: Tensor) -> bool:
    """Whether all of its axes but one have size 1."""
    return parameter.numel() == max(parameter.shape, default=1)


def _is_depthwise(module: nn.Module) -> bool:
    """Whether it is a convolution of single channels: a few weights for each, as in a norm."""
    return isinstance(module, nn.Conv1d) and module.groups == module.in_channels == module.out_channels


@dataclass(frozen=True)
class LinearWeight:
    """One weight matrix of a decoder block: that of a linear layer, or of one expert in a 3-D parameter."""

    name: str  # within the model; of one expert: "….experts.down_proj[3]"
    module: nn.Module
    attribute: str = "weight"  # name of the parameter in the module
    expert: int | None = None

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), a view: writing to it writes to the model.

        Conv1D (GPT-2) keeps its weight as (in, out), mixture-of-experts blocks keep theirs as (experts, out, in).
        """
        data = getattr(self.module, self.attribute).data
        if self.expert is not None:
            return data[self.expert]
        return data.T if isinstance(self.module, Conv1D) else data


def decoder_blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The decoder blocks of a language model, or of the language model inside a multimodal one.

    Submodels with another config, such as a vision tower, are skipped. Of the other lists of modules, the blocks are
    the one whose length is num_hidden_layers of the text config, or else the one with most weights.

    Returns:
        The list's name within the model, such as "model.layers", and the list.
    Raises:
        ValueError: an encoder-decoder, no list of blocks, blocks in two lists, or blocks that share a weight.
    """
    text = model.config.get_text_config()
    class_name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise ValueError(f"{class_name} is an encoder-decoder; a decoder-only language model is needed")
    lists = dict(_lists_of_blocks(model, (type(model.config), type(text))))
    if not lists:
        raise ValueError(f"{class_name} has no list of decoder blocks to walk over")
    depth = getattr(text, "num_hidden_layers", None)
    sizes = {name: sum(weight.numel() for weight in blocks.parameters()) for name, blocks in lists.items()}
    name = max(lists, key=lambda name: (len(lists[name]) == depth, sizes[name]))
    for other, blocks in lists.items():
        if other != name and len(blocks) == len(lists[name]) and sizes[other] > sizes[name] / 4:
            raise ValueError(f"{class_name} cannot be compressed: its blocks are in two lists, {other} and {name}")
    _check_no_shared_weight(name, lists[name], class_name)
    return name, lists[name]


def _lists_of_blocks(
    module: nn.Module, configs: tuple[type, ...], path: str = ""
) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists of modules with weights, by name; skips lists inside lists, and submodels with a config of another type."""
    for key, child in module.named_children():
        name = f"{path}.{key}" if path else key
        if isinstance(child, nn.ModuleList):
            if any(True for _ in child.parameters()):
                yield name, child
        elif not isinstance(child, PreTrainedModel) or isinstance(child.config, configs):
            yield from _lists_of_blocks(child, configs, name)


def _check_no_shared_weight(name: str, blocks: nn.ModuleList, class_name: str) -> None:
    first_block: dict[int, int] = {}
    for index, block in enumerate(blocks):
        for key, weight in block.named_parameters():
            if (first := first_block.setdefault(id(weight), index)) != index:
                raise ValueError(f"{class_name} cannot be compressed: {name}.{first} and {name}.{index} share {key}")


def gates(block: nn.Module) -> list[nn.Linear]:
    """The linear layers of a block that choose its experts and weigh them: routers, and the gate of a shared expert.

    They have an output for each expert, or a single one. A block without experts has none.

    Source: what llm-compressor's recipes for mixtures of experts leave out.
    """
    numbers: set[int] = set()  # of experts
    for name, module in block.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("experts"):
            numbers.add(len(module))
        elif _holds_experts(module):
            numbers |= {len(parameter) for parameter in module.parameters(recurse=False)}
    return [
        module
        for name, module in block.named_modules()
        if numbers
        and isinstance(module, nn.Linear)
        and module.out_features in {1, *numbers}
        and not GATES.isdisjoint(name.split("."))
    ]


def _holds_experts(module: nn.Module) -> bool:
    """Whether its parameters are of all experts, (number, out, in), as transformers marks it."""
    return getattr(module, "is_transposed", None) is False


def arithmetic(model: PreTrainedModel) -> int:
    """Version number of which weights of a model are compressed, part of a run's identity; raised when it changes.

    1: gates that are linear layers too. 2: no gates.
    """
    return 2 if any(map(gates, decoder_blocks(model)[1])) else 1


def block_weights(block: nn.Module, prefix: str) -> list[LinearWeight]:
    """The weights of one decoder block that are compressed: its Linear, Conv1D and expert matrices.

    Not embeddings, norms, biases, the gates of experts, depthwise convolutions or lm_head.

    Args:
        prefix: name of the block within the model.
    Raises:
        ValueError: the block has none, or keeps a matrix of three dimensions, or more than MOST_LEFT_OUT of its
            matrices, in another layout (the message names one).
    """
    weights, aside = [], gates(block)
    for name, module in block.named_modules():
        path = f"{prefix}.{name}"
        if module in aside or _is_depthwise(module):
            continue
        if isinstance(module, (nn.Linear, Conv1D)):
            weights.append(LinearWeight(f"{path}.weight", module))
            continue
        for attribute, parameter in module.named_parameters(recurse=False):
            if parameter.dim() < 3 or _is_vector(parameter):
                continue
            if parameter.dim() > 3 or not _holds_experts(module):
                raise _another_layout(block, prefix, f"{name}.{attribute}".lstrip("."))
            weights += [LinearWeight(f"{path}.{attribute}[{i}]", module, attribute, i) for i in range(len(parameter))]
    if not weights:
        raise ValueError(f"{prefix} ({type(block).__name__}) has no linear layer to compress")
    share, largest = share_left_out(block, [getattr(weight.module, weight.attribute) for weight in weights])
    if share > MOST_LEFT_OUT:
        raise _another_layout(block, prefix, largest)
    return weights


def _another_layout(block: nn.Module, prefix: str, name: str) -> ValueError:
    """The error for a parameter of a block, by its name in it, that is no weight that we can compress."""
    parameter, owner = block.get_parameter(name), block.get_submodule(name.rpartition(".")[0])
    return ValueError(
        f"{prefix}.{name} ({type(owner).__name__}) has the shape {list(parameter.shape)}: neither a linear layer nor "
        "experts (number, out, in); this block cannot be compressed"
    )


def decoder_weights(model: PreTrainedModel) -> dict[str, LinearWeight]:
    """All weights of a decoder that are compressed, by name in the order of the blocks.

    Raises:
        ValueError: see decoder_blocks and block_weights.
    """
    name, blocks = decoder_blocks(model)
    return {
        weight.name: weight for index, block in enumerate(blocks) for weight in block_weights(block, f"{name}.{index}")
    }


@contextlib.contextmanager
def record_inputs(weights: list[LinearWeight], record: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `record(name, inputs)` is called before each matmul with one of `weights`."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple], None]:
        return lambda _, args: record(name, args[0])

    experts = [weight for weight in weights if weight.expert is not None]
    handles = [w.module.register_forward_pre_hook(hook_of(w.name)) for w in weights if w.expert is None]
    try:
        with _ExpertInputs(experts, record) if experts else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _ExpertInputs(TorchFunctionMode):
    """Records the input of every matmul with one expert's slice of a 3-D weight, for which no module has a hook."""

    def __init__(self, weights: list[LinearWeight], record: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names = {weight.matrix.data_ptr(): weight.name for weight in weights}
        self._record = record

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.linear and args[1].data_ptr() in self._names:
            self._record(self._names[args[1].data_ptr()], args[0])
        return func(*args, **(kwargs or {}))
