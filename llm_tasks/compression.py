"""A language model, compressed as a cell says: in memory or block by block from its files, and written to a folder."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from harness import records
from harness.cells import Cell
from harness.models import load_pretrained, save_model
from harness.progress import Progress
from llm_tasks import arguments
from llm_tasks.arguments import DENSE, device_of, is_quantized, precision_of, strength_of, tokens_per_batch_of
from llm_tasks.engine.processes import ALONE, Processes
from llm_tasks.methods import METHODS, Options, Strength
from pruning.layers import decoder_weights
from pruning.low_rank import parameter_ratio
from pruning.magnitude import magnitude_masks
from pruning.masks import apply_masks, zero_fraction
from pruning.streaming import StreamedBlocks, remove_converted
from pruning.validation import all_finite
from pruning.walk import InputStatistics, check_replayed, compress_blocks
from quantization.gptq import Quantized
from quantization.gptqmodel_export import save_packed

STORED_DENSE = "They are stored dense: files are no smaller, inference no faster."
PACKED = "They are stored as packed integers (GPTQ format): GPTQModel.load(folder) of gptqmodel serves them."


def load_model(args: argparse.Namespace) -> PreTrainedModel:
    """The model on its device, or with --device_map on several.

    Raises:
        ValueError: the checkpoint is not whole, or --device_map left weights for the processor or the disk, from where
            they cannot be compressed.
    """
    dtype = "auto" if args.dtype == "auto" else getattr(torch, args.dtype)
    model, _ = load_pretrained(
        args.model_name_or_path, AutoModelForCausalLM, dtype, weights=args.weights, revision=args.revision,
        trust_remote_code=args.trust_remote_code, device_map=args.device_map,
    )  # fmt: skip
    if not hasattr(model, "generation_config"):  # a model's own code that is no GenerationMixin
        model.generation_config = GenerationConfig.from_model_config(model.config)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"--device_map {args.device_map}: the GPUs together do not hold {args.model_name_or_path}; "
            "perplexity.py --stream compresses block by block"
        )
    model = model if args.device_map else model.to(device_of(args))
    return model.eval().requires_grad_(False)


class CompressibleModel:
    """A model in memory whose dense weights come back, in place, before it is compressed again.

    Args:
        keep_dense: hold a copy of the compressible weights; without it the model can be compressed once.
    """

    def __init__(self, model: PreTrainedModel, keep_dense: bool) -> None:
        self.model = model
        self._prepared: dict[tuple[str, str], Any] = {}  # by compression and weight
        self.weights = decoder_weights(model)
        self._dense = {name: weight.matrix.cpu().clone() for name, weight in self.weights.items()} if keep_dense else {}
        self._changed = False
        self._made: tuple[tuple, dict[str, Quantized]] | None = None

    def compress(
        self, cell: Cell, tokens: Tensor | None, args: argparse.Namespace, processes: Processes = ALONE
    ) -> dict[str, Quantized]:
        """Compress the dense model as the cell says, unless it is so already; see walk for what is returned.

        Of several processes the main one does it, needs the tokens and gets what is returned; the others get its
        weights.
        """
        wanted = arguments.compression_of(cell)
        if self._made is None or self._made[0] != wanted:
            self._made = None  # a compression that fails leaves nothing that looks made
            with processes.together():
                grids = self._compress(cell, tokens, args) if processes.is_main else {}
            processes.copy_from_main(weight.matrix for weight in self.weights.values())
            self._made = wanted, grids
        return self._made[1]

    def _compress(self, cell: Cell, tokens: Tensor | None, args: argparse.Namespace) -> dict[str, Quantized]:
        if self._changed:
            if not self._dense:
                raise ValueError("the model is compressed already, and its dense weights were not kept")
            for name, dense in self._dense.items():
                self.weights[name].matrix.copy_(dense)
        self._changed = cell["compression"] != DENSE
        if cell["compression"] == "magnitude" and cell["sparsity"] is not None and args.magnitude_scope == "global":
            matrices = {name: weight.matrix for name, weight in self.weights.items()}
            apply_masks(matrices, magnitude_masks(matrices, [cell["sparsity"]], "global")[0])
        elif strengths := arguments.shared_strengths(args, cell["compression"]):
            self._compress_shared(cell, strengths)
        elif self._changed:
            return walk(self.model, cell, tokens, args)
        return {}

    def _compress_shared(self, cell: Cell, strengths: list[Strength]) -> None:
        """Compress every weight by the method's `shared`, which prepares each once for all `strengths`."""
        compression, strength = cell["compression"], strength_of(cell)
        shared = METHODS[compression].shared
        for name, weight in Progress(self.weights.items(), compression):
            key = compression, name
            try:
                if key not in self._prepared:
                    self._prepared[key] = shared.prepare(weight.matrix, strengths)
                found = shared.compress(weight.matrix, self._prepared[key], strength)
                weight.matrix.copy_(checked(found, weight.matrix))
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def checked(found: Tensor, W: Tensor) -> Tensor:
    """What a method made of W, if it can stand in W's place.

    Raises:
        ValueError: it has another shape, or holds NaN or infinity.
    """
    if not isinstance(found, Tensor) or found.shape != W.shape:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the method returned {kind} for a weight of {tuple(W.shape)}")
    if found.is_floating_point() and not all_finite(found):
        raise ValueError("the method returned NaN or infinity")
    return found


def walk(
    model: PreTrainedModel, cell: Cell, tokens: Tensor | None, args: argparse.Namespace,
    storage: StreamedBlocks | None = None,
) -> dict[str, Quantized]:  # fmt: skip
    """The cell's compression, applied to every weight of the blocks.

    Returns:
        By name, the integers that the weights were made from, where they are exported; else nothing.
    """
    method, strength = METHODS[cell["compression"]], strength_of(cell)
    options = Options(**{name: getattr(args, name) for name in arguments.METHOD_OPTIONS})
    grids: dict[str, Quantized] = {}

    def compress_linear(W: Tensor, inputs: InputStatistics | None, name: str) -> Tensor:
        if not args.export or not is_quantized(cell):
            return checked(method.compress(W, inputs, strength, options), W)
        grids[name] = method.quantize(W, inputs, strength, options)
        return grids[name].dequantize(W.dtype)

    compress_blocks(
        model,
        tokens,
        compress_linear,
        method.statistic,
        true_sequential=args.true_sequential,
        tokens_per_batch=tokens_per_batch_of(args),
        precision=precision_of(args),
        storage=storage,
    )
    return grids


def save_compressed(
    folder: Path,
    loaded: CompressibleModel,
    cell: Cell,
    run_identity: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """<folder>/model: weights, tokenizer and a card that says what was done."""
    save_model(folder / "model", loaded.model, tokenizer, {"README.md": model_card(cell, run_identity)})


def export(
    folder: Path, model: PreTrainedModel, grids: dict[str, Quantized], cell: Cell, run_identity: dict[str, Any],
    args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """<folder>/gptqmodel: the compressed model, its integers packed."""
    card = {"README.md": model_card(cell, run_identity, PACKED)}
    save_packed(folder / args.export, model, grids, cell["bits"], args.group_size, args.symmetric, tokenizer, card)


def stream(
    folder: Path, cell: Cell, args: argparse.Namespace, run_identity: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase, tokens: Tensor | None,
) -> StreamedBlocks:  # fmt: skip
    """Write <folder>/model block by block, going on where a killed job stopped; returns it opened for reading."""
    source, out = Path(args.model_name_or_path), folder / "model"
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    trust = args.trust_remote_code
    remove_converted(folder)
    if cell["compression"] == DENSE:
        return StreamedBlocks(source, None, dtype, trust_remote_code=trust, scratch=folder)
    job = records.recipe(run_identity)
    if StreamedBlocks.is_complete(out, job):
        return StreamedBlocks(out, trust_remote_code=trust, scratch=folder)
    storage = StreamedBlocks(source, out, dtype, job, trust)
    if tokens is None:  # else the walk looks itself
        check_replayed(storage.model, storage, precision_of(args))
    walk(storage.model, cell, tokens, args, storage)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(model_card(cell, run_identity))
    return storage.complete()


def measure(cell: Cell, weights: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """What the compression left: fraction of zeros, and of parameters where weights become two factors."""
    zeros = total = factors = 0
    for _, matrix in weights:
        zeros += zero_fraction([matrix]) * matrix.numel()
        total += matrix.numel()
        if cell["rank"] is not None:
            factors += min(1.0, parameter_ratio(tuple(matrix.shape), cell["rank"])) * matrix.numel()
    return {"measured_sparsity": zeros / total} | ({"parameter_ratio": factors / total} if factors else {})


def model_card(cell: Cell, run_identity: dict[str, Any], stored: str = STORED_DENSE) -> str:
    """README.md of a saved model: from what, by what, with which options."""
    strength = strength_of(cell)
    what = f"{cell['compression']}, {strength.kind} {strength.value}" if strength else "not compressed"
    note = "N weights are kept of every M inputs. " if cell["nm_ratio"] else ""
    options = "\n".join(f"| {name} | {value} |" for name, value in run_identity.items() if value is not None)
    return f"""# {run_identity["model_name_or_path"]}: {what}

Made from the model named above by the experiments of the Junk DNA Hypothesis (Yin et al., ICML 2024). Only the linear
weights inside the decoder blocks were changed. {note}{stored}

| option | value |
|---|---|
{options}
"""
