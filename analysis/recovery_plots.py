"""Figures of what comes back of a pruned language model: perplexity while training, and levels before and after."""

import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from analysis import style
from analysis.names import compression_name, set_title, strength_text
from analysis.recovery import AT_CHANCE, METHOD
from analysis.style import TRANSFER_STYLE
from analysis.table import DENSE, Row, grouped

BEFORE = {"label": "Before training: pruned minus dense", "color": "0.45", "marker": "x"}
SHIFT = 0.17  # between the points of one level


def perplexity_curves(table: list[Row]) -> Figure:
    """Perplexity on held-out text while training, a panel per compression and strength, the control in each.

    All curves of a panel are means over the same seeds: transfers that were run with others stand in a panel of theirs.

    Args:
        table: recovery.curve_table of one model and text.
    Raises:
        ValueError: no pruned model was trained.
    """
    shown: dict[tuple, list[Row]] = {}
    for (*method, _), own in grouped([row for row in table if row["transfer"] != DENSE], (*METHOD, "transfer")).items():
        shown.setdefault((tuple(method), tuple(sorted({row["seed"] for row in own}))), []).extend(own)
    if not shown:
        raise ValueError("the runs hold a control alone, and no pruned model that was trained")
    seeds_of_panels = {seeds for _, seeds in shown}
    with style.style():
        figure = Figure(figsize=(max(6.0, 3.6 * len(shown) + 0.6), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for ((_, seeds), points), axes in zip(shown.items(), panels, strict=True):
            controls = [row for row in table if row["transfer"] == DENSE and row["seed"] in seeds]
            for (transfer,), own in grouped([*controls, *points], ["transfer"]).items():
                look = TRANSFER_STYLE[transfer]
                _curve(axes, own, look | ({"label": f"{look['label']}, the control"} if transfer == DENSE else {}))
            told = f"\nseed {' '.join(map(str, seeds))}" if len(seeds_of_panels) > 1 else ""
            axes.set_title(f"{compression_name(points[0])}, {strength_text(points[0])}{told}")
            axes.set_xlabel("Optimizer steps")
        axes = panels[0]
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylabel("Perplexity (lower is better)")
        _legend(figure, panels)
        first = table[0]
        tokens = max(row["tokens"] for row in table)
        style.caption(
            figure,
            f"{first['model']} on {first['windows']} windows of {first['text']}; trained on {tokens:,} tokens.\n"
            f"{seeds_note(seeds_of_panels)} Bands: 95 % intervals over windows, whose difficulty all curves share.",
        )  # fmt: skip
    return figure


def seeds_note(seeds_of_panels: set[tuple[int, ...]]) -> str:
    """Over which seeds all curves of a panel are means."""
    if len(seeds_of_panels) > 1:
        return "Means over the seeds that the titles name."
    (seeds,) = seeds_of_panels
    return "One seed." if len(seeds) == 1 else f"Means over {len(seeds)} seeds."


def _curve(axes: Axes, rows: list[Row], look: dict) -> None:
    """The geometric mean over seeds at every step, with the mean interval."""
    steps, means, bands = [], [], []
    for (step,), own in grouped(rows, ["step"]).items():
        steps.append(step)
        means.append(_mean(own, "perplexity"))
        bands.append((_mean(own, "low"), _mean(own, "high")))
    axes.plot(steps, means, **look)
    if all(row["low"] is not None for row in rows):
        style.draw_band(axes, steps, bands, look["color"])


def _mean(rows: list[Row], name: str) -> float | None:
    if any(row[name] is None for row in rows):
        return None
    return math.exp(sum(math.log(row[name]) for row in rows) / len(rows))


def levels_before_and_after(table: list[Row]) -> Figure:
    """What every level lost by pruning, and what is lost after training: a row per setting, a column per method.

    Args:
        table: recovery.recovery_level_table of one model and seed.
    Raises:
        ValueError: no level was measured.
    """
    if not table:
        raise ValueError("no recovered model was measured on a setting, so there is nothing to draw")
    methods, settings = grouped(table, METHOD), grouped(table, ["setting", "task"])
    with style.style():
        size = (max(6.0, 3.9 * len(methods) + 0.8), 2.9 * len(settings) + 1.3)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(settings), len(methods), sharey="row", squeeze=False)
        for (setting, task), line in zip(settings, panels, strict=True):
            for method, axes in zip(methods, line, strict=True):
                own = [row for row in methods[method] if (row["setting"], row["task"]) == (setting, task)]
                _levels(axes, own)
                if own:
                    axes.set_title(f"{compression_name(own[0])}, {strength_text(own[0])}")
            name = set_title(setting, task).replace(": ", ":\n")
            line[0].set_ylabel(f"{name}\nPoints of score")
        _legend(figure, panels.flat)
        first = table[0]
        style.caption(
            figure,
            f"{first['model']} after {first['steps']} steps, minus its control, the dense model trained "
            "alike; 95 % intervals over groups of items.\nFaint: levels at which the dense model or the control is not "
            "above chance, so that nothing can be said.",
        )  # fmt: skip
    return figure


def _levels(axes: Axes, rows: list[Row]) -> None:
    places = {level: place for place, level in enumerate(dict.fromkeys(row["level"] for row in rows))}
    transfers = list(dict.fromkeys(row["transfer"] for row in rows))
    axes.axhline(0, color="0.3", linewidth=1, zorder=1)
    for row in rows:
        if row["transfer"] == next((own["transfer"] for own in rows if own["lost"] is not None), None):
            _point(axes, places[row["level"]] - SHIFT, row, "lost", BEFORE)
        look = TRANSFER_STYLE[row["transfer"]]
        _point(axes, places[row["level"]] + SHIFT * transfers.index(row["transfer"]), row, "left",
               {**look, "label": f"After training: {look['label']} minus control"})  # fmt: skip
    axes.set_xticks(list(places.values()), [level.replace(", ", ",\n") for level in places])
    axes.set_xlim(-0.5, len(places) - 0.5 + SHIFT)


def _point(axes: Axes, where: float, row: Row, name: str, look: dict) -> None:
    color, faint = look["color"], 0.3 if row["verdict"] == AT_CHANCE else 1.0
    axes.plot([where], [100 * row[name]], linestyle="none", marker=look["marker"], color=color, label=look["label"],
              alpha=faint)  # fmt: skip
    if row[f"{name}_low"] is not None:
        axes.vlines(where, 100 * row[f"{name}_low"], 100 * row[f"{name}_high"], color=color, alpha=0.6 * faint)


def _legend(figure: Figure, panels: object) -> None:
    lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    handles = [
        # a point in the panel may be faint
        Line2D([], [], label=label, color=line.get_color(), marker=line.get_marker(), linestyle=line.get_linestyle())
        for label, line in lines.items() if not label.startswith("_")
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
