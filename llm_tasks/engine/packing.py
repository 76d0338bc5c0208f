"""What is fed to a language model, in which order and side by side: no token twice, and little that only pads.

What sequences share is computed once. A *prefix* is a beginning that many have in common, such as the few-shot examples
of an MMLU subject: its keys and values are computed once, for all sequences that begin with it and for longer prefixes.
The rest of the sequences, such as questions with their options, is *packed*: a row of a batch holds a tree of tokens,
branch after branch. Each token has its position in its own sequence, and attends to its ancestors in the tree alone.
Rows are short and filled to one length, since attention costs its square. Where attention is computed in *blocks*,
whose tokens attend to none outside, rows are long, and even less is padded.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Tokens = tuple[int, ...]

PREFIX_GAIN = 1024  # tokens that a prefix must save: what a small batch costs beside its tokens
PREFIX_TOKENS = 512  # distinct ones that must stand below it: fewer are packed with it
LONGEST_ROW = 1024  # where much is shared with what follows; attention grows with its square
ROW_TOKENS = (96, 128, 192, 256)  # of a packed row; the longer, the evener rows are filled and the more is attended to
COSTED_ROWS = 16  # of a batch, where lengths of rows are compared
FAMILY_TOKENS = 64  # of sequences that share little and are still packed next to each other
SHARED_AGAIN = 8  # tokens; sequences that share more are never packed apart
EVEN_KEYS = 16  # in bf16 a CPU attends to a multiple of so many keys up to twice as fast as to others
WEIGHT_COST, KEY_COST, ODD_KEY_COST = 6, 3, 5  # of a token: per unit of width, and per key that it sees
BLOCK_COST = 2**22  # of one more block, as so many pairs of tokens per unit of width


class Continuation(NamedTuple):
    """A tokenised text, and from where on its tokens are scored given those before: 1 <= start < len(tokens)."""

    tokens: Tokens
    start: int


class Read(NamedTuple):
    """One sequence that is fed to the model, and the continuations that are read from it.

    A continuation's last token is never fed: what predicts it is the position before. Options of one token, such as
    letters, are all read from one sequence.
    """

    fed: Tokens
    first: int  # the first position whose logits are read
    targets: list[tuple[int, Continuation]]  # index of the continuation


class Prefix(NamedTuple):
    """A beginning of `length` tokens: what is read right after it, and the longer prefixes that begin with it."""

    length: int
    reads: list[Read]
    below: list["Prefix"]

    @property
    def example(self) -> Tokens:
        """Any sequence that begins with this prefix."""
        return self.reads[0].fed if self.reads else self.below[0].example


def distinct_reads(continuations: Sequence[Continuation]) -> list[Read]:
    """What has to be fed, sorted by tokens."""
    found: dict[Tokens, list[tuple[int, Continuation]]] = {}
    for index, continuation in enumerate(continuations):
        found.setdefault(continuation.tokens[:-1], []).append((index, continuation))
    return [Read(fed, min(own.start for _, own in found[fed]) - 1, found[fed]) for fed in sorted(found)]


def distinct_tokens(reads: Sequence[Read]) -> int:
    """Number of different prefixes of the sorted sequences: so many tokens must be computed at least."""
    shared = (common_length(one.fed, other.fed) for one, other in itertools.pairwise(reads))
    return sum(len(read.fed) for read in reads) - sum(shared)


def common_length(one: Sequence, other: Sequence) -> int:
    """Length of the beginning that both share, by binary search: slices compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def plan(reads: list[Read]) -> Prefix:
    """Find the prefixes of sorted sequences; returns the empty one, below which all others hang."""
    common = [common_length(one.fed, other.fed) for one, other in itertools.pairwise(reads)]

    def divide(low: int, high: int, prefix: Prefix) -> None:
        """Hang the sequences low … high - 1, which share the prefix, below it."""
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
    """Of the sorted sequences low … high - 1: how many tokens all share, and the ranges that go on alike."""
    depth = min(common[low : high - 1])
    cuts = [low, *(index + 1 for index in range(low, high - 1) if common[index] == depth), high]
    return depth, list(itertools.pairwise(cuts))


class Row(NamedTuple):
    """Sequences side by side in one row of a batch, what they have in common once: a tree, branch after branch.

    Or several trees, one after the other, of which none sees another's tokens.

    Fields, of each token:
        tokens: its id.
        depths: its index in its own sequence.
        ends: index in the row behind the last of its descendants in the tree.
    And of each scored token:
        reads: index in the row from which it is predicted, the token, its continuation, whether it is the first.
    """

    tokens: list[int]
    depths: list[int]
    ends: list[int]
    reads: list[tuple[int, int, int, bool]]


def pack(reads: list[Read], before: int, together: bool, width: int) -> list[Row]:
    """Rows of the sorted sequences from token `before` on, of the length at which they cost least.

    Args:
        together: False puts each sequence into a row by itself.
        width: of the model's hidden states; the wider, the less attention counts.
    """
    if not together:
        return [row_of([[read]], before) for read in reads]
    longest_first = _longest_first(reads, before)
    filled = [_fill(longest_first, length) for length in ROW_TOKENS]
    rows = min(filled, key=lambda rows: _cost([taken for taken, _ in rows], before, width))
    # In the sequences' order, so that neighbours share again what they have in common.
    orders = [sorted(itertools.chain(*members)) for _, members in rows]
    return [row_of([[reads[index] for index in order]], before) for order in orders]


def pack_in_blocks(reads: list[Read], length: int) -> list[Row]:
    """Rows of the sorted sequences for attention that costs what the blocks of a row cost, so that all may be long.

    A family is a tree by itself: what it shares with others of its row is computed again.
    """
    filled = _fill(_longest_first(reads, 0), length)
    return [row_of([reads[family.start : family.stop] for family in members], 0) for _, members in filled]


def _longest_first(reads: list[Read], before: int) -> list[tuple[int, range]]:
    return sorted(families(reads, before), key=lambda family: -family[0])


def _fill(families: list[tuple[int, range]], length: int) -> list[tuple[int, list[range]]]:
    """Put each family, longest first, into the fullest row that has room; returns tokens and families of each row."""
    rows: list[tuple[int, list[range]]] = []
    room: list[tuple[int, int]] = []  # tokens left in a row, and which row; sorted
    for taken, members in families:
        at = bisect.bisect_left(room, (taken, 0))
        if at < len(room):
            left, row = room.pop(at)
            rows[row] = rows[row][0] + taken, [*rows[row][1], members]
        else:
            left, row = length, len(rows)
            rows.append((taken, [members]))
        bisect.insort(room, (left - taken, row))
    return rows


def _cost(lengths: list[int], before: int, width: int) -> int:
    """Cost of rows in batches of COSTED_ROWS: matmuls with the weights, and with the keys that tokens attend to."""
    lengths = sorted(lengths, reverse=True)
    batches = [lengths[start : start + COSTED_ROWS] for start in range(0, len(lengths), COSTED_ROWS)]
    return sum(len(batch) * _row_cost(batch[0], before, width) for batch in batches)


def _row_cost(length: int, before: int, width: int, key_cost: int = KEY_COST) -> int:
    """What one row costs, in 4 operations per unit of the model's width.

    A layer has 12 width² weights, 2 operations each; a key takes 4 operations per unit of width, in small matmuls
    and with an exponential: measured, they take three times as long, or five.
    """
    return length * (WEIGHT_COST * width + key_cost * (before + length))


def families(reads: list[Read], before: int) -> list[tuple[int, range]]:
    """Group sorted sequences that stay next to each other; returns of each group its tokens and the range of indices.

    Neighbours that share more than SHARED_AGAIN tokens stay together up to LONGEST_ROW, others up to FAMILY_TOKENS.
    """
    found: list[tuple[int, range]] = []
    for index, read in enumerate(reads):
        shared = max(common_length(reads[index - 1].fed, read.fed) - before, 0) if index else 0
        added = len(read.fed) - before
        longest = LONGEST_ROW if shared > SHARED_AGAIN else FAMILY_TOKENS if shared else 0
        if found and found[-1][0] + added - shared <= longest:
            length, members = found[-1]
            found[-1] = length + added - shared, range(members.start, index + 1)
        else:
            found.append((added, range(index, index + 1)))
    return found


def row_of(parts: list[list[Read]], before: int) -> Row:
    """Sorted sequences from token `before` on, side by side; those of different parts share nothing."""
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
    """Cut rows into blocks: contiguous tokens of a row that attend to none outside.

    A block takes some of the next one's tokens, too, so that its size is a multiple of EVEN_KEYS: for a matmul of
    another size a kernel would be made and kept. What the next block computes for these tokens counts.

    Args:
        ends: as Row has them, (rows, tokens); 0 where a row is padded.
        width: of the model's hidden states.
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
    """What a packed row is padded to: with the tokens before it a multiple of EVEN_KEYS, where that costs less."""
    even = tokens + -(before + tokens) % EVEN_KEYS
    return even if _row_cost(even, before, width) < _row_cost(tokens, before, width, ODD_KEY_COST) else tokens
