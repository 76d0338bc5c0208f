"""What several parts of the summary say alike: numbers, tables in Markdown, cautions."""

import re
from collections import Counter

from analysis.estimators import MIN_STRENGTHS
from analysis.table import Row, is_above_chance

YES_NO = {True: "yes", False: "**no**", None: ""}
ORDER = {True: "yes", False: "no", None: "cannot be told"}
SPARSITY_TOLERANCE = 0.01  # between the sparsity asked for and the one measured


def number(value: float | None) -> str:
    """Three decimals; empty for None."""
    return "" if value is None else f"{value:.3f}"


def with_bounds(value: float | None, low: float | None, high: float | None) -> str:
    """-0.345 [-0.844, 0.188]; an unknown bound is left empty, and the brackets where neither is known."""
    return number(value) if low is None and high is None else f"{number(value)} [{number(low)}, {number(high)}]"


def spearman_text(level: Row) -> str:
    """A curve's Spearman correlation, or why it has none.

    Args:
        level: with spearman and strengths, such as curves.curve_statistics.
    """
    if level["spearman"] is not None:
        return number(level["spearman"])
    count = len(level["strengths"])
    if count < MIN_STRENGTHS:
        return f"undefined: {count} point{'s' if count > 1 else ''}"
    return "undefined: the same score everywhere"


def markdown(head: list[str], body: list[list]) -> list[str]:
    """The lines of a Markdown table; bars, line breaks and "<" in cells are escaped."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _cell(value: object) -> str:
    return without_tags(" ".join(str(value).splitlines()).replace("|", "\\|"))


def without_tags(line: str) -> str:
    """A line of Markdown with every "<" outside `code` escaped, so that it begins no tag of HTML."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if place % 2 else re.sub(r"(?<!\\)<", r"\<", piece) for place, piece in enumerate(pieces))


def uneven_seeds(counts: Counter) -> str:
    """The end of a caution that points rest on different seeds; `counts` are numbers of points by seeds."""
    listed = "; ".join(f"{' '.join(map(str, seeds))}: {count}" for seeds, count in counts.most_common())
    return f"do not have the same seeds (seeds: number of points; {listed}), so differences hold the seeds' noise."


def misses_sparsity(point: Row) -> bool:
    """Whether the measured sparsity of a point is not the requested one."""
    measured = point["measured_sparsity"]
    return measured is not None and abs(measured - point["requested_sparsity"]) > SPARSITY_TOLERANCE


def dense_caution(runs: list[Row]) -> str | None:
    """The caution about drops relative to these dense runs; None where they are above chance."""
    learned = is_above_chance(runs)
    if learned is None:
        return "dense not compared with chance; a run lacks chance level or standard error."
    return None if learned else f"DENSE NOT ABOVE CHANCE ({against_chance(runs)}), so its drops mean nothing."


def against_chance(runs: list[Row]) -> str:
    """0.512, chance 0.500, standard error 0.010."""
    score = sum(row["score"] for row in runs) / len(runs)
    return f"{score:.3f}, chance {runs[0]['chance']:.3f}, standard error {runs[0]['stderr']:.3f}"
