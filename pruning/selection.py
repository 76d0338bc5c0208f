"""Exact order statistics of the scores of several tensors ranked together, without a copy of all scores.

A radix selection over parts of the tensors: scores are read as integers in the same order. A histogram of the upper 16
bits gives the upper bits of the score at a rank. A histogram of the lower 16 bits, of the scores that have these upper
bits, gives its lower bits. Several ranks take the same two passes. The CPU never waits for an accelerator.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 2**16  # of a histogram of 16 bits
PART_CPU, PART = 2**18, 2**24  # scores at once: 1 MB of float32 stays in a CPU's cache; 64 MB keep a GPU busy
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
UPPER_BITS_OF_INFINITY = {torch.float32: 0x7F80, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}

Score = Callable[[Tensor], Tensor]
Count = Callable[[Tensor, Tensor], None]


class Cuts(NamedTuple):
    """Where the lowest scores end, for each of several ranks; on the device of the first tensor.

    Fields:
        thresholds: (ranks,) the score at each rank, in the dtype in which scores are compared.
        tied: (ranks,) int64, how many of the scores equal to the threshold have this rank or a lower one.
        equal: (ranks,) int64, how many scores are equal to the threshold.
        nans: int64 without dimensions, how many scores are NaN; the other fields are wrong if there is one.
    """

    thresholds: Tensor
    tied: Tensor
    equal: Tensor
    nans: Tensor


def compared_dtype(scores: Sequence[Tensor]) -> torch.dtype:
    """The dtype in which scores are compared: bfloat16 or float16 if all have this dtype, else float32."""
    dtypes = {tensor.dtype for tensor in scores}
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(INTEGERS) else torch.float32


def flat_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The flattened tensor in consecutive parts; they are views if the tensor is contiguous, else copies."""
    size = PART_CPU if tensor.device.type == "cpu" else PART
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield from tensor.view(-1).split(size)
        return
    for rows in tensor.split(max(1, size // max(1, tensor.shape[1:].numel()))):
        yield from rows.reshape(-1).split(size)


def find_cuts(tensors: Sequence[Tensor], score: Score, dtype: torch.dtype, ranks: Sequence[int]) -> Cuts:
    """The scores at `ranks` (0 = lowest) among the scores of all tensors.

    Args:
        tensors: at least one element in all; may be on several devices.
        score: elementwise function from a part of a tensor to its scores.
        dtype: see compared_dtype.
        ranks: at least one.
    """
    device = tensors[0].device
    # torch.tensor would copy the ranks to an accelerator, and the CPU would wait
    wanted = torch.stack([torch.full((), rank, dtype=torch.int64, device=device) for rank in ranks])

    def count(table: Tensor, integers: Tensor) -> None:
        _add_histogram(table, _upper(integers))

    totals = _sum_of_tables(tensors, score, dtype, count, BINS)
    infinity = BINS // 2 + UPPER_BITS_OF_INFINITY[dtype]
    nans = totals[infinity + 1 :].sum() + totals[: BINS - 1 - infinity].sum()
    upper, lower_scores, equal = _bins_at(totals.expand(len(ranks), BINS), wanted)
    if INTEGERS[dtype] == torch.int16:
        integers = (upper - BINS // 2).to(torch.int16)
    else:
        rows, count = _lower_counter(upper)
        totals = _sum_of_tables(tensors, score, dtype, count, (len(ranks) + 1) * BINS)
        lower, lower_in_bin, equal = _bins_at(totals.view(-1, BINS).index_select(0, rows), wanted - lower_scores)
        integers = ((upper - BINS // 2) * BINS + lower).to(torch.int32)
        lower_scores = lower_scores + lower_in_bin
    return Cuts(_flipped(integers).view(dtype), wanted + 1 - lower_scores, equal, nans)


def _integers(scores: Tensor) -> Tensor:
    """Signed integers in the order of the scores, of the same width; -0 and 0 become the same integer.

    A NaN lies beyond the infinity of its sign. Its upper 16 bits alone tell it from that infinity, because an addition
    returns a quiet NaN, whose highest bit of the mantissa is set.
    """
    return _flipped((scores + 0.0).view(INTEGERS[scores.dtype]))


def _flipped(bits: Tensor) -> Tensor:
    """Invert all bits but the sign of negative integers: bits of floats are then in their order. Its own inverse."""
    flips = bits >> (8 * bits.element_size() - 1)
    return flips.bitwise_and_(torch.iinfo(bits.dtype).max).bitwise_xor_(bits)


def _upper(integers: Tensor) -> Tensor:
    """Bin of the upper 16 bits, 0 ... BINS - 1, int32."""
    upper = integers >> 16 if integers.dtype == torch.int32 else integers.to(torch.int32)
    return upper.add_(BINS // 2)


def _add_histogram(table: Tensor, bins: Tensor) -> None:
    """Add to `table`, int64, how often each bin occurs."""
    if table.device.type == "cpu":
        table += torch.bincount(bins, minlength=len(table))
    else:  # bincount makes the CPU wait for the largest bin
        table.index_add_(0, bins, table.new_ones(()).expand(len(bins)))


def _sum_of_tables(tensors: Sequence[Tensor], score: Score, dtype: torch.dtype, count: Count, size: int) -> Tensor:
    """A table, (size,) int64, to which `count` has added the integers of every part of every tensor."""
    tables: dict[torch.device, Tensor] = {}
    for tensor in tensors:
        if tensor.device not in tables:
            tables[tensor.device] = torch.zeros(size, dtype=torch.int64, device=tensor.device)
        for part in flat_parts(tensor):
            count(tables[tensor.device], _integers(score(part).to(dtype)))
    first, *others = tables.values()
    for other in others:
        first += other.to(first.device)
    return first


def _bins_at(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In each row of `counts`, (ranks, BINS), the bin of one rank; the numbers of scores in lower bins and in it."""
    cumulative = counts.cumsum(dim=1)
    bins = torch.searchsorted(cumulative, ranks[:, None], right=True)
    inside = counts.gather(1, bins)
    return bins.squeeze(1), (cumulative.gather(1, bins) - inside).squeeze(1), inside.squeeze(1)


def _lower_counter(upper: Tensor) -> tuple[Tensor, Count]:
    """What counts the lower bits of the scores with given upper bits.

    Args:
        upper: (ranks,) bin of the upper bits of the score at each rank.
    Returns:
        Row of each rank, (ranks,), and the function that counts into a table of ranks + 1 rows of BINS, flat. Ranks
        with the same upper bits have the same row. On an accelerator all other scores are counted in the last row:
        leaving them out would make the CPU wait for their number.
    """
    row_of_bin = torch.full((BINS,), len(upper), dtype=torch.int32, device=upper.device)
    row_of_bin.index_copy_(0, upper, torch.arange(len(upper), dtype=torch.int32, device=upper.device))
    rows = row_of_bin.index_select(0, upper)

    @functools.cache
    def wanted() -> dict[int, int]:
        return dict(zip(upper.cpu().tolist(), rows.cpu().tolist(), strict=True))

    def count(table: Tensor, integers: Tensor) -> None:
        if table.device.type == "cpu":
            bins, values = _upper(integers).numpy(), integers.numpy()
            for number, row in wanted().items():
                lower = torch.from_numpy(values[bins == number]).bitwise_and_(BINS - 1)
                _add_histogram(table[row * BINS : (row + 1) * BINS], lower)
        else:
            bins = row_of_bin.to(table.device).index_select(0, _upper(integers)).mul_(BINS)
            _add_histogram(table, bins.add_(integers & (BINS - 1)))

    return rows, count
