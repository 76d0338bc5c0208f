"""Sizes of compressed weights: what a strength removes, and the bytes that are left with indices and scales.

A row is a run's, or a point's of a table: it has strength_kind, strength and requested_sparsity, and measured_sparsity
and parameter_ratio where they are known. Sizes are shares of the dense weights in 16 bits.
"""

import math
from pathlib import Path
from typing import Any

from harness import run_folder

DENSE_BITS = 16
SCALE_BITS = 16  # of a group that shares a scale; its zero point takes as many bits as a weight
NM_PAIR = "nm+bits"
PAIRS = ("sparsity+bits", NM_PAIR)  # kinds of strength of two compressions: of what prunes, and of what then quantizes

Row = dict[str, Any]


def parts_of(point: Row) -> list[Row]:
    """A point as one for each of its compressions: itself, or of PAIRS the one that prunes and the one that quantizes.

    The measured sparsity of a pair is of neither: rounding makes zeros too.
    """
    kind, strength = point["strength_kind"], point["strength"]
    if kind not in PAIRS:
        return [point]
    pruning, quantization = strength.split("+")
    own = {**point, "measured_sparsity": None}
    return [
        {**own, "strength_kind": kind.partition("+")[0], "strength": pruning if kind == NM_PAIR else float(pruning)},
        {**own, "strength_kind": "bits", "strength": int(quantization), "requested_sparsity": 0.0},
    ]


def amount(point: Row) -> float | None:
    """How much is gone: sparsity, 1 - N/M, 1 - bits/16, of the parameters by a rank, of the bytes in a checkpoint.

    Of two compressions in a row it is what both together leave of the bits: 1 - (1 - sparsity) * bits / 16.
    """
    if point["strength_kind"] in PAIRS:
        return 1 - plain_fraction(point)
    if point["strength_kind"] in ("bits", "bytes"):
        return 1 - point["strength"] / (DENSE_BITS if point["strength_kind"] == "bits" else 1)
    if point["strength_kind"] == "rank":
        return None if point["parameter_ratio"] is None else 1 - point["parameter_ratio"]
    return point["requested_sparsity"]


def plain_fraction(row: Row) -> float | None:
    """The share of the dense weights that a strength names, without indices and scales.

    Args:
        row: as in bytes_fraction.
    Returns:
        1 - sparsity, N / M, bits / 16, or the share of the parameters that a low rank has; of two compressions in a row
        the shares multiplied; 1 for the dense model; None for a checkpoint, and where the run lacks what is needed.
    """
    kind = row["strength_kind"]
    if kind in PAIRS:
        return math.prod(plain_fraction(part) for part in parts_of(row))
    if kind in ("rank", "bits", "bytes"):
        return {"rank": row.get("parameter_ratio"), "bits": row["strength"] / DENSE_BITS, "bytes": None}[kind]
    measured = row.get("measured_sparsity")
    return 1.0 - (row["requested_sparsity"] if kind == "nm" or measured is None else measured)


def bytes_fraction(row: Row, arguments: Row | None = None) -> float | None:
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
        two in a row: the bits of the weights that pruning was asked to keep, its indices as above, and the scales and
        zero points of all groups. Without indices, where the integers of all weights are smaller: 0 is one of them.
        bytes: those that a checkpoint's files take for the decoder weights; None where the files do not tell.
    """
    kind = row["strength_kind"]
    if kind is None:
        return 1.0
    if kind in ("rank", "bytes"):
        return row.get("parameter_ratio" if kind == "rank" else "decoder_bytes_fraction")
    if kind == "bits":
        return _quantized(row["strength"], arguments or {})
    if kind in PAIRS:
        pruning, quantization = parts_of(row)
        quantized, bits = _quantized(quantization["strength"], arguments or {}), quantization["strength"]
        if quantized is None:
            return None
        kept, index_bits = _kept(pruning)
        return quantized - bits / DENSE_BITS + min(kept * bits + index_bits, bits) / DENSE_BITS
    kept, index_bits = _kept(row)
    return min(1.0, kept + index_bits / DENSE_BITS)


def _kept(row: Row) -> tuple[float, float]:
    """Share of the weights that pruning keeps, and bits per weight that say which; at most one, a bitmap's."""
    if row["strength_kind"] == "nm":
        kept, group = map(int, row["strength"].split(":"))
        return kept / group, min(1.0, kept / group * math.ceil(math.log2(group)))
    measured = row.get("measured_sparsity")
    return 1 - (row["requested_sparsity"] if measured is None else measured), 1.0


def bytes_fraction_of_run(row: Row) -> float | None:
    """bytes_fraction of a row of run_folder.read_runs, whose folder tells the group size; None of some layers alone."""
    if row.get("layers") and row["strength_kind"] != "sparsity":
        return None
    arguments = run_folder.recorded_arguments(Path(row["folder"])) if has_bits(row) else None
    return bytes_fraction(row, arguments)


def has_bits(row: Row) -> bool:
    """Whether the weights are quantized, whatever was done before."""
    return row["strength_kind"] == "bits" or row["strength_kind"] in PAIRS


def _quantized(bits: int, arguments: Row) -> float | None:
    group_size, symmetric = arguments.get("group_size"), arguments.get("symmetric")
    if group_size is None or symmetric is None or group_size < 1:
        return None
    of_group = SCALE_BITS + (0 if symmetric else bits)
    return (bits + of_group / group_size) / DENSE_BITS
