"""The weights of a model, compressed as a cell says: one walk over its blocks, and for OWL one before it."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.cells import Cell
from llm_tasks.compressions import is_quantized, method_of, strength_of
from llm_tasks.methods import Options, Strength
from llm_tasks.shares import PUBLISHED_OWL, Owl, Ratios, block_ratio, chosen_of, compress_to_count, zero_counts
from pruning.blocks import BlockStorage
from pruning.layer_choice import block_indices, in_one_block
from pruning.layers import LinearWeight, decoder_weights
from pruning.validation import all_finite
from pruning.walk import InputStatistics, check_statistics, compress_blocks, visit_blocks
from quantization.gptq import Quantized

DenseNorms = Mapping[str, InputStatistics]  # by weight, squared norms of its inputs in the dense model


@dataclass(frozen=True)
class Compression:
    """How compressions are carried out, whatever their name and strength.

    Attributes:
        options: of the methods.
        magnitude_scope: one of pruning.magnitude.SCOPES.
        true_sequential: new statistics after each group of layers inside a block.
        export: "gptqmodel" keeps the integers of quantized weights and packs them.
        shared: by compression, the strengths for which it prepares every weight once.
        tokens_per_batch: calibration tokens computed at once.
        precision: "bf16" multiplies a float32 model's matrices in bf16.
        activations: device that holds the hidden states of all calibration windows; None: the model's.
        owl: options of --allocation owl.
        allocation_files: by value of --allocation, the sparsities of its file.
    """

    options: Options
    magnitude_scope: str
    true_sequential: bool
    export: str | None
    shared: Mapping[str, Sequence[Strength]]
    tokens_per_batch: int
    precision: str
    activations: torch.device | None = None
    owl: Owl = PUBLISHED_OWL
    allocation_files: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def checked(found: Tensor, W: Tensor) -> Tensor:
    """The weight that a method made, if it can replace W: it has W's shape and only finite values.

    Raises:
        ValueError: it has another shape, or holds NaN or infinity.
    """
    if not isinstance(found, Tensor) or found.shape != W.shape:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"the method returned {kind} for a weight of {tuple(W.shape)}")
    if found.is_floating_point() and not all_finite(found):
        raise ValueError("the method returned NaN or infinity")
    return found


def dense_norms(
    model: PreTrainedModel, tokens: Tensor, how: Compression, storage: BlockStorage | None = None
) -> DenseNorms:
    """Squared norms of the inputs of every weight, of a model that is still dense, on the calibration windows.

    There are none of a weight that no window reached, which some cells do not compress: readers call check_statistics.
    """
    found: dict[str, InputStatistics] = {}
    visit_dense(model, tokens, how, storage, lambda index, weights, statistics: found.update(statistics))
    return found


def visit_dense(
    model: PreTrainedModel, tokens: Tensor, how: Compression, storage: BlockStorage | None,
    visit: Callable[[int, list[LinearWeight], DenseNorms], None], chosen: Collection[str] | None = None,
) -> None:  # fmt: skip
    """pruning.walk.visit_blocks with squared norms, as `how` says."""
    visit_blocks(
        model, tokens, visit, "sq_norms", tokens_per_batch=how.tokens_per_batch, precision=how.precision,
        storage=storage, activations=how.activations, chosen=chosen,
    )  # fmt: skip


def reads_dense_norms(compression: str, how: Compression, chosen: Sequence[str], blocks: Mapping[str, int]) -> bool:
    """Whether the squared input norms that a compression reads are those of the dense model.

    They are where it compresses weights of one block alone, and no group of them before another (true_sequential).

    Args:
        chosen: names of the weights that it compresses.
        blocks: block_indices of the model.
    """
    return method_of(compression).statistic == "sq_norms" and not how.true_sequential and in_one_block(chosen, blocks)


def compress_weights(
    model: PreTrainedModel,
    cell: Cell,
    tokens: Tensor | None,
    how: Compression,
    storage: BlockStorage | None = None,
    norms: DenseNorms = MappingProxyType({}),
    ratios: Ratios | None = None,
) -> dict[str, Quantized]:
    """Apply the cell's compression to the weights of the blocks that it chooses.

    Args:
        tokens: calibration windows, where the compression or its allocation reads them.
        storage: holds the blocks of a model that is not in memory.
        norms: of the dense model, where they are known; a compression that reads_dense_norms takes them from here.
        ratios: computes OWL's outlier ratios of a model that is not in memory.
    Returns:
        By name, the integers that the weights were made from, where they are exported; else nothing.
    """
    method, strength, blocks = method_of(cell["compression"]), strength_of(cell), block_indices(model)
    chosen, grids = chosen_of(cell, blocks), {}

    in_memory = functools.partial(outlier_ratios, model, tokens, how, norms=norms)
    counts = zero_counts(model, cell, how.allocation_files, how.owl, ratios or in_memory)

    def of_sparsity(W: Tensor, inputs: InputStatistics | None, sparsity: float) -> Tensor:
        return method.compress(W, inputs, Strength("sparsity", sparsity), how.options)

    def compress_linear(W: Tensor, inputs: InputStatistics | None, name: str) -> Tensor:
        if counts is not None:
            return checked(compress_to_count(of_sparsity, method.by_row, W, inputs, counts[name]), W)
        if not how.export or not is_quantized(cell):
            return checked(method.compress(W, inputs, strength, how.options), W)
        grid = method.quantize(W, inputs, strength, how.options)
        grids[name] = Quantized(*(part.cpu() for part in grid))  # of the whole model: not on the device
        return grid.dequantize(W.dtype)

    if norms and reads_dense_norms(cell["compression"], how, chosen, blocks):
        weights = decoder_weights(model)
        check_statistics([weights[name] for name in chosen], norms)
        compress_blocks(
            model, None, lambda W, _, name: compress_linear(W, norms[name], name), storage=storage, chosen=chosen
        )
        return grids
    compress_blocks(
        model, tokens, compress_linear, method.statistic, true_sequential=how.true_sequential,
        tokens_per_batch=how.tokens_per_batch, precision=how.precision, storage=storage, activations=how.activations,
        chosen=chosen,
    )  # fmt: skip
    return grids


def outlier_ratios(
    model: PreTrainedModel, tokens: Tensor, how: Compression, names: Sequence[str],
    storage: BlockStorage | None = None, norms: DenseNorms = MappingProxyType({}),
) -> dict[int, float]:  # fmt: skip
    """OWL's outlier ratio of each block that holds one of these weights, over these weights of it.

    Args:
        storage: holds the dense blocks of a model that is not in memory.
        norms: of the dense model, where they are known; else the windows are walked through it.
    """
    found = {}

    def visit(index: int, weights: list[LinearWeight], statistics: DenseNorms) -> None:
        check_statistics(weights, statistics)
        found[index] = block_ratio(weights, statistics, how.owl.outliers)

    if norms:
        weights, blocks = decoder_weights(model), block_indices(model)
        for index in dict.fromkeys(blocks[name] for name in names):
            visit(index, [weights[name] for name in names if blocks[name] == index], norms)
    else:
        visit_dense(model, tokens, how, storage, visit, set(names))
    return found
