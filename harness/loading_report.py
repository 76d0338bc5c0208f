"""Whether a loaded model is its checkpoint's: transformers' report of the loading, judged by the model's structure."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NAMED = 3  # weights that a message names, of many
# What stands in the names of tensors that a wrapper around the model was saved with.
WRAPPERS = {
    "_orig_mod": "torch.compile", "module": "DataParallel or DeepSpeed", "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}  # fmt: skip
# How quantized checkpoints name what they hold in the place of a weight.
QUANTIZED = {"qweight", "qzeros", "scales", "weight_scale", "weight_scale_inv", "weight_packed", "absmax"}
# Tables that follow from the config, and that older versions of transformers stored with the weights.
TABLES = re.compile(r"(inv_freq|masked_bias|causal_mask|position_ids|(attn|attention)\.bias)$")


def check_loading(
    model: PreTrainedModel, loading: Mapping[str, Any], new_head: bool, ignore_mismatched_sizes: bool
) -> frozenset[str]:
    """Refuse a model of which the checkpoint lacks a weight, or for whose weights it has no place.

    Args:
        loading: from_pretrained's, with output_loading_info and ignore_mismatched_sizes.
        new_head: weights outside the base model, and the pooler, may be missing, for training.
        ignore_mismatched_sizes: weights outside the base model may have other shapes.
    Returns:
        Names of the weights that are new.
    Raises:
        ValueError: names the first such weights and what is probably wrong.
    """
    mismatched = {key: (tuple(stored), tuple(wanted)) for key, stored, wanted in loading["mismatched_keys"]}
    missing, unexpected = set(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    tables = _tables_not_stored(model, missing)
    missing -= tables
    head = {key for key in missing | mismatched.keys() if not _is_in_body(model, key)}
    pooler = {name for name, _ in model.named_parameters() if "pooler" in name.split(".")}
    if not pooler <= missing:
        pooler = set()  # the checkpoint has it, so that what it lacks of it was lost
    if lacking := sorted(missing - (head | pooler if new_head else set())):
        total = sum(1 for _ in model.named_parameters(remove_duplicate=False))
        raise ValueError(f"{len(lacking)} of {total} weights are missing in the checkpoint: {some(lacking)}"
                         f"{_reason(model, set(lacking), unexpected)}")  # fmt: skip
    for key, (stored, wanted) in sorted(mismatched.items()):
        if key not in head or not new_head:
            others = f" (and so have {len(mismatched) - 1} others)" if len(mismatched) > 1 else ""
            raise ValueError(
                f"{key} has the shape {list(stored)} in the checkpoint, {list(wanted)} by config.json{others}"
            )
        if not ignore_mismatched_sizes:
            raise ValueError(f"its head has another size ({key}: {list(stored)}, needed {list(wanted)}); "
                             "--ignore_mismatched_sizes puts a new one in its place")  # fmt: skip
    if torn := sorted(key for key in head & missing if not _has_new_group(model, key, missing | mismatched.keys())):
        raise ValueError(f"a part of its head is missing in the checkpoint: {some(torn)}")
    _check_unexpected(model, unexpected)
    new = frozenset(missing | mismatched.keys())
    if tables:
        logger.info("as the config says, since the checkpoint has none: %s", some(sorted(tables)))
    if new:
        logger.info("new, since the checkpoint has none: %s", ", ".join(sorted(new)))
    return new


def _is_in_body(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight is a part of the base model, which no task changes."""
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _has_new_group(model: PreTrainedModel, key: str, new: Collection[str]) -> bool:
    """Whether all weights of a part of the head are new: what is new by halves was damaged."""
    group = key.partition(".")[0]
    return all(name in new for name, _ in model.named_parameters() if name.partition(".")[0] == group)


def _tables_not_stored(model: PreTrainedModel, missing: Collection[str]) -> set[str]:
    """Missing buffers that follow from the config; others, such as a router's bias, count like weights."""
    return {
        name for name, buffer in model.named_buffers()
        if name in missing and (TABLES.search(name) or not buffer.is_floating_point())
    }  # fmt: skip


def _check_unexpected(model: PreTrainedModel, unexpected: Collection[str]) -> None:
    """Log tensors that the model does not take, such as another task's head; refuse those that it should have taken.

    A layer beyond the config's number, or a bias or norm for a layer that has none by the config, was part of what
    the checkpoint computed.
    """
    modules = dict(model.named_modules())
    lists = [f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    left_out = []
    for key in unexpected:
        if TABLES.search(key):
            continue
        base = f"{model.base_model_prefix}."
        for name in {key, base + key, key.removeprefix(base)}:
            owner = modules.get(name.rpartition(".")[0])
            owns = owner is not None and any(True for _ in owner.parameters(recurse=False))
            if owns or name.startswith(tuple(lists)):
                left_out.append(key)
                break
    if left_out:
        raise ValueError(f"{len(left_out)} tensors of the checkpoint have no place in a {type(model).__name__} by its "
                         f"config.json: {some(left_out)}{_reason(model, set(), left_out)}")  # fmt: skip
    if unexpected:
        logger.info("not used, of %d tensors that the checkpoint has besides: %s", len(unexpected), some(unexpected))


def _reason(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> str:
    """What is probably wrong, as the end of a sentence."""
    parts = {part for key in unexpected for part in key.split(".")}
    for wrapper, maker in WRAPPERS.items():
        if wrapper in parts:
            found = next(key for key in unexpected if wrapper in key.split("."))
            return f"; it has names such as {found}, saved with the wrapper of {maker}: save the model inside it"
    if any(part.startswith("lora_") or part == "base_layer" for part in parts):
        return "; it holds an adapter's tensors beside the model's: merge them before saving"
    if quantized := [key for key in unexpected if key.rpartition(".")[2] in QUANTIZED]:
        return f"; it holds quantized tensors ({quantized[0]}): give the dense model that it was made from"
    if counted := _other_number_of_layers(model, missing, unexpected):
        return f"; {counted}"
    for key in missing:
        if found := next((other for other in unexpected if other.endswith(f".{key}")), None):
            return f"; it has {found} instead: its names stand behind {found.removesuffix(key)}"
    if unexpected and missing:
        return f"; it has {some(sorted(unexpected))} instead"
    head = model.get_output_embeddings()
    if head is not None and {id(model.get_parameter(key)) for key in missing if _is_parameter(model, key)} == {
        id(head.weight)
    }:
        return "; it is a base model without its output head, or tie_word_embeddings of config.json is wrong"
    return ""


def _is_parameter(model: PreTrainedModel, key: str) -> bool:
    return any(key == name for name, _ in model.named_parameters(remove_duplicate=False))


def _other_number_of_layers(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> str:
    """Says that the config has more or fewer layers than the checkpoint, where whole layers are missing or left."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        gone = [
            index for index, layer in enumerate(module)
            if (keys := [f"{name}.{index}.{key}" for key, _ in layer.named_parameters()]) and missing and
            all(key in missing for key in keys)
        ]  # fmt: skip
        stored = len(module) - len(gone)
        if gone and stored and gone == list(range(stored, len(module))):
            return f"config.json has {len(module)} layers ({name}), the checkpoint {stored}"
        inner = name.removeprefix(f"{model.base_model_prefix}.")
        layer = re.compile(rf"(?:^|\.){re.escape(inner)}\.(\d+)\.")
        beyond = [int(found[1]) for key in unexpected if (found := layer.search(key))]
        if beyond and min(beyond) >= len(module):
            return f"config.json has {len(module)} layers ({name}), the checkpoint {max(beyond) + 1}"
    return ""


def some(names: Collection[str]) -> str:
    """The first few names of many."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")


def check_finite(model: nn.Module) -> None:
    """Raises ValueError where a weight is NaN or infinite, as in a damaged file or above float16's largest number."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        # one pass, a fortieth of what isfinite() of every weight takes: NaN is both the least and the largest
        if parameter.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(parameter.detach())):
            count = parameter.numel() - int(parameter.isfinite().sum())
            raise ValueError(f"{name} holds {count} NaN or infinite weights as {parameter.dtype}")
