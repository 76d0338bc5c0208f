"""Plans how sequences are fed to a language model: shared tokens once, and with little padding.

A *prefix* is a beginning that many sequences share, such as the few-shot examples of an MMLU subject. Its keys and
values are computed once, for all sequences and longer prefixes that begin with it. The rest of the sequences, such as
questions with their options, is *packed*: a row of a batch holds a tree of tokens, branch after branch. Each token has
the position that it has in its sequence, and attends only to its ancestors in the tree. Rows are short and filled to
about one length, since the cost of attention grows with its square. If attention is computed in *blocks*, whose tokens
attend to none outside, rows are long, with even less padding.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Tokens = tuple[int, ...]
Block = tuple[int, slice]  # a row of a batch, and a range of its tokens

PREFIX_GAIN = 1024  # tokens that a prefix must save: the overhead of a small batch
PREFIX_TOKENS = 512  # distinct tokens that must follow a prefix; with fewer, it is packed with them
LONGEST_ROW = 1024  # tokens of a row whose sequences share much; the cost of attention grows with its square
ROW_TOKENS = (96, 128, 192, 256)  # lengths of packed rows to choose from; longer ones have less padding, more attention
COSTED_ROWS = 16  # rows per batch, when the costs of these lengths are compared
FAMILY_TOKENS = 64  # most tokens of a family (see families) whose sequences share little
SHARED_AGAIN = 8  # sequences that share more tokens are always of one family, up to LONGEST_ROW
EVEN_KEYS = 16  # a CPU attends in bf16 to a multiple of so many keys up to twice as fast as to another number
WEIGHT_COST, KEY_COST, ODD_KEY_COST = 6, 3, 5  # cost of a token: per unit of width, and per key that it attends to
BLOCK_COST = 2**22  # overhead of a block, in pairs of tokens times width


class Continuation(NamedTuple):
    """A tokenised text whose tokens from `start` on are scored, given those before; 1 <= start < len(tokens)."""

    tokens: Tokens
    start: int


class Read(NamedTuple):
    """A sequence that is fed to the model, and the continuations that are scored with it.

    The last token of a continuation is not fed: it is predicted at the position before it. So options of one token,
    such as letters, share one sequence.
    """

    fed: Tokens
    first: int  # the first position whose logits are read
    targets: list[tuple[int, Continuation]]  # index of the continuation


class Prefix(NamedTuple):
    """A prefix of `length` tokens; the sequences directly below it, and the longer prefixes that begin with it."""

    length: int
    reads: list[Read]
    below: list["Prefix"]

    @property
    def example(self) -> Tokens:
        """Any sequence that begins with this prefix."""
        return self.reads[0].fed if self.reads else self.below[0].example


def distinct_reads(continuations: Sequence[Continuation]) -> list[Read]:
    """The distinct sequences to feed, sorted by tokens."""
    targets: dict[Tokens, list[tuple[int, Continuation]]] = {}
    for index, continuation in enumerate(continuations):
        targets.setdefault(continuation.tokens[:-1], []).append((index, continuation))
    return [Read(fed, min(target.start for _, target in targets[fed]) - 1, targets[fed]) for fed in sorted(targets)]


def distinct_tokens(reads: Sequence[Read]) -> int:
    """Number of distinct prefixes of the sorted sequences: the fewest tokens that must be computed."""
    shared = (common_length(one.fed, other.fed) for one, other in itertools.pairwise(reads))
    return sum(len(read.fed) for read in reads) - sum(shared)


def common_length(one: Sequence, other: Sequence) -> int:
    """Length of the shared beginning, by binary search, since comparing slices is fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def plan(reads: list[Read]) -> Prefix:
    """The tree of prefixes of sorted sequences; returns its root, the empty prefix."""
    common = [common_length(one.fed, other.fed) for one, other in itertools.pairwise(reads)]

    def divide(low: int, high: int, prefix: Prefix) -> None:
        """Add the sequences low … high - 1, which all begin with the prefix, to the tree below it."""
        if high - low == 1:
            prefix.reads.append(reads[low])
            return
        depth, parts = _node(reads, common, low, high)
        shared = min(depth, min(read.first for read in reads[low:high]))
        gain = (high - low - 1) * (shared - prefix.length)
        if gain >= PREFIX_GAIN and distinct_tokens(reads[low:high]) - shared >= PREFIX_TOKENS:
            prefix.below.append(longer := Prefix(shared, [], []))
            prefix = longer
        for part in parts:
            divide(*part, prefix)

    root = Prefix(0, [], [])
    if reads:
        divide(0, len(reads), root)
    return root


def _node(reads: list[Read], common: list[int], low: int, high: int) -> tuple[int, list[tuple[int, int]]]:
    """Number of tokens that the sequences low … high - 1 share, and the ranges of those that share the next one too."""
    depth = min(common[low : high - 1])
    cuts = [low, *(index + 1 for index in range(low, high - 1) if common[index] == depth), high]
    return depth, list(itertools.pairwise(cuts))


class Row(NamedTuple):
    """Sequences in one row of a batch, their shared tokens once: a tree, branch after branch, or several trees.

    A token attends only to its ancestors.

    Fields, one entry per token:
        tokens: its id.
        depths: its index in its sequence.
        ends: index in the row after its last descendant.
    And one entry per scored token:
        reads: index in the row where it is predicted, its id, index of its continuation, whether it is the first one.
    """

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    reads: list[tuple[int, int, int, bool]]


def pack(reads: list[Read], before: int, together: bool, width: int) -> list[Row]:
    """Packed rows of the sorted sequences from token `before` on, of the length in ROW_TOKENS that costs least.

    Args:
        together: False puts each sequence into a row of its own.
        width: the model's hidden size; the larger, the less attention counts.
    """
    if not together:
        return [row_of([[read]], before) for read in reads]
    longest_first = _longest_first(reads, before)
    filled = [_fill(longest_first, length) for length in ROW_TOKENS]
    rows = min(filled, key=lambda rows: _cost([size for size, _ in rows], before, width))
    # In sorted order, so that neighbours share their common tokens in the row.
    orders = [sorted(itertools.chain(*members)) for _, members in rows]
    return [row_of([[reads[index] for index in order]], before) for order in orders]


def pack_in_blocks(reads: list[Read], length: int) -> list[Row]:
    """Packed rows of the sorted sequences, of up to `length` tokens, for attention by blocks.

    Each family is a tree of its own; tokens that families share are computed in each.
    """
    filled = _fill(_longest_first(reads, 0), length)
    return [row_of([reads[family.start : family.stop] for family in members], 0) for _, members in filled]


def _longest_first(reads: list[Read], before: int) -> list[tuple[int, range]]:
    return sorted(families(reads, before), key=lambda family: -family[0])


def _fill(families: list[tuple[int, range]], length: int) -> list[tuple[int, list[range]]]:
    """Put each family, longest first, into the fullest row where it fits; returns tokens and families of each row."""
    rows: list[tuple[int, list[range]]] = []
    free: list[tuple[int, int]] = []  # free tokens of each row and its index, sorted
    for size, members in families:
        at = bisect.bisect_left(free, (size, 0))
        if at < len(free):
            left, row = free.pop(at)
            rows[row] = rows[row][0] + size, [*rows[row][1], members]
        else:
            left, row = length, len(rows)
            rows.append((size, [members]))
        bisect.insort(free, (left - size, row))
    return rows


def _cost(lengths: list[int], before: int, width: int) -> int:
    """Cost of rows in batches of COSTED_ROWS: of matmuls with the weights, and of attention (see _row_cost)."""
    lengths = sorted(lengths, reverse=True)
    batches = [lengths[start : start + COSTED_ROWS] for start in range(0, len(lengths), COSTED_ROWS)]
    return sum(len(batch) * _row_cost(batch[0], before, width) for batch in batches)


def _row_cost(length: int, before: int, width: int, key_cost: int = KEY_COST) -> int:
    """Cost of one row, in units of 4 * width operations.

    A layer has 12 width² weights, with 2 operations each per token. A key takes 4 width operations, in small matmuls
    and with an exponential, which were measured to take three times as long (KEY_COST), or five (ODD_KEY_COST).
    """
    return length * (WEIGHT_COST * width + key_cost * (before + length))


def families(reads: list[Read], before: int) -> list[tuple[int, range]]:
    """Families of sorted sequences, which are packed into one row: their tokens, and the range of their indices.

    Neighbours that share more than SHARED_AGAIN tokens are one family up to LONGEST_ROW tokens, others that share any
    up to FAMILY_TOKENS.
    """
    result: list[tuple[int, range]] = []
    for index, read in enumerate(reads):
        shared = max(common_length(reads[index - 1].fed, read.fed) - before, 0) if index else 0
        added = len(read.fed) - before
        longest = LONGEST_ROW if shared > SHARED_AGAIN else FAMILY_TOKENS if shared else 0
        if result and result[-1][0] + added - shared <= longest:
            length, members = result[-1]
            result[-1] = length + added - shared, range(members.start, index + 1)
        else:
            result.append((added, range(index, index + 1)))
    return result


def row_of(parts: list[list[Read]], before: int) -> Row:
    """Row of sorted sequences from token `before` on; each of `parts` becomes a tree."""
    row = Row([], [], [], [])
    for reads in parts:
        path: list[int] = []  # indices in the row of the last sequence's tokens
        for index, read in enumerate(reads):
            shared = max(common_length(reads[index - 1].fed, read.fed) - before, 0) if index else 0
            added = len(read.fed) - before - shared
            path = [*path[:shared], *range(len(row.tokens), len(row.tokens) + added)]
            row.tokens.extend(read.fed[before + shared :])
            row.depths.extend(range(before + shared, len(read.fed)))
            row.ends.extend([0] * added)
            for column in path:
                row.ends[column] = len(row.tokens)
            for owner, continuation in read.targets:
                for at in range(continuation.start, len(continuation.tokens)):
                    row.reads.append((path[at - 1 - before], continuation.tokens[at], owner, at == continuation.start))
    return row


def cut_into_blocks(ends: np.ndarray, width: int) -> list[tuple[int, slice]]:
    """Cut rows into blocks, ranges of tokens that attend to none outside.

    A block is extended into the next one to a multiple of EVEN_KEYS tokens, since a CPU compiles and keeps a matmul
    kernel for each size. For the tokens of both, the result of the next block is used.

    Args:
        ends: see Row, (rows, tokens); 0 for padding.
        width: the model's hidden size.
    """
    blocks = []
    for row, reached in enumerate(np.maximum.accumulate(ends, axis=1)):
        stops = (np.flatnonzero(reached == np.arange(1, len(reached) + 1)) + 1).tolist()
        bounds = [0, stops[0]]
        for stop in stops[1:]:
            if 2 * (bounds[-1] - bounds[-2]) * (stop - bounds[-1]) > BLOCK_COST // width:
                bounds.append(stop)
            bounds[-1] = stop
        blocks += [(row, slice(first, last + (first - last) % EVEN_KEYS)) for first, last in itertools.pairwise(bounds)]
    return blocks


def fast_length(tokens: int, before: int, width: int) -> int:
    """Length to which a packed row is padded: to a multiple of EVEN_KEYS, prefix included, if that costs less."""
    even = tokens + -(before + tokens) % EVEN_KEYS
    return even if _row_cost(even, before, width) < _row_cost(tokens, before, width, ODD_KEY_COST) else tokens
