"""Checks that a loaded model has the weights of its checkpoint, by what transformers reports of the loading."""

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

NAMED = 3  # most weights that a message names
# Parts of tensor names that show that a wrapper was saved instead of the model in it.
WRAPPERS = {
    "_orig_mod": "torch.compile", "module": "DataParallel or DeepSpeed", "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}  # fmt: skip
# Last parts of tensor names in quantized checkpoints.
QUANTIZED = {"qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_packed", "absmax"}
# Buffers that are computed from the config; older versions of transformers stored them with the weights.
TABLES = re.compile(r"(inv_freq|masked_bias|causal_mask|position_ids|(attn|attention)\.bias)$")


def check_loading(
    model: PreTrainedModel, loading: Mapping[str, Any], new_head: bool, ignore_mismatched_sizes: bool
) -> frozenset[str]:
    """Refuse a model whose checkpoint lacks a weight, or holds one that the model should have and has not.

    Args:
        loading: second result of from_pretrained with output_loading_info and ignore_mismatched_sizes.
        new_head: the head (weights outside the base model) and the pooler may be missing: they will be trained.
        ignore_mismatched_sizes: with new_head, weights of the head may have other shapes.
    Returns:
        Names of the weights that are newly initialised.
    Raises:
        ValueError: names the first such weights and the probable cause.
    """
    mismatched = {key: (tuple(stored), tuple(wanted)) for key, stored, wanted in loading["mismatched_keys"]}
    missing, unexpected = set(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    tables = _tables_not_stored(model, missing)
    missing -= tables
    head = {key for key in missing | mismatched.keys() if not _is_in_body(model, key)}
    pooler = {name for name, _ in model.named_parameters() if "pooler" in name.split(".")}
    if not pooler <= missing:
        pooler = set()  # the checkpoint has a part of it, so that the rest was lost
    if lacking := sorted(missing - (head | pooler if new_head else set())):
        total = sum(1 for _ in model.named_parameters(remove_duplicate=False))
        total += sum(name.rpartition(".")[2] in QUANTIZED for name, _ in model.named_buffers())
        raise ValueError(f"{len(lacking)} of {total} weights are missing in the checkpoint: {first_names(lacking)}"
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
        raise ValueError(f"a part of its head is missing in the checkpoint: {first_names(torn)}")
    _check_unexpected(model, unexpected)
    new = frozenset(missing | mismatched.keys())
    if tables:
        logger.info("computed from the config, since the checkpoint lacks them: %s", first_names(sorted(tables)))
    if new:
        logger.info("newly initialised, since the checkpoint lacks them: %s", ", ".join(sorted(new)))
    return new


def _is_in_body(model: PreTrainedModel, key: str) -> bool:
    """Whether a weight belongs to the base model and not to a head."""
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


def _has_new_group(model: PreTrainedModel, key: str, new: Collection[str]) -> bool:
    """Whether all weights of the head's module with this weight are new; if only some are, the file is damaged."""
    module = key.partition(".")[0]
    return all(name in new for name, _ in model.named_parameters() if name.partition(".")[0] == module)


def _tables_not_stored(model: PreTrainedModel, missing: Collection[str]) -> set[str]:
    """Missing buffers that are computed from the config; others count as weights: a router's bias, packed integers."""
    return {
        name for name, buffer in model.named_buffers()
        if name in missing and name.rpartition(".")[2] not in QUANTIZED
        and (TABLES.search(name) or not buffer.is_floating_point())
    }  # fmt: skip


def _check_unexpected(model: PreTrainedModel, unexpected: Collection[str]) -> None:
    """Log tensors that the model does not use, such as another task's head; refuse those that it should use.

    It should use tensors of layers beyond the config's number of layers, and a bias or norm of a layer that has none by
    the config: they took part in what the checkpoint computed.
    """
    modules = dict(model.named_modules())
    lists = [f"{name}." for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    left_out = []
    for key in unexpected:
        if TABLES.search(key):
            continue
        base = f"{model.base_model_prefix}."
        for name in {key, base + key, key.removeprefix(base)}:
            module = modules.get(name.rpartition(".")[0])
            has_weights = module is not None and any(True for _ in module.parameters(recurse=False))
            if has_weights or name.startswith(tuple(lists)):
                left_out.append(key)
                break
    if left_out:
        raise ValueError(f"{len(left_out)} tensors of the checkpoint do not belong to a {type(model).__name__} by its "
                         f"config.json: {first_names(left_out)}{_reason(model, set(), left_out)}")  # fmt: skip
    if unexpected:
        logger.info("%d tensors of the checkpoint are not used: %s", len(unexpected), first_names(unexpected))


def _reason(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> str:
    """The probable cause, as the end of an error message; empty where none is known."""
    parts = {part for key in unexpected for part in key.split(".")}
    for wrapper, maker in WRAPPERS.items():
        if wrapper in parts:
            example = next(key for key in unexpected if wrapper in key.split("."))
            return f"; it has names such as {example}, saved with the wrapper of {maker}: save the model inside it"
    if any(part.startswith("lora_") or part == "base_layer" for part in parts):
        return "; it holds an adapter's tensors beside the model's: merge them before saving"
    if quantized := [key for key in unexpected if key.rpartition(".")[2] in QUANTIZED]:
        return f"; it holds quantized tensors ({quantized[0]}): give the dense model that it was made from"
    if counted := _other_number_of_layers(model, missing, unexpected):
        return f"; {counted}"
    for key in missing:
        if longer := next((other for other in unexpected if other.endswith(f".{key}")), None):
            return f"; it has {longer} instead: its names begin with {longer.removesuffix(key)}"
    if unexpected and missing:
        return f"; it has {first_names(sorted(unexpected))} instead"
    head = model.get_output_embeddings()
    if head is not None and {id(model.get_parameter(key)) for key in missing if _is_parameter(model, key)} == {
        id(head.weight)
    }:
        return "; it is a base model without its output head, or tie_word_embeddings of config.json is wrong"
    return ""


def _is_parameter(model: PreTrainedModel, key: str) -> bool:
    return any(key == name for name, _ in model.named_parameters(remove_duplicate=False))


def _other_number_of_layers(model: PreTrainedModel, missing: Collection[str], unexpected: Collection[str]) -> str:
    """A text with both numbers of layers, where the config has more or fewer than the checkpoint; else empty."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        absent = [
            index for index, layer in enumerate(module)
            if (keys := [f"{name}.{index}.{key}" for key, _ in layer.named_parameters()]) and missing and
            all(key in missing for key in keys)
        ]  # fmt: skip
        stored = len(module) - len(absent)
        if absent and stored and absent == list(range(stored, len(module))):
            return f"config.json has {len(module)} layers ({name}), the checkpoint {stored}"
        inner = name.removeprefix(f"{model.base_model_prefix}.")
        layer = re.compile(rf"(?:^|\.){re.escape(inner)}\.(\d+)\.")
        beyond = [int(match[1]) for key in unexpected if (match := layer.search(key))]
        if beyond and min(beyond) >= len(module):
            return f"config.json has {len(module)} layers ({name}), the checkpoint {max(beyond) + 1}"
    return ""


def first_names(names: Collection[str]) -> str:
    """The first NAMED names as a text, with the number of all where there are more."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f", … ({len(names)} in all)" if len(names) > NAMED else "")


def check_finite(model: nn.Module) -> None:
    """Raises ValueError where a weight is NaN or infinite, as in a damaged file or above float16's largest number."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        # aminmax gives NaN where there is one, in a fortieth of the time of isfinite() of every weight
        if parameter.numel() and not all(extreme.isfinite() for extreme in torch.aminmax(parameter.detach())):
            count = parameter.numel() - int(parameter.isfinite().sum())
            raise ValueError(f"{name} holds {count} NaN or infinite weights as {parameter.dtype}")
