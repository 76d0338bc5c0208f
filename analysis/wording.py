"""How summary.md says things: names, numbers, tables in Markdown, and cautions that several kinds of runs share."""

import re
from collections import Counter

from analysis.drawing import compression_style, percent
from analysis.estimators import MIN_STRENGTHS
from analysis.tables import Row, is_above_chance

# A larger difference means that the horizontal axis is not what it says.
SPARSITY_TOLERANCE = 0.01


def compression_name(point: Row) -> str:
    name = compression_style(point["compression"])["label"]
    return name if point["magnitude_scope"] is None else f"{name} (threshold: {point['magnitude_scope']})"


def strength_text(point: Row) -> str:
    """50 %, 2:4, 4 bits, rank 64."""
    kind, strength = point["strength_kind"], point["strength"]
    if kind == "sparsity":
        return percent(strength)
    return {None: "", "nm": f"{strength}", "bits": f"{strength} bits", "rank": f"rank {strength}"}[kind]


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def spearman_text(level: Row) -> str:
    """A curve's Spearman correlation, or why it has none; `level` holds spearman and strengths."""
    if level["spearman"] is not None:
        return number(level["spearman"])
    count = len(level["strengths"])
    if count < MIN_STRENGTHS:
        return f"undefined: {count} point{'s' if count > 1 else ''}"
    return "undefined: the same score everywhere"


def markdown(head: list[str], body: list[list]) -> list[str]:
    """The lines of a table; a cell's bars and line breaks do not end it, and "<" begins no tag."""
    lines = [head, ["---"] * len(head), *body]
    return ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]


def _cell(value: object) -> str:
    return without_tags(" ".join(str(value).splitlines()).replace("|", "\\|"))


def without_tags(line: str) -> str:
    """A line of Markdown whose "<" begins no tag of HTML; in `code` it begins none anyway."""
    pieces = re.split(r"(`[^`]*`)", line)
    return "".join(piece if place % 2 else re.sub(r"(?<!\\)<", r"\<", piece) for place, piece in enumerate(pieces))


def uneven_seeds(counts: Counter) -> str:
    listed = "; ".join(f"{' '.join(map(str, seeds))}: {count}" for seeds, count in counts.most_common())
    return f"do not have the same seeds (seeds: number of points; {listed}), so differences hold the seeds' noise."


def misses_sparsity(point: Row) -> bool:
    measured = point["measured_sparsity"]
    return measured is not None and abs(measured - point["requested_sparsity"]) > SPARSITY_TOLERANCE


def dense_caution(runs: list[Row]) -> str | None:
    """What to beware of in drops from these dense runs; None where they are above chance."""
    learned = is_above_chance(runs)
    if learned is None:
        return "dense not compared with chance; a run lacks chance level or standard error."
    return None if learned else f"DENSE NOT ABOVE CHANCE ({against_chance(runs)}), so its drops mean nothing."


def against_chance(runs: list[Row]) -> str:
    score = sum(row["score"] for row in runs) / len(runs)
    return f"{score:.3f}, chance {runs[0]['chance']:.3f}, standard error {runs[0]['stderr']:.3f}"


def with_bounds(value: float | None, low: float | None, high: float | None) -> str:
    """-0.345 [-0.844, 0.188], with a blank for a bound that is not known; without brackets where neither is."""
    return number(value) if low is None and high is None else f"{number(value)} [{number(low)}, {number(high)}]"
