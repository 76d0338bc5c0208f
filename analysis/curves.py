"""Curves of a table and their statistics: how fast a score falls, and whether harder levels fall faster."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from analysis import estimators
from analysis.names import LAYERS, ORDER, PART
from analysis.sizes import amount, plain_fraction
from analysis.table import KINDS, Row, compression_order, compression_rank, grouped

# By what a size is, its column.
BYTES, PLAIN = "bytes", "plain"
SIZES = {BYTES: "bytes_fraction", PLAIN: "plain_fraction"}
SIZE_COLUMNS = (
    "setting", "task", "model", "level", "difficulty", "metric", "compression", "magnitude_scope", "strength_kind",
    "strength", "bytes_fraction", "plain_fraction", "seeds", "num_examples", "mean_score", "dense_mean_score",
    "dense_above_chance", "chance", "relative_percent", "normalized_drop", "drop_low", "drop_high", "parent_quantized",
)  # fmt: skip
TWO_STRENGTHS = "two strengths give a difference, not a slope: measure a third"
TWO_AMOUNTS = "the strengths remove two amounts of weights, which give a difference, not a slope: measure a third"


def curves_by(table: Iterable[Row], *names: str) -> dict[tuple, list[Row]]:
    """The compressed points of a table by their values of `names`, without levels that are mere references."""
    compressed = (point for point in table if point["strength_kind"] is not None and not point.get("reference_only"))
    return grouped(compressed, names)


def levels_by(table: Iterable[Row], level: str, *names: str) -> dict[tuple, dict[Any, list[Row]]]:
    """curves_by of `names`, and within each by the column that is the level of difficulty."""
    return {key: {value: own for (value,), own in grouped(points, [level]).items()}
            for key, points in curves_by(table, *names).items()}  # fmt: skip


def domain_curves(table: list[Row]) -> dict[tuple[str, str, str, str | None], dict[str, list[Row]]]:
    """The curves of a domain_table: by kind of strength, condition, transfer and scope; then by level."""
    found = levels_by(table, "level", "strength_kind", "condition", "transfer", "magnitude_scope")
    return dict(sorted(found.items(), key=lambda own: KINDS.index(own[0][0])))


def level_curves(table: list[Row]) -> dict[tuple[str, str, str | None], dict[str, list[Row]]]:
    """The curves of a level_table: in the order of panels: by kind of strength, compression, scope; then level."""
    found = levels_by(table, "level", "strength_kind", "compression", "magnitude_scope")
    return dict(sorted(found.items(), key=lambda own: (KINDS.index(own[0][0]), compression_rank(own[0][1]),
                                                       own[0][2] != "layer")))  # fmt: skip


def curve_statistics(points: list[Row]) -> Row:
    """Statistics of one curve, over the means of its points.

    Returns:
        What the points share of their level, strengths and their amounts; spearman; and per unit of amount the
        theil_sen_slope of the normalized drop and the corrected_slope of the chance-corrected one. None where they are
        not defined.
    """
    amounts = [amount(point) for point in points]
    same = ("level", "difficulty", "data_fraction", "share", "dense_mean_score", "dense_above_chance", "chance")
    scores = [point["mean_score"] for point in points]
    return {
        **{name: points[0][name] for name in same if name in points[0]},
        "strengths": tuple(point["strength"] for point in points),
        "amounts": tuple(amounts),
        "spearman": None if None in amounts else estimators.spearman(amounts, scores),
        "theil_sen_slope": _slope(amounts, [point["normalized_drop"] for point in points]),
        "corrected_slope": _slope(amounts, [point["corrected_drop"] for point in points]),
    }


def _slope(amounts: list[float | None], drops: list[float | None]) -> float | None:
    return None if None in (*amounts, *drops) else estimators.theil_sen_slope(amounts, drops)


def corrected_levels(levels: list[Row]) -> list[Row]:
    """The same statistics with the chance-corrected slope as the slope, for slope_order."""
    return [{**level, "theil_sen_slope": level["corrected_slope"]} for level in levels]


def slope_order(levels: list[Row]) -> tuple[bool | None, str]:
    """Whether the slopes of levels that differ in nothing else steepen with difficulty, as the hypothesis says.

    Args:
        levels: curve_statistics of the levels to compare.
    Returns:
        True, False, or None where it cannot be told; and how many levels were compared, or why it cannot be told.
        Levels that are not comparable, or whose difficulty is not known, are left out (is_ranked).
    """
    kept = [level for level in levels if is_ranked(level)]
    if len(kept) < 2:
        return None, f"{len(kept)} of {len(levels)} levels can be compared"
    if len({level["strengths"] for level in kept}) > 1:
        return None, "the levels were measured at different strengths"
    if len(set(kept[0]["strengths"])) < estimators.MIN_STRENGTHS:
        return None, TWO_STRENGTHS
    if len(set(kept[0]["amounts"])) < estimators.MIN_STRENGTHS:  # of N:M, 2:4 and 4:8 are one
        return None, TWO_AMOUNTS
    difficulty = [level["difficulty"] for level in kept]
    if len(set(difficulty)) < len(difficulty):
        return None, "several levels have the same difficulty"
    in_order = estimators.is_monotonic(difficulty, [level["theil_sen_slope"] for level in kept])
    return in_order, f"{len(kept)} of {len(levels)} levels compared"


def order_cells(levels: list[Row]) -> list[str]:
    """Two cells of a table: whether the slopes steepen with difficulty, and what this rests on (slope_order)."""
    in_order, basis = slope_order(levels)
    if in_order:
        basis += f"; by luck alone once in {math.factorial(sum(map(is_ranked, levels)))}"
    if unknown := unknown_difficulty(levels):
        basis += f"; without {unknown}, of unknown difficulty"
    return [ORDER[in_order], basis]


def is_comparable(level: Row) -> bool:
    """Whether a level's slope (curve_statistics) means something: it has one, and its dense model learned the task."""
    return level["theil_sen_slope"] is not None and level["dense_above_chance"] is not False


def is_ranked(level: Row) -> bool:
    """Whether a level has a place in the order of slopes: it is comparable, and its difficulty is known."""
    return is_comparable(level) and level["difficulty"] is not None


def unknown_difficulty(levels: Iterable[Row]) -> str:
    """The names of the levels whose difficulty is not known, each once; "" where there are none."""
    return ", ".join(dict.fromkeys(level["level"] for level in levels if level["difficulty"] is None))


def size_table(table: Sequence[Row], size: str = BYTES) -> list[Row]:
    """The compressed points of a level_table whose size is known; empty unless at least two kinds of methods have some.

    Args:
        size: one of SIZES.
    Returns:
        Points with plain_fraction, levels from easy to hard. The kinds of methods are pruning, quantization, low rank.
    """
    compressed = [point for point in table if point["strength_kind"] is not None and not point["reference_only"]]
    compressed = [point for point in compressed if f"{PART}{LAYERS}" not in point["compression"]]  # of the whole model
    points = [{**point, "plain_fraction": plain_fraction(point)} for point in compressed]
    points = [point for point in points if point[SIZES[size]] is not None]
    kinds = {"pruning" if point["strength_kind"] in ("sparsity", "nm") else point["strength_kind"] for point in points}
    return points if len(kinds) > 1 else []


def size_curves(points: Sequence[Row]) -> dict[str, dict[tuple[str, str, str | None], list[Row]]]:
    """By level, then by compression, kind of strength and scope in the order of the methods; from weak to strong."""
    found: dict[str, dict[tuple, list[Row]]] = {point["level"]: {} for point in points}
    for point in sorted(points, key=lambda point: compression_rank(point["compression"])):
        key = point["compression"], point["strength_kind"], point["magnitude_scope"]
        found[point["level"]].setdefault(key, []).append(point)
    return {
        level: {key: sorted(own, key=compression_order) for key, own in of_level.items()}
        for level, of_level in found.items()
    }


def size_spearman(points: Sequence[Row]) -> float | None:
    """Rank correlation of the strength with the loss of score; None as in estimators.spearman.

    It is that of strengths, not of sizes, because all ranks that save nothing have the same size.
    """
    strengths = [compression_order(point)[1] for point in points]
    return estimators.spearman(strengths, [point["mean_score"] for point in points])
