"""The paper's figure 7 and appendix E: pruning, quantization and low rank on one axis, the size that is left.

Works on the runs of any setting without training. A curve is one compression, kind of strength and magnitude scope at
one level. Where a point stands is its size in bytes (storage.bytes_fraction, as analysis.levels.level_tables gives it),
or the plain ratio that its strength names (storage.plain_fraction), as in the paper.
"""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import drawing, estimators, layout, storage, tables
from analysis.levels import level_figures, level_tables
from analysis.tables import Row
from analysis.uncertainty import trends
from analysis.wording import markdown, spearman_text

SIZE_COLUMNS = (
    "setting", "task", "model", "level", "difficulty", "metric", "compression", "magnitude_scope", "strength_kind",
    "strength", "bytes_fraction", "plain_fraction", "seeds", "num_examples", "mean_score", "dense_mean_score",
    "dense_above_chance", "chance", "relative_percent", "normalized_drop", "drop_low", "drop_high",
)  # fmt: skip
MAX_COLUMNS = 3
BYTES, PLAIN = "bytes", "plain"
SIZES = {BYTES: "bytes_fraction", PLAIN: "plain_fraction"}  # by what a size is, its column
AXIS = {
    BYTES: "Size (% of the dense weights' bytes)", PLAIN: "Size (% of dense: 1 - sparsity, N/M, bits/16, parameters)"
}  # fmt: skip

Curve = tuple[str, str, str | None]  # compression, kind of strength, magnitude scope


def size_table(table: Sequence[Row], size: str = BYTES) -> list[Row]:
    """The compressed points of a level_table whose size is known; empty unless they differ in what they do to weights.

    Args:
        size: one of SIZES.
    Returns:
        Points of SIZE_COLUMNS and whatever else they have, levels from easy to hard, without reference levels.
    """
    compressed = [point for point in table if point["strength_kind"] is not None and not point["reference_only"]]
    points = [{**point, "plain_fraction": storage.plain_fraction(point)} for point in compressed]
    points = [point for point in points if point[SIZES[size]] is not None]
    means = {"pruning" if point["strength_kind"] in ("sparsity", "nm") else point["strength_kind"] for point in points}
    return points if len(means) > 1 else []


def size_curves(points: Sequence[Row]) -> dict[str, dict[Curve, list[Row]]]:
    """By level and Curve, in the order of the methods, from weak to strong."""
    order = sorted(points, key=lambda point: tables.compression_rank(point["compression"]))
    found: dict[str, dict[Curve, list[Row]]] = {point["level"]: {} for point in points}
    for point in order:
        key = point["compression"], point["strength_kind"], point["magnitude_scope"]
        found[point["level"]].setdefault(key, []).append(point)
    for curves in found.values():
        for key, own in curves.items():
            curves[key] = sorted(own, key=tables.compression_order)
    return found


def size_spearman(points: Sequence[Row]) -> float | None:
    """Rank correlation of the strength with the loss of score; see estimators.spearman for None.

    Of strengths, not of sizes: all ranks that save nothing have the same size. The order is the same otherwise.
    """
    strengths = [tables.compression_order(point)[1] for point in points]
    return estimators.spearman(strengths, [point["mean_score"] for point in points])


def curve_label(key: Curve) -> str:
    """Magnitude; Magnitude, N:M; Magnitude (global); GPTQ."""
    compression, kind, scope = key
    name = drawing.compression_style(compression)["label"]
    return name + (", N:M" if kind == "nm" else "") + (" (global)" if scope == "global" else "")


def by_size(rows: list[Row], size: str = BYTES) -> Figure:
    """Each compression's score by what is left of the dense model, a panel per level of difficulty.

    Args:
        rows: runs of one setting, model and task; those with training and perplexity are passed over.
        size: one of SIZES.
    Raises:
        ValueError: fewer than two of pruning, quantization and low rank, or runs of several settings, models or tasks.
    Source: paper fig. 7, table 2 and appendix E, whose axis is the compression ratio. Added: one axis for all methods
        with what finding and scaling the weights takes, the bands, the chance floor.
    """
    sets = level_tables.level_sets(rows)
    if len(sets) > 1:
        raise ValueError(f"the runs belong in {len(sets)} figures; take one of level_tables.level_sets")
    return draw(size_table(trends.level_table(rows), size), size)


def draw(points: list[Row], size: str = BYTES) -> Figure:
    """The figure by_size of one size_table."""
    if not points:
        raise ValueError("the runs hold fewer than two of pruning, quantization and low rank: nothing to compare")
    found = size_curves(points)
    columns = min(MAX_COLUMNS, len(found))
    lines = math.ceil(len(found) / columns)
    legend_lines = 1 + math.ceil(max(len(curves) for curves in found.values()) / 2)
    everything = [own for curves in found.values() for own in curves.values()]
    with drawing.style(drawing.WIDE):
        inches = (max(5.2, 4.5 * columns), lines * (2.9 + 0.19 * legend_lines) + 0.9)
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False)
        title = level_figures.set_title(points[0]["setting"], points[0]["task"])
        figure.suptitle(f"{title}, by size", fontsize=12, weight="bold")
        for axes in list(grid.flat)[len(found) :]:
            axes.set_axis_off()
        for axes, (level, curves) in zip(grid.flat, found.items(), strict=False):
            _panel(axes, level, curves, SIZES[size])
            drawing.limits(axes, everything, level_figures.band)
            _size_axis(axes, points, size)
            drawing.slope_legend(axes, "Spearman of compression and loss")
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel(f"{level_figures.metric_name(points)} (% of dense)")
        drawing.caption(figure, _note(points, size))
    return figure


def _panel(axes: Axes, level: str, curves: dict[Curve, list[Row]], column: str) -> None:
    drawing.dense_line(axes, drawing.COMPRESSION_STYLE["dense"])
    for key, points in curves.items():
        look = drawing.compression_look(key[0], key[2])
        if key[1] == "nm":
            look = {**look, "linestyle": ":", "markerfacecolor": "white"}
        value = size_spearman(points)
        shown = "none" if value is None else f"{value:+.2f}"
        positions = {point["strength"]: 100 * point[column] for point in points}
        drawing.curve(axes, positions, points, {**look, "label": f"{curve_label(key)}: {shown}"}, level_figures.band)
    some = next(iter(curves.values()))
    drawing.chance_line(axes, some, "0.3")
    drawing.warning(axes, {level: some}, "dense run")
    axes.set_title(layout.title(level))


def _size_axis(axes: Axes, points: list[Row], size: str) -> None:
    """From all on the left to nothing on the right, so that scores fall to the right as in all figures."""
    sizes = [100 * point[SIZES[size]] for point in points]
    low, high = min(*sizes, 0), max(*sizes, 100)
    axes.set_xlim(high + 3, low - 3)
    axes.set_xlabel(AXIS[size])


def _note(points: list[Row], size: str) -> str:
    counted = (
        "with a bit per weight that says which are kept, with the scales and zero points of groups, of both factors of "
        "a low rank"
        if size == BYTES
        else "the share that the strength names, without what finding or scaling them takes"
    )
    return (
        f"{points[0]['model']}. Size of the compressed weights: {counted}. Band: {level_figures.band_note(points)}"
        ". Dotted grey: chance. Spearman: 1 where every stronger compression loses more."
    )


def summary_lines(points: list[Row]) -> list[str]:
    """Spearman's correlation per level and compression as Markdown, laid out as table 2 of the paper."""
    found = size_curves(points)
    keys = list(dict.fromkeys(key for curves in found.values() for key in curves))
    body = [
        [level, *(spearman_text(_statistics(curves[key])) if key in curves else "" for key in keys)]
        for level, curves in found.items()
    ]
    return [
        "",
        "### Pruning, quantization and low rank (paper: section 4, table 2, appendix E)",
        "",
        "Spearman's rank correlation of the strength of compression with the loss of score, over the means of the "
        "seeds: 1 where every stronger compression loses more.",
        "",
        *markdown(["level", *map(curve_label, keys)], body),
    ]


def _statistics(points: list[Row]) -> Row:
    return {"spearman": size_spearman(points), "strengths": tuple(point["strength"] for point in points)}
