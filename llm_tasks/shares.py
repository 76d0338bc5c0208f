"""Which weights of a model a cell compresses, and how many of each become zero where sparsity is not spread evenly."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.cells import Cell
from pruning.allocation import (
    OWL,
    OWL_OUTLIERS,
    OWL_RANGE,
    exact_counts,
    file_sparsities,
    outlier_ratio,
    owl_sparsities,
)
from pruning.layer_choice import block_indices, choose_weights, in_one_block, sizes_by_block
from pruning.layers import LinearWeight, decoder_weights
from pruning.walk import InputStatistics

logger = logging.getLogger(__name__)

# From the names of chosen weights, the outlier ratio of each block that holds some.
Ratios = Callable[[list[str]], Mapping[int, float]]
CompressMatrix = Callable[[Tensor, InputStatistics | None, float], Tensor]


class Owl(NamedTuple):
    """OWL's options: M, and lambda (pruning.allocation)."""

    outliers: float
    spread: float


PUBLISHED_OWL = Owl(OWL_OUTLIERS, OWL_RANGE)


def is_owl(cell: Cell) -> bool:
    """Whether the cell's sparsity is allocated by OWL, which reads calibration text whatever the method."""
    return cell.get("allocation_from") == OWL


def chosen_of(cell: Cell, blocks: Mapping[str, int]) -> list[str]:
    """The weights that a cell compresses; `blocks` is layer_choice.block_indices of the model."""
    return choose_weights(blocks, cell.get("only_layers"), cell.get("skip_layers"))


def numels_of(model: PreTrainedModel, names: Iterable[str]) -> dict[str, int]:
    """How many weights each of some matrices has; the model may be without weights."""
    weights = decoder_weights(model)
    return {name: weights[name].matrix.numel() for name in names}


def check_choices(
    model: PreTrainedModel, cells: Iterable[Cell], files: Mapping[str, Mapping[str, float]]
) -> None:  # fmt: skip
    """Refuse choices and allocations that do not fit a model; log where an allocation changes nothing.

    Args:
        model: may be without weights.
        files: by value of --allocation, allocation.read_allocation of it.
    Raises:
        ValueError: names the option, the value and what there is.
    """
    blocks, in_one = block_indices(model), set()
    for cell in cells:
        chosen = chosen_of(cell, blocks)
        if is_owl(cell) and in_one_block(chosen, blocks):
            in_one |= {cell["layers"]}
        if cell.get("allocation_from") in files:
            path, numels = cell["allocation_from"], numels_of(model, chosen)
            file_sparsities(path, files[path], blocks, numels, cell["sparsity"])
    for layers in sorted(in_one):
        logger.warning("--allocation owl: %s is one block's, which gets --sparsity as by uniform", layers)


def zero_counts(
    model: PreTrainedModel, cell: Cell, files: Mapping[str, Mapping[str, float]], owl: Owl, ratios: Ratios
) -> dict[str, int] | None:  # fmt: skip
    """How many weights of each chosen matrix become zero; None where each has the cell's own strength (uniform).

    Args:
        model: may be without weights.
        files: as in check_choices.
        ratios: computes OWL's outlier ratios.
    """
    source = cell.get("allocation_from")
    if source is None:
        return None
    blocks = block_indices(model)
    chosen = chosen_of(cell, blocks)
    numels = numels_of(model, chosen)
    if source == OWL:
        sizes = sizes_by_block(chosen, blocks, numels)
        of_block = owl_sparsities(ratios(chosen), sizes, cell["sparsity"], owl.spread)
        wanted = {name: of_block[blocks[name]] for name in chosen}
    else:
        wanted = file_sparsities(source, files[source], blocks, numels, cell["sparsity"])
    return exact_counts(wanted, numels, round(cell["sparsity"] * sum(numels.values())))


def compress_to_count(
    compress: CompressMatrix, by_row: bool, W: Tensor, inputs: InputStatistics | None, count: int
) -> Tensor:  # fmt: skip
    """A matrix compressed so that exactly `count` of its weights become zero.

    Args:
        compress: the method, from W, its inputs' statistics and a sparsity.
        by_row: the method removes as many weights from each row, whatever the other rows hold: then the first rows
            lose one weight more than the others, as many rows as the count needs.
    """
    rows, columns = W.shape
    each, more = divmod(count, rows)
    if not by_row or not more:
        return compress(W, inputs, count / W.numel())
    parts = (W[:more], (each + 1) / columns), (W[more:], each / columns)
    return torch.cat([compress(part, inputs, sparsity) for part, sparsity in parts])


def block_ratio(
    weights: Iterable[LinearWeight], statistics: Mapping[str, InputStatistics], outliers: float
) -> float:  # fmt: skip
    """allocation.outlier_ratio of some weights of one block."""
    matrices = {weight.name: weight.matrix for weight in weights}
    norms = {name: statistics[name].sq_norms for name in matrices}
    return outlier_ratio(matrices, norms, outliers)


def share_facts(cell: Cell, blocks: Mapping[str, int], counts: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """Which weights were chosen and how sparse these are: what a run records where not all are compressed alike.

    Args:
        blocks: layer_choice.block_indices of the model.
        counts: of each matrix of the decoder blocks by name, its zeros and its weights.
    Returns:
        Nothing for a cell that compresses all weights evenly. Else chosen_sparsity: share of zeros among the chosen
        weights; chosen_weights: how many these are; and, where the sparsity is allocated, block_sparsity: share of
        zeros in each block's chosen weights, by index.
    """
    if cell.get("layers", "all") == "all" and cell.get("allocation_from") is None:
        return {}
    chosen = chosen_of(cell, blocks)
    zeros, sizes = ({name: counts[name][place] for name in chosen} for place in range(2))
    total = sum(sizes.values())
    facts: dict[str, Any] = {"chosen_sparsity": sum(zeros.values()) / total, "chosen_weights": total}
    if cell.get("allocation_from") is not None:
        of_block, in_block = sizes_by_block(chosen, blocks, zeros), sizes_by_block(chosen, blocks, sizes)
        facts["block_sparsity"] = {str(block): of_block[block] / in_block[block] for block in in_block}
    return facts
