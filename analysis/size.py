"""How much of a model is left or gone: one axis for sparsity, N:M, bits and ranks.

The weights that count are those that are compressed: the linear ones of the decoder blocks. Embeddings and norms stay
as they are in every method. A dense weight takes 16 bits.
"""

import math
from pathlib import Path
from typing import Any

from harness import run_folder

DENSE_BITS = 16
SCALE_BITS = 16  # of a group that shares a scale; its zero point takes as many bits as a weight


def bytes_fraction(row: dict[str, Any], arguments: dict[str, Any] | None = None) -> float | None:
    """Bytes of the compressed weights, with their indices and scales, over those of the dense weights.

    Args:
        row: a run's, or a point of a table: strength_kind, strength, requested_sparsity, and measured_sparsity and
            parameter_ratio where they are known.
        arguments: of the run (args.json), where it has bits: group_size and symmetric.
    Returns:
        1 for the dense model, at most 1 for a pruned one (stored dense where that is smaller); None where the run lacks
        what is needed.
        sparsity s: 1 - s of the values and a bitmap of one bit per weight.
        N:M: N / M of the values, each with its index in the group (log2 M bits rounded up: 2 bits at 2:4, as in
        NVIDIA's sparse tensor cores), or the bitmap where that is smaller.
        bits: bits per weight and, per group_size weights, a scale of 16 bits and a zero point of `bits` (none with
        symmetric); a shorter last group of a row counts by its length. With a scale per row (group_size -1) the size is
        not known from the run.
        rank: parameters of the two factors over those of the matrix, which is stored dense where they are more.
    """
    kind = row["strength_kind"]
    if kind is None:
        return 1.0
    if kind == "rank":
        return row.get("parameter_ratio")
    if kind == "bits":
        return _quantized(row["strength"], arguments or {})
    if kind == "nm":
        kept, group = map(int, row["strength"].split(":"))
        return _pruned(kept / group, kept / group * math.ceil(math.log2(group)))
    measured = row.get("measured_sparsity")
    return _pruned(1 - (row["requested_sparsity"] if measured is None else measured), 1.0)


def plain_fraction(row: dict[str, Any]) -> float | None:
    """The share of the dense weights that a strength names, without indices and scales.

    Args:
        row: as in bytes_fraction.
    Returns:
        1 - sparsity, N / M, bits / 16, or the share of the parameters that a low rank has; 1 for the dense model; None
        where the run lacks what is needed.
    """
    kind = row["strength_kind"]
    if kind == "rank":
        return row.get("parameter_ratio")
    if kind == "bits":
        return row["strength"] / DENSE_BITS
    measured = row.get("measured_sparsity")
    return 1.0 - (row["requested_sparsity"] if kind == "nm" or measured is None else measured)


def _pruned(kept: float, index_bits: float) -> float:
    """The fraction for `kept` of the weights and `index_bits` for each weight, kept or not, at most a bitmap's."""
    return min(1.0, kept + min(index_bits, 1.0) / DENSE_BITS)


def _quantized(bits: int, arguments: dict[str, Any]) -> float | None:
    group_size, symmetric = arguments.get("group_size"), arguments.get("symmetric")
    if group_size is None or symmetric is None or group_size < 1:
        return None
    of_group = SCALE_BITS + (0 if symmetric else bits)
    return (bits + of_group / group_size) / DENSE_BITS


def bytes_fraction_of_run(row: dict[str, Any]) -> float | None:
    """bytes_fraction of a row of run_folder.read_runs; the run's folder tells the group size of bits."""
    arguments = run_folder.recorded_arguments(Path(row["folder"])) if row["strength_kind"] == "bits" else None
    return bytes_fraction(row, arguments)


def amount(point: dict[str, Any]) -> float | None:
    """How much of the weights is gone: sparsity, 1 - N/M, 1 - bits/16, or the share of parameters that a rank saves."""
    if point["strength_kind"] == "bits":
        return 1 - point["strength"] / DENSE_BITS
    if point["strength_kind"] == "rank":
        return None if point["parameter_ratio"] is None else 1 - point["parameter_ratio"]
    return point["requested_sparsity"]
