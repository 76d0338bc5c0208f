"""Figures of fine-tuned models on other axes: minorities against majorities, lines between models."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import layout, style
from analysis.contrasts import MEAN
from analysis.estimators import MEAN_OF_ENDS, STRAIGHT_LINE
from analysis.lines import CONNECTED_ERROR, LINE_KEY
from analysis.names import percent, strength_text, task_name
from analysis.plots import domain_columns, domain_looks
from analysis.table import KINDS, Row, compression_order

PAIR_STYLE = {
    "dense-sparse": {"label": "Sparse Transfer", "color": "#0072B2", "marker": "s"},
    "dense-pruned": {"label": "Pruned, not trained on", "color": "#D55E00", "marker": "^"},
    "dense-dense": {"label": "Dense Transfer, another seed", "color": "#555555", "marker": "o"},
}
OTHER_COLOR = "#6A3D9A"
PALEST = 0.55  # share of white in the colour of the weakest of several strengths
PANELS = {
    "score": "Score",
    "validation_loss": "Validation loss",
    "train_loss": "Training loss",
}
BARRIERS = {"error": "Barrier in validation\nerror (1 - score)", "loss": "Barrier in\nvalidation loss"}
HEIGHTS = (1.0, 1.0, 1.0, 0.75, 0.75)
STEEP = 30  # a loss that grows by so many times is drawn on a logarithmic axis
FAR_BELOW = 1.0  # a chance level so many ranges of the curves below them is not drawn
CHANCE_ROOM = 0.02
LONGEST_NAME = 24  # letters of a domain in a legend


def minorities(effects: list[Row], domains: list[Row]) -> Figure:
    """How much more of its score above chance a domain loses as the minority than as the majority, by strength.

    Args:
        effects, domains: the contrasts.minority_table and domain_table of one setting, model and task.
    Raises:
        ValueError: no domain was trained on with two shares.
    """
    table = [row for row in effects if row["corrected_effect"] is not None]
    if not table:
        raise ValueError("no domain stands in two mixtures with different shares, each with a dense run above chance")
    keys = ("transfer", "magnitude_scope")
    places = {
        kind: list(dict.fromkeys(tuple(row[key] for key in keys) for row in table if row["strength_kind"] == kind))
        for kind in KINDS
    }
    looks = {**domain_looks(domains), MEAN: {"color": "0.15", "marker": "*", "linewidth": 2.4}}
    with style.style():
        columns = domain_columns(list(places.values()))
        width = min(5.2, max(3.4, 11 / columns))
        figure, panels = style.make_panels(places, columns, size=(width, 0.62 * width + 1.0 + 0.19 * len(looks)))
        figure.suptitle(f"Minority against majority\n{table[0]['task']}", fontsize=12, weight="bold")
        for (kind, place), axes in panels.items():
            own = [row for row in table if (row["strength_kind"], *(row[key] for key in keys)) == (kind, *place)]
            positions = style.strength_axis(axes, kind, [own])
            axes.axhline(0, color="0.3", linewidth=1, zorder=1.5)
            for level, look in looks.items():
                _effect_curve(axes, positions, [row for row in own if row["level"] == level], look)
            axes.set_title(style.transfer_title(*place))
            style.slope_legend(axes, "domain: its smallest and largest share", 1)
        _one_range(list(panels.values()))
        style.label_outer(panels, "Minority's drop minus majority's\n(% of dense score above chance)")
        style.caption(figure, _minority_caption(table))
    return figure


def _effect_curve(axes: Axes, positions: dict[float | str, float], rows: list[Row], look: dict) -> None:
    if not rows:
        return
    where = [positions[row["strength"]] for row in rows]
    label = layout.shortened(rows[0]["level"], LONGEST_NAME)
    if label != MEAN:
        label += ": " + " and ".join(percent(rows[0][f"{side}_share"]) for side in ("minority", "majority"))
    axes.plot(where, [100 * row["corrected_effect"] for row in rows], **look, label=label)
    bounds = [_effect_band(row) for row in rows]
    if all(bound is not None for bound in bounds):
        style.draw_band(axes, where, bounds, look["color"])


def _effect_band(row: Row) -> tuple[float, float] | None:
    """The interval over items, widened to the seeds' range; None without either."""
    known = [row[name] for name in ("corrected_effect_low", "corrected_effect_high") if row[name] is not None]
    known += [row[name] for name in ("lowest_seed_effect", "highest_seed_effect") if row[name] is not None]
    return (100 * min(known), 100 * max(known)) if known else None


def _one_range(panels: list[Axes]) -> None:
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    for axes in panels:
        axes.set_ylim(low, high)


def _minority_caption(table: list[Row]) -> str:
    return (
        f"{table[0]['model']}. The same domain and items in two mixtures: what is lost of the dense score above chance "
        "where its share of the training rows is smallest, minus the same where it is largest; below 0 the minority "
        f"loses more. {style.seeds_text(table)} Band: 95 % interval over items, widened to the range of the seeds."
    )


def lines_between_models(table: list[Row], barriers: list[Row]) -> Figure:
    """Score, validation and training loss along every line, and its barriers, a column per task.

    Args:
        table, barriers: the lines.line_table and barrier_table of one model and data fraction.
    Raises:
        ValueError: no line.
    Source: paper appendix C, fig. 5. Added: the control of two dense seeds, the one-shot copy, barriers with their
        intervals, and the chance floor.
    """
    if not table:
        raise ValueError("the runs hold no line between two models, so there is nothing to draw")
    tasks = list(dict.fromkeys(point["task"] for point in table))
    looks = line_looks(table)
    with style.style():
        width = max(6.4, 2.9 * len(tasks) + 0.7)
        figure = Figure(figsize=(width, 11.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(HEIGHTS), len(tasks), squeeze=False, height_ratios=HEIGHTS)
        for column, task in zip(panels.T, tasks, strict=True):
            lines = _by_line([point for point in table if point["task"] == task])
            column[0].set_title(f"{layout.title(task_name(task))} ({_line_metric(lines)})")
            for axes, name in zip(column, PANELS, strict=False):
                _line_curves(axes, lines, name, looks)
            own = [row for row in barriers if row["task"] == task and row["split"] == "validation"]
            for axes, quantity in zip(column[len(PANELS) :], BARRIERS, strict=True):
                _barriers(axes, _by_line([row for row in own if row["quantity"] == quantity]), quantity, looks)
        for axes, label in zip(panels[:, 0], (*PANELS.values(), *BARRIERS.values()), strict=True):
            axes.set_ylabel(label)
        _line_legend(figure, looks)
        style.caption(figure, _line_caption(table))
    return figure


def line_looks(table: list[Row]) -> dict[tuple, dict]:
    """Colour, marker and name of every line, without its task: a colour for each kind of pair, pale at weak pruning."""
    groups: dict[str, list[Row]] = {}
    for point in table:
        groups.setdefault(point["pair"], []).append(point)
    looks = {}
    for pair, points in groups.items():
        look = PAIR_STYLE.get(pair, {"label": pair, "color": OTHER_COLOR, "marker": "D"})
        members = {_look_key(point): point for point in points}
        keys = sorted(members, key=lambda key: compression_order(members[key]))
        for place, key in enumerate(keys):
            white = PALEST * (len(keys) - 1 - place) / max(1, len(keys) - 1)
            color = tuple(white + (1 - white) * part for part in to_rgb(look["color"]))
            looks[key] = {**look, "color": color, "label": _line_label(look["label"], members[key])}
    return looks


def _look_key(row: Row) -> tuple:
    return tuple(row[name] for name in LINE_KEY if name != "task")


def _line_label(name: str, row: Row) -> str:
    parts = [name] if row["strength"] is None else [name, strength_text(row)]
    return ", ".join([*parts, "layer by layer"] if row["magnitude_scope"] == "layer" else parts)


def _by_line(rows: list[Row]) -> dict[tuple, list[Row]]:
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(_look_key(row), []).append(row)
    return found


def _line_metric(lines: dict[tuple, list[Row]]) -> str:
    return next(iter(lines.values()))[0]["metric"].replace("_", " ")


def _line_curves(axes: Axes, lines: dict[tuple, list[Row]], name: str, looks: dict[tuple, dict]) -> None:
    """One quantity along every line, the range of the seeds about it, and the straight line from end to end."""
    heights = []
    for key, points in lines.items():
        look, alphas = looks[key], [point["alpha"] for point in points]
        means = [point[f"mean_{name}"] for point in points]
        heights += means
        axes.plot(alphas, means, **{**look, "label": None}, markevery=(0, max(1, (len(alphas) - 1) // 4)))
        axes.plot([0, 1], [means[0], means[-1]], color=look["color"], linestyle=":", linewidth=0.9, zorder=1.5)
        bands = [(point[f"lowest_{name}"], point[f"highest_{name}"]) for point in points]
        if any(low < high for low, high in bands):
            style.draw_band(axes, alphas, bands, look["color"])
    first = next(iter(lines.values()))[0]
    if name == "score":
        low, high = min(heights), max(heights)
        if low - first["chance"] < FAR_BELOW * (high - low) + CHANCE_ROOM:  # else it would press the curves together
            axes.axhline(first["chance"], color="0.3", linestyle="--", linewidth=1.0, zorder=1)
        if first["dense_above_chance"] is False:
            style.warning_box(axes, "DENSE NOT ABOVE CHANCE:\nits barriers mean nothing")
    elif min(heights) > 0 and max(heights) > STEEP * min(heights):
        axes.set_yscale("log")
    axes.set_xlim(-0.03, 1.03)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    if name == "train_loss":
        axes.set_xlabel("alpha (0: dense, 1: other end)")


def _barriers(axes: Axes, lines: dict[tuple, list[Row]], quantity: str, looks: dict[tuple, dict]) -> None:
    """Each line's barrier by both definitions with its interval over items."""
    for place, (key, rows) in enumerate(lines.items()):
        for definition, shift, face in ((STRAIGHT_LINE, -0.14, None), (MEAN_OF_ENDS, 0.14, "white")):
            row = next(row for row in rows if row["definition"] == definition)
            look = {**looks[key], "label": None, "linestyle": "none"}
            axes.vlines(place + shift, row["interval_low"], row["interval_high"], color=look["color"], linewidth=1.6)
            axes.plot(place + shift, row["mean_barrier"], **look, markerfacecolor=face or look["color"])
    if quantity == "error":
        axes.axhline(CONNECTED_ERROR, color="0.3", linestyle=":", linewidth=1.2, zorder=1)
    axes.set_xticks([])
    axes.set_xlim(-0.6, len(lines) - 0.4)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _line_legend(figure: Figure, looks: dict[tuple, dict]) -> None:
    handles = [Line2D([], [], **look) for look in looks.values()]
    handles.append(Line2D([], [], color="0.3", linestyle="none", marker="o", label="Barrier above the straight line"))
    hollow = {"marker": "o", "markerfacecolor": "white", "label": "Barrier above the mean of the ends"}
    handles.append(Line2D([], [], color="0.3", linestyle="none", **hollow))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=3 if figure.get_figwidth() > 9 else 2, frameon=False
    )


def _line_caption(table: list[Row]) -> str:
    first = table[0]
    fraction = "" if first["data_fraction"] == 1 else f", {percent(first['data_fraction'])} of the data"
    seeds = sorted({len(point["seeds"]) for point in table})
    many = "One pair of seeds per line, no band." if seeds == [1] else "Band: lowest to highest seed."
    return (
        f"{first['model']}{fraction}: Dense Transfer's model at alpha 0, float32. {many} Dotted: straight line from "
        f"end to end; in the barriers of error, {percent(CONNECTED_ERROR)}, below which Frankle et al. call "
        "models connected. Dashed: chance level. Bars: 95 % interval over items; the barrier above the mean of the "
        "ends is at least half of what the ends differ by."
    )
