"""What a cell's compression is, by its name: a method of METHODS, or two of them, such as sparsegpt+gptq.

Of two the first prunes and the second quantizes what is left, weight by weight in the same walk: both read the same
statistics, those of the inputs that the blocks before, already pruned and quantized, produce. What the first pruned is
exactly 0 in the end.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.cells import Cell
from llm_tasks.methods import CHECKPOINT, DENSE, METHODS, SPARSITIES, STRENGTHS, Method, Options, Strength, dequantized
from llm_tasks.shares import is_owl
from pruning.walk import InputStatistics
from quantization.gptq import Quantized, with_zeros

JOINED = "+"


class PairStrength(NamedTuple):
    """The strengths of two compressions that follow each other; read as a Strength is."""

    pruning: Strength
    quantization: Strength

    @property
    def kind(self) -> str:
        """sparsity+bits or nm_ratio+bits."""
        return JOINED.join(strength.kind for strength in self)

    @property
    def value(self) -> str:
        """As results hold it: 0.5+4 or 2:4+4."""
        return JOINED.join(f"{part.value:g}" if part.kind != "nm_ratio" else part.value for part in self)

    @property
    def label(self) -> str:
        """As folders and tables name it: 0.5+4bit, 2of4+4bit."""
        return JOINED.join(strength.label for strength in self)

    @property
    def requested_sparsity(self) -> float:
        """Fraction of the weights that shall be pruned; rounding may make more of them 0."""
        return self.pruning.requested_sparsity


def parts(compressions: Iterable[str]) -> list[str]:
    """The methods that compressions consist of, each once; DENSE and CHECKPOINT are none."""
    names = (part for name in compressions for part in ([name] if name in METHODS else name.split(JOINED)))
    return [name for name in dict.fromkeys(names) if name not in (DENSE, CHECKPOINT)]


def method_of(compression: str) -> Method | None:
    """The method of this name, be it made of two; None for the dense model and for a checkpoint.

    Raises:
        ValueError: see check_compression.
    """
    check_compression(compression)
    if compression in (DENSE, CHECKPOINT):
        return None
    return METHODS[compression] if compression in METHODS else pair(*(METHODS[name] for name in parts([compression])))


def prunes(method: Method) -> bool:
    return set(method.strengths) <= set(SPARSITIES)


def quantizes(method: Method) -> bool:
    return method.strengths == ("bits",)


def check_compression(compression: str) -> str:
    """The name, if it is dense, checkpoint, a method's or of two that may follow each other; an argparse type too.

    Raises:
        ValueError: says what is allowed.
    """
    if compression in (DENSE, CHECKPOINT, *METHODS):
        return compression
    pruning = [name for name, method in METHODS.items() if prunes(method)]
    quantizing = [name for name, method in METHODS.items() if quantizes(method)]
    allowed = f"one that prunes ({', '.join(pruning)}), then one that quantizes ({', '.join(quantizing)})"
    names = compression.split(JOINED)
    if len(names) == 1:
        raise ValueError(
            f"invalid choice: {compression!r} (choose from {', '.join((DENSE, *METHODS, CHECKPOINT))}; or two joined "
            f"by {JOINED}: {allowed})"
        )
    if len(names) > 2:
        raise ValueError(f"{compression}: two may follow each other, not {len(names)}: {allowed}")
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"{compression}: {unknown[0]!r} is no method; allowed: {allowed}")
    first, second = (METHODS[name] for name in names)
    if prunes(first) and quantizes(second):
        _statistic(compression, first, second)
        return compression
    if quantizes(first) and prunes(second):
        raise ValueError(f"{compression}: what is pruned first keeps its zeros: {JOINED.join(reversed(names))}")
    if prunes(first) and prunes(second):
        raise ValueError(f"{compression}: both prune; allowed: {allowed}")
    if quantizes(first) and quantizes(second):
        raise ValueError(f"{compression}: both quantize; allowed: {allowed}")
    other = names[0] if not prunes(first) else names[1]
    raise ValueError(f"{compression}: {other} takes {' and '.join(METHODS[other].strengths)}; allowed: {allowed}")


def _statistic(compression: str, first: Method, second: Method) -> str | None:
    """The statistic that both read; ValueError where one walk cannot collect what both do."""
    read = {method.statistic for method in (first, second)} - {None}
    if read == {"sq_norms", "hessian"}:  # the norms are its diagonal
        return "hessian"
    if len(read) > 1:
        raise ValueError(f"{compression}: a walk collects one statistic, and these read {' and '.join(sorted(read))}")
    return next(iter(read), None)


def pair(first: Method, second: Method) -> Method:
    """The method that prunes by `first`, then quantizes by `second`; its strength is a PairStrength."""

    def prune(W: Tensor, inputs: InputStatistics | None, strength: PairStrength, options: Options) -> tuple:
        """The pruned weight, and a mask of what is kept of it."""
        found = first.compress(W, inputs, strength.pruning, options)
        if found.dtype == torch.bool:
            return W.masked_fill(~found, 0), found
        return found, found != 0

    def quantize(W: Tensor, inputs: InputStatistics | None, strength: PairStrength, options: Options) -> Quantized:
        pruned, keep = prune(W, inputs, strength, options)
        if second.takes_keep_mask:
            return second.quantize(pruned, inputs, strength.quantization, options, keep_mask=keep)
        return with_zeros(second.quantize(pruned, inputs, strength.quantization, options), keep)

    def compress(W: Tensor, inputs: InputStatistics | None, strength: PairStrength, options: Options) -> Tensor:
        pruned, keep = prune(W, inputs, strength, options)
        return second.compress(pruned, inputs, strength.quantization, options).masked_fill(~keep, 0)

    return Method(
        dequantized(quantize) if second.quantize else compress,
        (*first.strengths, *second.strengths),
        _statistic("", first, second),
        tuple(dict.fromkeys((*first.options, *second.options))),
        quantize if second.quantize else None,
        # Raised by whatever raises either of them.
        lambda options: first.arithmetic(options) + second.arithmetic(options) - 1,
    )


def strengths(compression: str, given: dict[str, Sequence[Any]]) -> list[Strength | PairStrength]:
    """The strengths at which a command line asks for a compression; of two all combinations, none for the dense model.

    Args:
        given: by kind of STRENGTHS, the values.
    """

    def of(method: Method) -> list[Strength]:
        return [Strength(kind, value) for kind in method.strengths for value in dict.fromkeys(given[kind])]

    if compression == CHECKPOINT:
        return [Strength(CHECKPOINT, value) for value in dict.fromkeys(given[CHECKPOINT])]
    names = parts([compression])
    if len(names) < 2:
        return [strength for name in names for strength in of(METHODS[name])]
    return [PairStrength(*both) for both in itertools.product(*(of(METHODS[name]) for name in names))]


def strength_values(strength: Strength | PairStrength | None) -> dict[str, Any]:
    """A cell's value of each of STRENGTHS; None for those that it does not have."""
    each = strength if isinstance(strength, PairStrength) else [strength] if strength else []
    return dict.fromkeys(STRENGTHS) | {one.kind: one.value for one in each}


def strength_of(cell: Cell) -> Strength | PairStrength | None:
    """The cell's strength; None for the dense model."""
    found = [Strength(kind, cell[kind]) for kind in STRENGTHS if cell[kind] is not None]
    return PairStrength(*found) if len(found) == 2 else found[0] if found else None


def is_calibrated(cell: Cell) -> bool:
    """Whether the cell's compression reads calibration text, or its allocation does."""
    method = method_of(cell["compression"])
    return is_owl(cell) or (method is not None and method.statistic is not None)


def is_quantized(cell: Cell) -> bool:
    """Whether the cell's compression makes integers, which can be exported."""
    method = method_of(cell["compression"])
    return method is not None and method.quantize is not None


def compressed_by(cell: Cell) -> tuple:
    """What tells the cell's model from those of other cells; the seed only where it draws the calibration text."""
    seed = cell["seed"] if is_calibrated(cell) else None
    parts = (cell.get(name) for name in ("only_layers", "skip_layers", "allocation_from"))
    return (*(cell[name] for name in ("compression", *STRENGTHS)), seed, *parts)


def missing_strength(compression: str, given: dict[str, Sequence[Any]]) -> str | None:
    """The options of which one is missing for a compression, or for one of two; None where there are all."""
    for name in [CHECKPOINT] if compression == CHECKPOINT else parts([compression]):
        kinds = (CHECKPOINT,) if name == CHECKPOINT else METHODS[name].strengths
        if not any(given[kind] for kind in kinds):
            whose = "" if compression in (*METHODS, CHECKPOINT) else f" for {name}"
            return " or ".join(f"--{kind}" for kind in kinds) + whose
    return None
