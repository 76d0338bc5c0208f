"""The compressions by name. A new method is one function in a file of its own and one entry of METHODS.

A method is called once per weight of the decoder blocks, in the order in which the model uses them:

    compress(W, inputs, strength, options) -> new W, (out_features, in_features), in W's dtype, or a boolean keep-mask

`inputs` holds what METHODS says it reads of the layer's calibration inputs (pruning.walk.InputStatistics).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_tasks.checkpoints.checkpoint_files import safe_label
from pruning.low_rank import factors, low_rank_approximation
from pruning.masks import lowest_k_masks
from pruning.nm import nm_mask, parse_nm
from pruning.ria import ria_mask
from pruning.sparsegpt import sparsegpt_prune
from pruning.validation import check_weight
from pruning.walk import STATISTICS, InputStatistics
from pruning.wanda import wanda_mask
from quantization.gptq import Quantized, gptq_grid, round_to_nearest_grid

DENSE = "dense"  # the compression that changes nothing
CHECKPOINT = "checkpoint"  # a model that was compressed elsewhere; its strength is its name
SPARSITIES = ("sparsity", "nm_ratio")
STRENGTHS = (*SPARSITIES, "bits", "rank", CHECKPOINT)


class Strength(NamedTuple):
    """How strongly to compress: a kind, one of STRENGTHS, and its value, such as sparsity 0.5 or nm_ratio "2:4"."""

    kind: str
    value: float | int | str

    @property
    def label(self) -> str:
        """As folders and tables name it: 0.5, 2of4, 4bit, rank64, the name of a checkpoint."""
        if self.kind == CHECKPOINT:
            return safe_label(self.value)
        if self.kind == "sparsity":
            return f"{self.value:g}"
        return {"nm_ratio": "{}", "bits": "{}bit", "rank": "rank{}"}[self.kind].format(self.value).replace(":", "of")

    @property
    def requested_sparsity(self) -> float:
        """Fraction of weights that shall be zero; 0 for what removes no weights."""
        if self.kind == "nm_ratio":
            n_kept, m_group = parse_nm(self.value)
            return 1 - n_kept / m_group
        return self.value if self.kind == "sparsity" else 0.0

    def as_mask_options(self) -> dict[str, float | tuple[int, int]]:
        """The keyword by which mask functions take it."""
        return {"sparsity": self.value} if self.kind == "sparsity" else {"nm": parse_nm(self.value)}


@dataclass(frozen=True)
class Options:
    """Options of the methods besides the strength; each method reads those that it obeys."""

    block_size: int = 128  # SparseGPT, GPTQ: columns between two updates of the rest
    damping: float = 0.01  # SparseGPT, GPTQ: of the Hessian, as a fraction of its mean diagonal
    group_size: int = 128  # RTN, GPTQ: inputs that share a scale; -1 = a row
    symmetric: bool = False  # RTN, GPTQ: no zero point
    act_order: bool = False  # GPTQ: largest inputs first
    static_groups: bool = False  # GPTQ: scales from the dense weight


METHOD_OPTIONS = tuple(Options.__dataclass_fields__)
Compress = Callable[[Tensor, InputStatistics | None, Strength, Options], Tensor]
Quantize = Callable[[Tensor, InputStatistics | None, Strength, Options], Quantized]


def always_first(options: Options) -> int:
    """The arithmetic of a method whose results never changed."""
    return 1


class Shared(NamedTuple):
    """How a method without statistics computes once for a weight what several strengths have in common.

    Fields:
        prepare: from W and all the strengths, what they have in common.
        compress: from W, that, and one of the strengths, the new W.
    """

    prepare: Callable[[Tensor, Sequence[Strength]], Any]
    compress: Callable[[Tensor, Any, Strength], Tensor]


class Method(NamedTuple):
    """A compression: its function, the strengths it takes, what it reads of the inputs, and which Options it obeys.

    One that quantizes has `quantize` too: the integers that `compress` turns into a weight, for exports.
    `arithmetic` is a number that is raised where a change alters what the method computes with these options. Runs made
    before numbers were written count as 1. With several strengths `shared`, if there is one, takes the place of
    `compress`. `by_row`: a sparsity removes as many weights from each output row, whatever the other rows hold.
    takes_keep_mask: `quantize` has a keyword keep_mask, of what another method pruned before (compressions.pair); for
    one that moves weights when it rounds others.
    """

    compress: Compress
    strengths: tuple[str, ...]
    statistic: str | None = None
    options: tuple[str, ...] = ()
    quantize: Quantize | None = None
    arithmetic: Callable[[Options], int] = always_first
    shared: Shared | None = None
    takes_keep_mask: bool = False
    by_row: bool = False


def magnitude(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Tensor:
    """Within each layer the weights of smallest absolute value go; all layers ranked together: magnitude_masks."""
    check_weight(W)
    if strength.kind == "sparsity":
        keep = lowest_k_masks([W], [strength.value], torch.abs)[0][0]
    else:
        keep = nm_mask(W.abs(), *parse_nm(strength.value))
    return keep


def by_input_norms(choose: Callable[..., Tensor], statistic: str = "sq_norms") -> Compress:
    """A method that removes what a mask function of (W, squared input norms) does not keep.

    Args:
        statistic: another one of STATISTICS, in the place of the norms; METHODS names it too.
    """

    def compress(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Tensor:
        return choose(W, inputs.sum_of(statistic), **strength.as_mask_options())

    return compress


def sparsegpt(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Tensor:
    factor = inputs.inverse_factor(options.damping)
    return sparsegpt_prune(W, factor, block_size=options.block_size, **strength.as_mask_options())


def dequantized(quantize: Quantize) -> Compress:
    """The method that replaces a weight by what its integers stand for."""

    def compress(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Tensor:
        return quantize(W, inputs, strength, options).dequantize(W.dtype)

    return compress


def rtn(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Quantized:
    return round_to_nearest_grid(W, strength.value, options.group_size, options.symmetric)


def gptq(
    W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options, keep_mask: Tensor | None = None
) -> Quantized:
    factor = inputs.inverse_factor(options.damping, options.act_order)
    return gptq_grid(
        W, factor, strength.value, options.group_size, options.symmetric, options.act_order, options.static_groups,
        options.block_size, keep_mask=keep_mask,
    )  # fmt: skip


def gptq_arithmetic(options: Options) -> int:
    """2 where groups begin inside a block: their grids were once made from weights later than the block's start."""
    inside = options.group_size != -1 and options.group_size % options.block_size != 0
    return 2 if inside and not options.static_groups else 1


def low_rank(W: Tensor, inputs: InputStatistics | None, strength: Strength, options: Options) -> Tensor:
    """The best matrix of this rank; a matrix that is smaller than the rank stays as it is."""
    return W if strength.value >= min(W.shape) else low_rank_approximation(W, [strength.value])[0]


def low_rank_factors(W: Tensor, strengths: Sequence[Strength]) -> tuple[Tensor, Tensor]:
    """Factors for the largest rank, in host memory: those of all layers are kept at once."""
    left, right = factors(W, max(strength.value for strength in strengths))
    return left.cpu(), right.cpu()


def low_rank_of_factors(W: Tensor, found: tuple[Tensor, Tensor], strength: Strength) -> Tensor:
    if strength.value >= min(W.shape):
        return W
    left, right = found
    return left[:, : strength.value].contiguous().to(W.device) @ right[: strength.value].to(W.device)


HESSIAN_OPTIONS = ("block_size", "damping")
GRID_OPTIONS = ("group_size", "symmetric")
GPTQ_OPTIONS = (*HESSIAN_OPTIONS, *GRID_OPTIONS, "act_order", "static_groups")
METHODS: dict[str, Method] = {
    "magnitude": Method(magnitude, SPARSITIES),
    "wanda": Method(by_input_norms(wanda_mask), SPARSITIES, "sq_norms", by_row=True),
    "ria": Method(by_input_norms(ria_mask), SPARSITIES, "sq_norms"),
    "sparsegpt": Method(sparsegpt, SPARSITIES, "hessian", HESSIAN_OPTIONS),
    "rtn": Method(dequantized(rtn), ("bits",), None, GRID_OPTIONS, rtn),
    "gptq": Method(dequantized(gptq), ("bits",), "hessian", GPTQ_OPTIONS, gptq, gptq_arithmetic, takes_keep_mask=True),
    "low_rank": Method(low_rank, ("rank",), shared=Shared(low_rank_factors, low_rank_of_factors)),
}


def check_methods(methods: Mapping[str, Method]) -> None:
    """Every method takes strengths, reads statistics and obeys options that there are.

    Raises:
        ValueError: names the method, the word and what is allowed.
    """
    for name, method in methods.items():
        words = (
            ("statistic", [method.statistic] if method.statistic is not None else [], STATISTICS),
            ("strength", method.strengths, STRENGTHS),
            ("option", method.options, METHOD_OPTIONS),
        )
        for kind, given, known in words:
            for word in given:
                if word not in known:
                    raise ValueError(f"METHODS[{name!r}]: there is no {kind} {word!r}; there are {', '.join(known)}")
        if not method.strengths:
            raise ValueError(f"METHODS[{name!r}] takes no strength; there are {', '.join(STRENGTHS)}")
        if method.shared and method.statistic:
            raise ValueError(f"METHODS[{name!r}] reads {method.statistic}; `shared` is for methods without a statistic")
