import numpy as np
import pytest
from tiny_models import continuations

from llm_tasks.engine import packing


def test_rows_are_filled_and_hold_trees():
    asked = continuations(subjects=1, questions=40, prefix=4)
    reads = packing.distinct_reads(asked)
    rows = packing.pack(reads, 4, together=True, width=16)
    assert sum(len(row.reads) for row in rows) == sum(len(tokens) - start for tokens, start in asked)
    full = max(len(row.tokens) for row in rows)
    assert sum(len(row.tokens) < 0.75 * full for row in rows) <= 1  # what is left over at the end
    for row in rows:
        assert all(place < end <= len(row.tokens) for place, end in enumerate(row.ends))
        seen = {
            tuple(row.tokens[at] for at in range(place + 1) if row.ends[at] > place): place
            for place in range(len(row.tokens))
        }
        assert len(seen) == len(row.tokens)  # no two tokens of a row with the same tokens before them


def seen_in(row: packing.Row) -> set[tuple[int, int]]:
    """Places and the places that they see, themselves included."""
    return {(place, at) for place in range(len(row.tokens)) for at in range(place + 1) if row.ends[at] > place}


def test_rows_for_blocks_keep_families_apart():
    reads = packing.distinct_reads(continuations(subjects=3, questions=30, prefix=9))
    rows = packing.pack_in_blocks(reads, 300)
    found = [(row.tokens[place], owner) for row in rows for place, _, owner, _ in row.reads]
    assert len(found) == sum(len(continuation.tokens) - continuation.start for continuation in continuations(3, 30, 9))
    families = packing.families(reads, 0)
    assert sum(len(row.tokens) for row in rows) == sum(tokens for tokens, _ in families)
    assert all(len(row.tokens) <= max(300, *(tokens for tokens, _ in families)) for row in rows)
    for row in rows:
        blocks = [places for _, places in packing.cut_into_blocks(np.array([row.ends]), width=10**9)]
        assert len(blocks) > 1
        assert all(any(own.start <= at and place < own.stop for own in blocks) for place, at in seen_in(row))


def test_blocks_by_hand(monkeypatch: pytest.MonkeyPatch):
    # Two trees, 0-2 and 3-6, of which the first has two branches; a single token; the second row is padded by two.
    ends = np.array([[3, 2, 3, 7, 7, 7, 7, 8], [2, 2, 6, 6, 6, 6, 0, 0]])
    monkeypatch.setattr(packing, "EVEN_KEYS", 1)

    def places(cost: int) -> list[tuple[int, int, int]]:
        monkeypatch.setattr(packing, "BLOCK_COST", cost)
        return [(row, some.start, some.stop) for row, some in packing.cut_into_blocks(ends, width=2)]

    assert places(0) == [(0, 0, 3), (0, 3, 7), (0, 7, 8), (1, 0, 2), (1, 2, 6)]
    # Trees of 3 and 4 tokens have 24 more pairs together than apart, of 4 and 1 have 8, of 2 and 4 have 16.
    assert places(2 * 8) == [(0, 0, 3), (0, 3, 8), (1, 0, 2), (1, 2, 6)]
    assert places(2 * 24) == [(0, 0, 8), (1, 0, 6)]
    monkeypatch.setattr(packing, "EVEN_KEYS", 4)
    assert places(0) == [(0, 0, 4), (0, 3, 7), (0, 7, 11), (1, 0, 4), (1, 2, 6)]


@pytest.mark.parametrize(
    ("tokens", "before", "padded"),
    [(253, 0, 256), (225, 0, 240), (100, 0, 100), (17, 0, 17), (224, 1, 239), (40, 600, 40), (20, 600, 24)],
)
def test_rows_are_padded_to_an_even_number_of_keys_where_that_is_cheaper(tokens: int, before: int, padded: int):
    assert packing.fast_length(tokens, before, width=576) == padded
