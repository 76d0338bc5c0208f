"""Figures that compare compressions on other axes than strength and score: by size, flips, and perplexity."""

import math
from collections.abc import Mapping

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from analysis import layout, style
from analysis.curves import BYTES, PLAIN, SIZES, curves_by, size_curves, size_spearman
from analysis.names import set_title
from analysis.sizes import NM_PAIR
from analysis.style import COMPRESSION_STYLE
from analysis.table import KINDS, Row, compression_rank, grouped

FEWEST_FLIPS = "fewest flips possible"

SIZE_AXIS = {
    BYTES: "Size (% of the dense weights' bytes)",
    PLAIN: "Size (% of dense: 1 - sparsity, N/M, bits/16, parameters)",
}


def by_size(points: list[Row], size: str = BYTES) -> Figure:
    """Each compression's score by what is left of the dense model, a panel for each level of difficulty.

    Args:
        points: a curves.size_table of one setting, model and task, with intervals.
        size: one of curves.SIZES.
    Raises:
        ValueError: no points, which means fewer than two of pruning, quantization and low rank.
    Source: paper fig. 7, table 2 and appendix E, whose axis is the compression ratio. Added: one axis for all methods
        with what finding and scaling the weights takes, the bands, the chance floor.
    """
    if not points:
        raise ValueError("the runs hold fewer than two of pruning, quantization and low rank: nothing to compare")
    found = size_curves(points)
    columns = min(3, len(found))
    lines = math.ceil(len(found) / columns)
    legend_lines = 1 + math.ceil(max(map(len, found.values())) / 2)
    everything = [own for of_level in found.values() for own in of_level.values()]
    with style.style(style.WIDE):
        inches = (max(5.2, 4.5 * columns), lines * (2.9 + 0.19 * legend_lines) + 0.9)
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False)
        title = set_title(points[0]["setting"], points[0]["task"])
        figure.suptitle(f"{title}, by size", fontsize=12, weight="bold")
        for axes in list(grid.flat)[len(found) :]:
            axes.set_axis_off()
        for axes, (level, of_level) in zip(grid.flat, found.items(), strict=False):
            _size_panel(axes, level, of_level, SIZES[size])
            style.limits(axes, everything, style.band)
            _size_axis(axes, points, size)
            style.slope_legend(axes, "Spearman of compression and loss")
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel(f"{style.metric_name(points)} (% of dense)")
        style.caption(figure, _size_caption(points, size))
    return figure


def curve_label(key: tuple[str, str, str | None]) -> str:
    """Magnitude; Magnitude, N:M; Magnitude (global); GPTQ."""
    compression, kind, scope = key
    name = style.compression_style(compression)["label"]
    return name + (", N:M" if kind in ("nm", NM_PAIR) else "") + (" (global)" if scope == "global" else "")


def _size_panel(axes: Axes, level: str, found: dict[tuple, list[Row]], column: str) -> None:
    style.dense_line(axes, COMPRESSION_STYLE["dense"])
    for key, points in found.items():
        look = style.compression_look(key[0], key[2])
        if key[1] in ("nm", NM_PAIR):
            look = {**look, "linestyle": ":", "markerfacecolor": "white"}
        value = size_spearman(points)
        shown = "none" if value is None else f"{value:+.2f}"
        positions = {point["strength"]: 100 * point[column] for point in points}
        style.curve(axes, positions, points, {**look, "label": f"{curve_label(key)}: {shown}"}, style.band)
    some = next(iter(found.values()))
    style.chance_line(axes, some, "0.3")
    style.warning(axes, {level: some}, "dense run")
    axes.set_title(layout.title(level))


def _size_axis(axes: Axes, points: list[Row], size: str) -> None:
    """The axis runs from all on the left to nothing on the right, so that scores fall to the right as elsewhere."""
    sizes = [100 * point[SIZES[size]] for point in points]
    low, high = min(*sizes, 0), max(*sizes, 100)
    axes.set_xlim(high + 3, low - 3)
    axes.set_xlabel(SIZE_AXIS[size])


def _size_caption(points: list[Row], size: str) -> str:
    counted = (
        "with a bit per weight that says which are kept, with the scales and zero points of groups, of both factors of "
        "a low rank, of a checkpoint as in its files"
        if size == BYTES
        else "the share that the strength names, without what finding or scaling them takes"
    )
    return (
        f"{style.model_text(points)}. Size of the compressed weights: {counted}. Band: {style.band_note(points)}"
        ". Dotted grey: chance. Spearman: 1 where every stronger compression loses more."
    )


def flips(sets: Mapping[str, list[Row]]) -> Figure:
    """Flips against the change of the score, a panel for each setting and model, a point for each level and strength.

    Args:
        sets: by title, a flips.flip_table; points that are not compared with a dense run are left out.
    Raises:
        ValueError: no point is compared.
    Source: Dutta et al. (2024), figure 1, which sets accuracy beside flips; here on two axes, with intervals.
    """
    shown = {title: [row for row in rows if row["flips"] is not None] for title, rows in sets.items()}
    shown = {title: rows for title, rows in shown.items() if rows}
    if not shown:
        raise ValueError("no compressed run has items in common with a dense run, so there are no flips to draw")
    models = _models(shown)
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    with style.style(style.WIDE):
        figure = Figure(figsize=(max(5.5, 4.0 * columns), 3.5 * lines + 1.1), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(lines, columns, squeeze=False)
        for axes in list(grid.flat)[len(shown) :]:
            axes.set_axis_off()
        handles: dict[str, Artist] = {}
        for axes, (title, rows) in zip(grid.flat, shown.items(), strict=False):
            handles |= _flip_panel(axes, rows)
            # The caption names a model that all panels share.
            axes.set_title(layout.title(title.removesuffix(f", {models[0]}") if len(models) == 1 else title))
            axes.set_xlabel("Change of the score (points)")
            if axes.get_subplotspec().is_first_col():
                axes.set_ylabel("Items that flip (%)")
        order = sorted(handles, key=lambda name: (name == FEWEST_FLIPS, list(handles).index(name)))
        figure.legend(
            handles=[handles[name] for name in order], labels=order, loc="outside upper center", frameon=False,
            ncols=min(len(handles), 2 * columns + 1),
        )  # fmt: skip
        style.caption(figure, _flip_caption(shown))
    return figure


def _flip_panel(axes: Axes, rows: list[Row]) -> dict[str, Artist]:
    """Draw the points of one setting and model; returns what stands in the legend, by label."""
    handles = {}
    for (compression, scope), own in grouped(
        sorted(rows, key=lambda row: compression_rank(row["compression"])), ["compression", "magnitude_scope"]
    ).items():
        look = {"markersize": 4.5, **style.compression_look(compression, scope), "linestyle": "none"}
        label = look.pop("label")
        where, heights = ([100 * row[name] for row in own] for name in ("score_change", "flips"))
        (handles[label],) = axes.plot(where, heights, **look, zorder=3)
        for row in own:
            bars = {"color": look["color"], "alpha": 0.35, "linewidth": 0.9, "zorder": 2}
            for name, draw, at in (("score_change", axes.hlines, "flips"), ("flips", axes.vlines, "score_change")):
                if row[f"{name}_low"] is not None and row[f"{name}_high"] is not None:
                    draw(100 * row[at], 100 * row[f"{name}_low"], 100 * row[f"{name}_high"], **bars)
    bounds = [100 * (row[f"score_change{end}"] or 0) for row in rows for end in ("", "_low", "_high")]
    low, high = 1.06 * min(-1.0, *bounds), 1.06 * max(1.0, *bounds)
    (handles[FEWEST_FLIPS],) = axes.plot(
        [low, 0, high], [abs(low), 0, abs(high)], color="0.3", linestyle=":", linewidth=1.2, zorder=1
    )
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=1)
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    highest = max(1.0, *(100 * (row[name] or 0) for row in rows for name in ("flips", "flips_high")))
    axes.set_ylim(-0.03 * highest, 1.06 * highest)
    return handles


def _models(shown: Mapping[str, list[Row]]) -> list[str]:
    return list(dict.fromkeys(row["model"] for rows in shown.values() for row in rows))


def _flip_caption(shown: Mapping[str, list[Row]]) -> str:
    everything = [row for rows in shown.values() for row in rows]
    told = f"{style.model_text(everything)}. " if len(_models(shown)) == 1 else ""
    return (
        f"{told}A point for each level and strength. Bars: paired 95 % intervals over groups of items and seeds. "
        "Dotted: the fewest flips that such a change needs; at 0, the higher a point, the more answers change unseen."
    )


def perplexity(table: list[Row]) -> Figure:
    """Perplexity of the compressed models, a panel per kind of strength, all on one logarithmic axis.

    Args:
        table: the table.perplexity_table of one model and text.
    Raises:
        ValueError: no compressed run.
    """
    by_compression = sorted(table, key=lambda point: compression_rank(point["compression"]))
    found = curves_by(by_compression, "strength_kind", "compression", "magnitude_scope")
    if not found:
        raise ValueError("the runs hold no perplexity of a compressed model, so there is nothing to draw")
    kinds = [kind for kind in KINDS if any(key[0] == kind for key in found)]
    with style.style():
        figure = Figure(figsize=(max(5.5, 2.9 * len(kinds) + 0.6), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for kind, axes in zip(kinds, panels, strict=True):
            own = {key: points for key, points in found.items() if key[0] == kind}
            positions = style.strength_axis(axes, kind, list(own.values()))
            _perplexity_references(axes, table)
            for (_, compression, scope), points in own.items():
                _perplexity_curve(axes, positions, points, style.compression_look(compression, scope))
            axes.set_title(style.KIND_TITLE[kind])
        _perplexity_axis(panels[0], table)
        handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        lines = math.ceil(len(handles) / max(2, int(figure.get_figwidth() / 1.7)))
        columns = math.ceil(len(handles) / lines)
        figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=columns, frameon=False)
        style.caption(figure, _perplexity_caption(table))
    return figure


def _perplexity_references(axes: Axes, table: list[Row]) -> None:
    for point in table:
        if point["compression"] == "dense":
            look = COMPRESSION_STYLE["dense"]
            axes.axhline(
                point["mean_perplexity"], **{**look, "label": f"{look['label']}: {point['mean_perplexity']:.3g}"},
                zorder=1.5,
            )  # fmt: skip
    if _worse_than_nothing(table):
        label = f"Knows nothing: {table[0]['vocabulary']}"
        axes.axhline(table[0]["vocabulary"], color="0.3", linestyle=":", linewidth=1.2, zorder=1, label=label)


def _worse_than_nothing(table: list[Row]) -> bool:
    return any(point["highest_perplexity"] > point["vocabulary"] for point in table)


def _perplexity_curve(axes: Axes, positions: dict[float | str, float], points: list[Row], look: dict) -> None:
    where = [positions[point["strength"]] for point in points]
    axes.plot(where, [point["mean_perplexity"] for point in points], **look)
    if any(len(point["seeds"]) > 1 for point in points):
        bands = [(point["lowest_perplexity"], point["highest_perplexity"]) for point in points]
        style.draw_band(axes, where, bands, look["color"])


def _perplexity_axis(axes: Axes, table: list[Row]) -> None:
    """Logarithmic, with the marks 1, 2, 5 where they are few enough to be read."""
    heights = [point[name] for point in table for name in ("lowest_perplexity", "highest_perplexity")]
    heights += [table[0]["vocabulary"]] if _worse_than_nothing(table) else []
    margin = max(1.1, (max(heights) / min(heights)) ** 0.06)
    low, high = min(heights) / margin, max(heights) * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylabel("Perplexity (lower is better)")


def _perplexity_caption(table: list[Row]) -> str:
    first = table[0]
    dense = "" if first["compression"] == "dense" else "NO DENSE RUN. "
    windows = f"{first['windows']} windows of {first['text']}"
    return f"{style.model_text(table)} on {windows}. {dense}{style.seeds_note(table)}"
