"""A model that was compressed elsewhere, loaded in the place of the dense one, and what it is beside its parent."""

import gc
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from harness.errors import describe_error, first_line
from harness.loading_report import check_finite
from harness.models import configured_length, load_pretrained, load_tokenizer, refuse_unknown_ids
from llm_tasks.checkpoints import checkpoint_files
from llm_tasks.checkpoints.checkpoint_files import ADAPTER, GGUF, Checkpoint, refusal
from llm_tasks.checkpoints.dequantized import PLAIN_KERNELS, dequantize, with_plain_kernel
from llm_tasks.compressed_model import ModelSource, generation_config, load_model, placement
from llm_tasks.engine.encoding import EncodedLevel
from llm_tasks.engine.proof import REFUSALS
from llm_tasks.engine.ways import ANSWER_WAYS, PLAIN, Ways
from llm_tasks.evaluation import engine_ways
from llm_tasks.recovery.recovered import recovered_from
from pruning.layer_choice import block_indices
from pruning.layers import decoder_weights
from pruning.masks import zero_fraction

logger = logging.getLogger(__name__)

BYTES = "bytes"  # what the strength of a checkpoint is a share of


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose files were looked at beside its parent's.

    Attributes:
        facts: what results record of it: checkpoint, checkpoint_kind, checkpoint_bytes, parent_bytes,
            decoder_bytes_fraction, checkpoint_differences, strength, the share of the parent's bytes, and where
            recover.py wrote it recovered_from.
        longest: tokens that it takes at once by its own config; None where it is the parent's.
    """

    files: Checkpoint
    facts: Mapping[str, Any]
    longest: int | None

    @property
    def name(self) -> str:
        return self.files.name


def open_all(names: Iterable[str], parent: PreTrainedModel, source: ModelSource) -> dict[str, Opened]:
    """The checkpoints by name, each looked at; nothing is loaded.

    Args:
        parent: without weights.
        source: of the parent.
    Raises:
        ValueError: a checkpoint that cannot be read, or is not one of this parent (names it and the reason).
    """
    return {name: open_one(name, parent, source) for name in dict.fromkeys(names)}


def open_one(name: str, parent: PreTrainedModel, source: ModelSource) -> Opened:
    """See open_all."""
    files = checkpoint_files.open_checkpoint(name, source.trust_remote_code)
    if files.weights == "bin" and source.weights != "bin":
        told = f"its weights are in {files.files[0].name}; save it as safetensors, or read such files by --weights bin"
        raise refusal(name, f"{told}, which reads the parent so too")
    checkpoint_files.check_installed(files)
    own = checkpoint_files.own_config(files, source.trust_remote_code)
    differences = checkpoint_files.check_parent(files, own, parent.config)
    for entry, told in differences.items():
        logger.warning("--checkpoint %s: its %s is %s", name, entry, told)
    weights = decoder_weights(parent)
    parent_bytes = checkpoint_files.total_bytes(
        checkpoint_files.parent_files(source.name, source.weights, source.revision)
    )
    own_bytes = checkpoint_files.total_bytes(files.files) + (parent_bytes if files.kind == ADAPTER else 0)
    blocks = {key.rpartition(".")[0]: block for key, block in block_indices(parent).items()}
    stored = checkpoint_files.stored_bytes(files, blocks, names_in_model(parent))
    dense = 2 * sum(weight.matrix.numel() for weight in weights.values())
    facts = {
        "checkpoint": checkpoint_files.safe_label(name),
        "checkpoint_kind": files.kind,
        "checkpoint_bytes": own_bytes,
        "parent_bytes": parent_bytes,
        "decoder_bytes_fraction": None if stored is None else stored / dense,
        "checkpoint_differences": differences,
        "strength": round(own_bytes / parent_bytes, 6),
    }
    if origin := recovered_from(name):
        facts["recovered_from"] = origin
    longest = None if own is None else configured_length(own)
    return Opened(files, facts, longest)


def names_in_model(model: PreTrainedModel) -> Callable[[str], str]:
    """A function from the name of a tensor in files to its name in the model, as from_pretrained loads it.

    Mixtures of experts keep in their files the names that they were published with.

    Args:
        model: may be without weights.
    """
    known, conversions = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]

    def name_in_model(key: str) -> str:
        if key in known:
            return key
        return rename_source_key(key, renamings, converters, model.base_model_prefix, known)[0]

    return name_in_model


def check_pending(
    opened: Sequence[Opened], tokenizer: PreTrainedTokenizerBase, texts: Iterable[Any], trust_remote_code: bool
) -> None:
    """Refuse checkpoints that cannot be measured on what their parent is measured on.

    Args:
        opened: those whose runs are to be computed; one may be there several times.
        tokenizer: the parent's.
        texts: of every setting, its levels by seed, or windows of tokens.
    Raises:
        ValueError: another tokenizer (names the first difference), or a text is longer than a checkpoint takes.
    """
    longest = max(map(longest_text, texts), default=0)
    for checkpoint in {own.name: own for own in opened}.values():
        checkpoint_files.check_tokenizer(
            checkpoint.files, tokenizer, lambda folder: load_tokenizer(folder, trust_remote_code)
        )
        if checkpoint.longest is not None and checkpoint.longest < longest:
            raise refusal(
                checkpoint.name, f"it takes {checkpoint.longest} tokens, the longest text to measure on has {longest}"
            )


def longest_text(texts: Any) -> int:
    """Tokens of the longest prompt with its option, of levels by seed, or of a window."""
    if isinstance(texts, Tensor):
        return texts.shape[-1]
    levels = [level for own in texts.values() for level in own]
    options = (len(one.tokens) for level in levels for own in level.continuations for one in own)
    contexts = (len(context) for level in levels for context in level.contexts)
    return max([*options, *contexts], default=0)


def in_memory(
    kept: dict[str, tuple[PreTrainedModel, dict[str, Any]]], opened: Opened, source: ModelSource,
    parent: PreTrainedModel, tokenizer: PreTrainedTokenizerBase,
) -> tuple[PreTrainedModel, dict[str, Any]]:  # fmt: skip
    """Return a checkpoint's model and what results record of it; load it unless it was the last one.

    Args:
        kept: the checkpoint that was loaded last, by name; where another is loaded, it is replaced in place.
        parent: without weights.
        tokenizer: the parent's.
    """
    if opened.name not in kept:
        kept.clear()
        gc.collect()
        model = load(opened, source, parent.config)
        refuse_unknown_ids(model, tokenizer)
        kept[opened.name] = model, {**facts_of(opened, model, decoder_weights(parent)), "compress_seconds": None}
    return kept[opened.name]


def load(opened: Opened, source: ModelSource, parent: PretrainedConfig) -> PreTrainedModel:
    """The checkpoint's model, in the dtype of the parent's unless its kind computes in another.

    It ends its answers as the parent does.

    Raises:
        ValueError: it is not whole, or its weights cannot be read.
    """
    checkpoint, dtype = opened.files, source.dtype_of(parent)
    try:
        if checkpoint.kind == ADAPTER:
            model = _merged(checkpoint, source)
        elif checkpoint.kind == GGUF:
            model, loading = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder, gguf_file=checkpoint.gguf_file, quantization_config=GgufConfig(dequantize=True),
                dtype=dtype, device_map=source.device_map or placement(source), output_loading_info=True,
            )  # fmt: skip
            if missing := sorted(set(loading["missing_keys"]) - _tied(model)):
                raise ValueError(f"{len(missing)} weights are missing in the file: {', '.join(missing[:3])}")
            check_finite(model)
        else:
            packed = checkpoint.kind in PLAIN_KERNELS and not source.on_accelerator
            own = checkpoint_files.own_config(checkpoint, source.trust_remote_code) if packed else None
            model, _ = load_pretrained(
                str(checkpoint.folder), AutoModelForCausalLM, dtype, weights=checkpoint.weights,
                config=own and with_plain_kernel(own, checkpoint.kind),
                trust_remote_code=source.trust_remote_code, device_map=source.device_map or placement(source),
            )  # fmt: skip
            if packed:
                dequantize(model, dtype)
            unpack(model)
    except (*REFUSALS, ImportError, OSError) as error:
        reason = first_line(error).removeprefix(f"--model_name_or_path {checkpoint.folder}: ")
        raise refusal(opened.name, reason) from error
    if model.dtype != dtype:
        logger.warning("--checkpoint %s computes in %s, the parent in %s", opened.name, model.dtype, dtype)
    model.generation_config = generation_config(source, parent)  # says how answers are chosen and where they end
    return model.eval().requires_grad_(False)


@torch.no_grad()
def unpack(model: PreTrainedModel) -> None:
    """Feed one token: compressed-tensors unpacks its weights in the first forward pass."""
    model.eval()(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)


def _tied(model: PreTrainedModel) -> set[str]:
    """The names of an output layer that is the embedding."""
    output = model.get_output_embeddings()
    if output is None or output.weight is not model.get_input_embeddings().weight:
        return set()
    return {f"{name}.weight" for name, module in model.named_modules() if module is output}


def _merged(checkpoint: Checkpoint, source: ModelSource) -> PreTrainedModel:
    """The parent with the adapter added to its weights."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    adapted = PeftModel.from_pretrained(load_model(source), checkpoint.folder)
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(f"an adapter of kind {adapted.active_peft_config.peft_type} cannot be merged into the parent")
    if checkpoint.weights == "safetensors":
        wanted, stored = set(get_peft_model_state_dict(adapted)), set(load_file(checkpoint.files[0]))
        if wanted != stored:
            lacking = sorted(wanted ^ stored)
            raise ValueError(f"{len(lacking)} tensors of the adapter and of the parent's layers do not match: "
                             f"{', '.join(lacking[:3])}")  # fmt: skip
    return adapted.merge_and_unload()


def ways_of(
    model: PreTrainedModel, levels: Sequence[EncodedLevel], plain: bool, dense: tuple[Ways, Ways] | None
) -> tuple[Ways, Ways]:
    """The engine's fast paths for scores and for answers that are proven on a checkpoint, and on its parent.

    A quantized model has other layers than its parent, which may not bear a path. A broken one may bear a wrong path.

    Args:
        dense: what was proven on the parent; None where it was not loaded.
    """
    try:
        own = engine_ways(model, levels, plain)
    except REFUSALS as error:
        reason = describe_error(error)
        logger.info("engine: one sequence at a time: the checkpoint's layers bear no trial: %s", reason)
        return PLAIN, PLAIN
    return own if dense is None else (both(own[0], dense[0]), both(own[1], dense[1]))


def both(one: Ways, other: Ways) -> Ways:
    """The paths that are right on two models."""
    shared = {name: here and there for name, here, there in zip(Ways._fields, one, other, strict=True)}
    compiles = tuple(name for name in one.compiles if name in other.compiles)
    answers = max(one.answers, other.answers, key=ANSWER_WAYS.index)  # the slower one
    return Ways(**(shared | {"compiles": compiles, "answers": answers}))


def facts_of(opened: Opened, model: PreTrainedModel, names: Collection[str]) -> dict[str, Any]:
    """What results record of a checkpoint: of its files, and the fraction of its decoder weights that is zero.

    Args:
        names: of the parent's decoder weights.
    """
    zeros = total = 0.0
    try:
        for matrix in matrices(model, names):
            zeros += zero_fraction([matrix]) * matrix.numel()
            total += matrix.numel()
    except REFUSALS as error:
        reason = describe_error(error)
        logger.warning("--checkpoint %s: its sparsity cannot be measured: %s", opened.name, reason)
        total = 0.0
    return {**opened.facts, "measured_sparsity": zeros / total if total else None, "strength_kind": BYTES}


def matrices(model: PreTrainedModel, names: Collection[str]) -> Iterator[Tensor]:
    """The decoder weights that a checkpoint computes with, (out_features, in_features) each, one at a time.

    A quantized layer without a weight to look at gives it by its outputs for unit vectors.

    Args:
        names: of the parent's decoder weights; those of blocks that the checkpoint lacks are left out.
    Raises:
        ValueError: a weight has no values to look at, or none of the parent's layers is there.
    """
    modules = dict(model.named_modules())
    known = {key: modules[key.rpartition(".")[0]] for key in names if key.rpartition(".")[0] in modules}
    if not known:  # other names
        yield from (weight.matrix for weight in decoder_weights(model).values())
    for key, module in known.items():
        attribute, _, expert = key.rpartition(".")[2].removesuffix("]").partition("[")
        weight = getattr(module, attribute, None)
        if isinstance(weight, Tensor) and weight.dim() == (3 if expert else 2) and weight.dtype in FLOATS:
            yield weight[int(expert)] if expert else weight
        elif hasattr(module, "in_features") and not expert:
            yield by_unit_vectors(module, model.dtype)
        else:
            raise ValueError(f"{key} is stored in {type(module).__name__} without values to look at")


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@torch.no_grad()
def by_unit_vectors(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weight of a linear layer by its outputs, (out_features, in_features), in float32.

    The bias is zero meanwhile: in 16 bits, small weights vanish beside it.

    Raises:
        ValueError: it adds something else to its outputs.
    """
    tensors = [*module.parameters(), *module.buffers()]
    inputs = torch.eye(module.in_features, dtype=dtype, device=tensors[0].device)
    bias = getattr(module, "bias", None)
    kept = None if bias is None else bias.clone()
    try:
        if bias is not None:
            bias.zero_()
        outputs, offset = module(inputs), module(torch.zeros_like(inputs[:1]))
    finally:
        if bias is not None:
            bias.copy_(kept)
    if offset.any():
        raise ValueError(f"{type(module).__name__} adds more than a bias to its outputs")
    return outputs.float().T
