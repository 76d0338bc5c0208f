"""What the paper prints: the numbers of its tables and the claims of its sentences, from paper_numbers.json.

Each says where in the paper it stands; claims are quoted. The slopes in the legends of its figures are in no text that
we have, so they are not there.
"""

import functools
import json
from enum import StrEnum
from pathlib import Path

from analysis.tables import Row

NUMBERS = Path(__file__).with_name("paper_numbers.json")
TUNED = "fine-tuned tasks"  # the task of numbers on GLUE and multiple choice

PAPER_COLUMNS = ("place", "what", "setting", "task", "item", "model", "compression", "strength", "value", "quote")


class What(StrEnum):
    """What a number or claim is about; the human scores that it prints too are in analysis.fine_tuning.human_gap."""

    SPEARMAN = "spearman"
    DIFFICULTY = "difficulty"
    SCORE = "dense_score"
    DROP = "drop"
    FREEZING = "freezing"
    TRANSFER = "transfer"
    ORDER = "order"
    BARRIER = "barrier"
    LEVELS = "levels"


@functools.cache
def _blocks() -> tuple[Row, ...]:
    return tuple(json.loads(NUMBERS.read_text(encoding="utf-8"))["blocks"])


def printed() -> list[Row]:
    """What the paper prints, rows of PAPER_COLUMNS.

    Returns:
        place is a table, figure or section; item a level or task by our names; value a number (score, drop and
        difficulty as fractions) or, where the paper claims an order, trends.MONOTONIC or NOT_MONOTONIC. strength is
        the sparsity of which a claim of no loss speaks, quote the claim.
    """
    return [
        {
            **{name: block.get(name) for name in ("place", "what", "setting", "task", "model", "strength", "quote")},
            "item": item,
            "compression": compression,
            "value": value,
        }
        for block in _blocks()
        for compression in block["compressions"]
        for item, value in block["values"].items()
    ]
