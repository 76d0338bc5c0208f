"""The paper's figures as functions of a table: each takes the rows of results.read_runs and returns a Figure.

Nothing here needs a display or touches matplotlib's global state. Scores of fine-tuning are drawn in percent of the
dense transfer's mean at the same task and data fraction; the numbers behind a figure are those of its table in
analysis.tables. The settings without training have theirs in analysis.levels.level_figures.
"""

import itertools
import math

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from analysis import drawing, layout, tables
from analysis.fine_tuning import human_gap
from analysis.tables import Row, task_name

# Okabe and Ito's palette, told apart by colour-blind readers; the markers tell the curves apart in print.
TRANSFER_STYLE = {
    tables.SPARSE_TO_DENSE: {"label": "Sparse to Dense Transfer", "color": "#009E73", "marker": "^"},
    tables.SPARSE: {"label": "Sparse Transfer", "color": "#E69F00", "marker": "s"},
    tables.DENSE: {"label": "Dense Transfer", "color": "#D42A2A", "linestyle": "--"},
    tables.FREEZING: {"label": "Dense Transfer with Freezing", "color": "#0072B2", "marker": "o"},
}
PLACE_STYLE = {
    human_gap.EASY: {"color": matplotlib.colormaps["viridis"](0.66), "marker": "o"},
    human_gap.HARD: {"color": matplotlib.colormaps["viridis"](0.15), "marker": "s"},
    human_gap.ONLY: {"color": matplotlib.colormaps["viridis"](0.4), "marker": "D"},
}
MAX_COLUMNS = 5
LONGEST_NAME = 24  # of a task in a legend
WARNING_ROOM = 0.35
RAW, FROM_FLOOR = "raw", "from the floor"
GAP_AXIS = {RAW: "Score (% of dense)", FROM_FLOOR: "Score above floor (% of dense)"}


def data_adequacy(rows: list[Row]) -> Figure:
    """Sparse transfer by amount of training data, a panel per task and kind of sparsity.

    Args:
        rows: runs of one model and magnitude scope; what tables.data_adequacy_table does not show is passed over.
    Raises:
        ValueError: no sparse transfer of setting 1, or runs that belong in several figures.
    Source: paper fig. 1. Added: the seeds' range, each level's slope, the chance floor, and what a panel cannot tell.
    """
    table = tables.data_adequacy_table(rows)
    if not table:
        raise ValueError("the runs hold no sparse_transfer in setting 1, so there is no figure of data adequacy")
    curves = tables.curves(table)
    tasks = {kind: list(dict.fromkeys(task for task, own, *_ in curves if own == kind)) for kind in tables.KINDS}
    with drawing.style():
        columns = min(4, max(map(len, tasks.values())))
        width = min(4.2, max(3.1, 11 / columns))
        figure, panels = drawing.make_panels(tasks, columns, size=(width, 0.6 * width + 1.7))
        for (kind, task), axes in panels.items():
            levels = {key[-1]: points for key, points in curves.items() if key[:2] == (task, kind)}
            positions = drawing.strength_axis(axes, kind, list(levels.values()))
            drawing.dense_line(axes, TRANSFER_STYLE[tables.DENSE])
            for fraction, points in levels.items():
                look = {"color": fraction_color(fraction), "marker": "o", "label": _level_label(points)}
                drawing.curve(axes, positions, points, look)
                drawing.chance_line(axes, points, fraction_color(fraction))
            _limits(axes, list(levels.values()))
            named = {drawing.percent(fraction): points for fraction, points in levels.items()}
            drawing.warning(axes, named, "dense transfer", " data")
            axes.set_title(f"{layout.title(task_name(task))} ({_metric(table, task)})")
            drawing.slope_legend(axes, "training data: Theil-Sen slope (strengths)")
        drawing.label_outer(panels, "Score (% of dense transfer)")
        _note(figure, table, "Slope: normalized drop per unit of sparsity. ")
    return figure


def four_transfers(rows: list[Row]) -> Figure:
    """The four ways of transfer, a panel per task, data fraction and kind of sparsity.

    Args:
        rows: runs of one setting, model and magnitude scope.
    Raises:
        ValueError: neither dense transfer with freezing nor sparse-to-dense transfer, or runs of several figures.
    Source: paper fig. 8 (panels of one task) and fig. 9 (panels of 100 % data). Added: the seeds' range, the chance
        floor, and what a panel cannot tell.
    """
    table = tables.four_transfers_table(rows)
    if not table:
        raise ValueError("the runs hold neither dense_transfer_freezing nor sparse_to_dense, so nothing to compare")
    curves = tables.curves(table)
    places = {
        kind: list(dict.fromkeys((task, fraction) for task, own, _, fraction in curves if own == kind))
        for kind in tables.KINDS
    }
    with drawing.style():
        columns = _columns(places)
        width = min(4.0, max(2.4, 9 / columns))
        figure, panels = drawing.make_panels(places, columns, size=(width, 0.6 * width + 0.65))
        for (kind, (task, fraction)), axes in panels.items():
            ways = {key[2]: points for key, points in curves.items() if (*key[:2], key[3]) == (task, kind, fraction)}
            positions = drawing.strength_axis(axes, kind, list(ways.values()))
            drawing.dense_line(axes, TRANSFER_STYLE[tables.DENSE])
            _dense_band(axes, table, task, fraction)
            for transfer, points in ways.items():
                drawing.curve(axes, positions, points, TRANSFER_STYLE[transfer])
            drawing.chance_line(axes, next(iter(ways.values())), "0.3")
            # One range for all fractions of a task, so that its panels can be compared.
            _limits(axes, [points for key, points in curves.items() if key[:2] == (task, kind)])
            drawing.warning(axes, ways, "dense transfer")
            axes.set_title(f"{layout.title(task_name(task))}, {drawing.percent(fraction)} data")
            if not axes.get_subplotspec().is_last_row():
                axes.set_xlabel("")
        drawing.label_outer(panels, "Score (% of dense)")
        _transfer_legend(figure, {key[2] for key in curves})
        _note(figure, table, _metrics_note(table, list(dict.fromkeys(task for task, *_ in curves))))
    return figure


def easy_and_hard_tasks(rows: list[Row]) -> Figure:
    """An easy and a hard task of each category, in percent of dense and below it in percent of dense above chance.

    Args:
        rows: runs of one setting, model and magnitude scope; what human_gap.figure_table does not show is passed over.
    Raises:
        ValueError: no sparse transfer of a task whose human score is known, or runs that belong in several figures.
    Source: paper, appendix B; its first version (setting 4) draws the upper panels alone, where Matthews and
        correlations may fall to 0 and accuracies only to their floor, so that the two curves cannot be compared.
    """
    table = human_gap.figure_table(rows)
    if not table:
        raise ValueError("the runs hold no sparse_transfer of a task with a known human score, so nothing to compare")
    shown = human_gap.easy_and_hard(human_gap.human_gap_table(rows))
    categories = [name for name in human_gap.CATEGORIES if any(category == name for _, category in shown)]
    places = {
        kind: [(measure, name) if (kind, name) in shown else None for measure in GAP_AXIS for name in categories]
        for kind in tables.KINDS
        if any(own == kind for own, _ in shown)
    }
    with drawing.style():
        width = min(4.4, max(3.2, 11 / len(categories)))
        figure, panels = drawing.make_panels(places, len(categories), size=(width, 0.55 * width + 1.35))
        for (kind, (measure, category)), axes in panels.items():
            _gap_panel(axes, kind, measure, shown[kind, category], table)
            axes.set_title(category.capitalize() if measure == RAW else "")
            if category == next(name for name in categories if (kind, name) in shown):
                axes.set_ylabel(GAP_AXIS[measure])
        notes = ["Slope: drop per unit of sparsity. Chance is 0 for correlations.", *human_gap.left_out(rows)]
        _note(figure, table, " ".join(notes))
    return figure


def _gap_panel(axes: Axes, kind: str, measure: str, shown: dict[str, Row], table: list[Row]) -> None:
    """The curves of one category's tasks by one measure, with their floors and slopes."""
    drawn = {}
    for place, gap in shown.items():
        points = [point for point in table if (point["task"], point["strength_kind"]) == (gap["task"], kind)]
        drawn[place] = points if measure == RAW else list(map(human_gap.from_the_floor, points))
    positions = drawing.strength_axis(axes, kind, list(drawn.values()))
    drawing.dense_line(axes, {**TRANSFER_STYLE[tables.DENSE], "label": None})
    for place, points in drawn.items():
        look = {**PLACE_STYLE[place], "label": _gap_label(place, shown[place], measure)}
        drawing.curve(axes, positions, points, look)
        drawing.chance_line(axes, points, look["color"])
    _limits(axes, list(drawn.values()))
    named = {task_name(shown[place]["task"]): points for place, points in drawn.items()}
    drawing.warning(axes, named, "dense transfer")
    drawing.slope_legend(
        axes,
        "metric: slope (strengths)" if measure == RAW else "gap to people: slope from the floor (strengths)",
        columns=1,
    )


def _gap_label(place: str, gap: Row, measure: str) -> str:
    """ "RTE (hard), accuracy: -0.42", and below it "RTE, +9.9 %: -1.30"."""
    if measure == RAW:
        metric, _, _ = gap["metric"].partition("_")
        return f"{_short(gap)} ({place}), {metric}: {drawing.slope_text(gap, gap['theil_sen_slope'])}"
    slope = drawing.slope_text(gap, gap["corrected_slope"])
    difficulty = "people not measured" if gap["difficulty"] is None else f"{100 * gap['difficulty']:+.1f} %"
    return f"{_short(gap)}, {difficulty}: {slope}"


def perplexity(rows: list[Row]) -> Figure:
    """Perplexity of the compressed models, a panel per kind of strength, all on one logarithmic axis.

    Args:
        rows: runs of one model on one text; those of another setting are passed over.
    Raises:
        ValueError: no compressed run, or runs of several models or texts.
    """
    sets = tables.perplexity_sets(rows)
    if len(sets) > 1:
        raise ValueError(f"the runs belong in {len(sets)} figures; take one of tables.perplexity_sets")
    table = tables.perplexity_table(rows)
    curves = tables.perplexity_curves(table)
    if not curves:
        raise ValueError("the runs hold no perplexity of a compressed model, so there is nothing to draw")
    kinds = [kind for kind in tables.KINDS if any(key[0] == kind for key in curves)]
    with drawing.style():
        figure = Figure(figsize=(max(5.5, 2.9 * len(kinds) + 0.6), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for kind, axes in zip(kinds, panels, strict=True):
            own = {key: points for key, points in curves.items() if key[0] == kind}
            positions = drawing.strength_axis(axes, kind, list(own.values()))
            _perplexity_references(axes, table)
            for (_, compression, scope), points in own.items():
                _perplexity_curve(axes, positions, points, drawing.compression_look(compression, scope))
            axes.set_title(drawing.KIND_TITLE[kind])
        _perplexity_axis(panels[0], table)
        handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        lines = math.ceil(len(handles) / max(2, int(figure.get_figwidth() / 1.7)))
        columns = math.ceil(len(handles) / lines)
        figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=columns, frameon=False)
        drawing.caption(figure, _perplexity_note(table))
    return figure


def fraction_color(fraction: float) -> tuple[float, float, float, float]:
    """Light for much training data, dark for little; the same in every figure."""
    # The square root spreads the usual fractions evenly; 4 % and less share the darkest colour.
    return matplotlib.colormaps["viridis"](0.88 * max(0.0, (math.sqrt(fraction) - 0.2) / 0.8))


def _limits(axes: Axes, curves: list[list[Row]]) -> None:
    """drawing.limits with room for the warning that drawing.warning puts below these curves."""
    first = [points[0] for points in curves]
    warned = any(point["dense_mean_score"] is None or point["dense_above_chance"] is False for point in first)
    drawing.limits(axes, curves, room=WARNING_ROOM if warned else 0.0)


def _columns(places: dict[str, list]) -> int:
    """Columns of four_transfers: one line if all panels fit, a line per task if all have as many, full lines else."""
    most = max(places.values(), key=len)
    per_task = {len(list(group)) for _, group in itertools.groupby(most, key=lambda place: place[0])}
    count = len(most) if len(most) <= MAX_COLUMNS or len(per_task) > 1 or per_task == {1} else per_task.pop()
    return math.ceil(count / math.ceil(count / MAX_COLUMNS))


def _dense_band(axes: Axes, table: list[Row], task: str, fraction: float) -> None:
    """The seeds of the dense transfer itself, so that the noise of the reference is seen."""
    for point in table:
        is_reference = (point["task"], point["data_fraction"], point["transfer"]) == (task, fraction, tables.DENSE)
        if is_reference and point["dense_above_chance"] is not False and len(point["seeds"]) > 1:
            color = TRANSFER_STYLE[tables.DENSE]["color"]
            axes.axhspan(*drawing.seed_range(point), color=color, alpha=0.12, linewidth=0)


def _short(gap: Row) -> str:
    """The task's name, no longer than a legend has room for."""
    return layout.shortened(task_name(gap["task"]), LONGEST_NAME)


def _level_label(points: list[Row]) -> str:
    level = tables.curve_statistics(points)
    return f"{drawing.percent(level['data_fraction'])}: {drawing.slope_text(level, level['theil_sen_slope'])}"


def _metric(table: list[Row], task: str) -> str:
    return next(point["metric"] for point in table if point["task"] == task).replace("_", " ").capitalize()


def _metrics_note(table: list[Row], tasks: list[str]) -> str:
    """Accuracy: QNLI, RTE. Pearson: STS-B."""
    named: dict[str, list[str]] = {}
    for task in tasks:
        named.setdefault(_metric(table, task), []).append(task_name(task))
    return " ".join(f"{metric}: {', '.join(names)}." for metric, names in named.items())


def _transfer_legend(figure: Figure, transfers: set[str]) -> None:
    shown = [style for transfer, style in TRANSFER_STYLE.items() if transfer in transfers | {tables.DENSE}]
    handles = [Line2D([], [], **style) for style in shown]
    columns = 4 if figure.get_figwidth() > 8.5 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def _perplexity_references(axes: Axes, table: list[Row]) -> None:
    for point in table:
        if point["compression"] == "dense":
            look = drawing.COMPRESSION_STYLE["dense"]
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
        drawing.draw_band(axes, where, bands, look["color"])


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


def _perplexity_note(table: list[Row]) -> str:
    first = table[0]
    dense = "" if first["compression"] == "dense" else "NO DENSE RUN. "
    return f"{first['model']} on {first['windows']} windows of {first['text']}. {dense}{drawing.seeds_note(table)}"


def _note(figure: Figure, table: list[Row], more: str = "") -> None:
    scope = table[0]["magnitude_scope"]
    pruned = "" if scope is None else f", magnitude threshold: {scope}"
    drawing.caption(figure, f"{table[0]['model']}{pruned}. {drawing.seeds_note(table)} Dotted: chance level. {more}")
