"""Figures whose panels show curves by strength, in percent of the dense score: paper figures 1 to 6, 8 and appendix B.

One function draws them all (draw). The others say of one kind of figure, as data, which curves stand in which panel and
what is written around them. They take a table and return the Figure.
"""

import itertools
import math
import textwrap
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import human_gap, layout, style
from analysis.curves import curve_statistics, curves_by, level_curves
from analysis.names import compression_name, count_span, percent, set_title, task_name
from analysis.sizes import DENSE_BITS, has_bits
from analysis.style import COMPRESSION_STYLE, TRANSFER_STYLE, Band
from analysis.table import DENSE, KINDS, MULTI_DOMAIN, SPARSE, Row

GAP_STYLE = {
    human_gap.EASY: {"color": matplotlib.colormaps["viridis"](0.66), "marker": "o"},
    human_gap.HARD: {"color": matplotlib.colormaps["viridis"](0.15), "marker": "s"},
    human_gap.ONLY: {"color": matplotlib.colormaps["viridis"](0.4), "marker": "D"},
}
RAW, FROM_FLOOR = "raw", "from the floor"
GAP_AXIS = {RAW: "Score (% of dense)", FROM_FLOOR: "Score above floor (% of dense)"}
TUNING_ROOM = 0.35  # for warnings below curves, as a share of their range
LONGEST_LEVEL, LONGEST_TASK, LONGEST_DOMAIN = 26, 24, 24  # letters of a name in a legend
LONGEST_PAIRED_NAME = 14  # letters with which a legend has two columns
LONGEST_CONDITION = 40  # letters in a line of a panel's title


@dataclass(frozen=True)
class Line:
    """One curve of a panel.

    Fields:
        name: in a warning.
        points: of a table, from weak compression to strong.
        look: of matplotlib: colour, marker, label.
    """

    name: str
    points: list[Row]
    look: dict


@dataclass(frozen=True)
class Panel:
    """One panel.

    Fields:
        title: above it.
        lines: its curves.
        shown: all curves that its vertical range must show, its own by default.
        ylabel: beside it; by default the figure's, beside the first panel of a row.
        legend_title: of the legend below it.
        dense: the dense point whose range of seeds is shown, where it is.
    """

    title: str
    lines: list[Line]
    shown: list[list[Row]] = field(default_factory=list)
    ylabel: str | None = None
    legend_title: str = ""
    dense: Row | None = None


@dataclass(frozen=True)
class PanelFigure:
    """A figure of curves.

    Fields:
        panels: by kind of strength and key, row by row; None leaves a cell empty.
        columns, size: panels in a row, and inches of each.
        dense: look of the dense reference.
        reference, unit: what scores are relative to, and what follows the names of curves, in warnings.
        caption: below the figure.
        ylabel: beside the first panel of each row.
        title: above the figure.
        legend_columns: of the legend below each panel; None for none.
        bounds: the band of a point.
        room: for warnings below the curves, as a share of their range.
        layout: changes to style.LAYOUT.
        spread_levels: whether curves of a single strength stand side by side.
        own_floors: whether each curve's chance level is drawn, or one for all.
        transfers: of the legend above the figure; empty for none.
    """

    panels: dict[tuple[str, Hashable], Panel | None]
    columns: int
    size: tuple[float, float]
    dense: dict
    reference: str
    caption: str
    ylabel: str | None = None
    unit: str = ""
    title: str | None = None
    legend_columns: int | None = 2
    bounds: Band = style.seed_range
    room: float = style.WARNING_ROOM
    layout: Mapping[str, float] | None = None
    spread_levels: bool = False
    own_floors: bool = True
    transfers: frozenset[str] = frozenset()


def draw(wanted: PanelFigure) -> Figure:
    """Draw a figure of curves."""
    keys: dict[str, list] = {kind: [] for kind in KINDS}
    for (kind, key), panel in wanted.panels.items():
        keys[kind].append(None if panel is None else key)
    with style.style(wanted.layout):
        figure, panels = style.make_panels(keys, wanted.columns, size=wanted.size)
        if wanted.title:
            figure.suptitle(wanted.title, fontsize=12, weight="bold")
        for (kind, key), axes in panels.items():
            _draw_panel(axes, kind, wanted.panels[kind, key], wanted)
        if wanted.ylabel:
            style.label_outer(panels, wanted.ylabel)
        if wanted.transfers:
            _transfer_legend(figure, wanted.transfers)
        style.caption(figure, wanted.caption)
    return figure


def _draw_panel(axes: Axes, kind: str, panel: Panel, wanted: PanelFigure) -> None:
    points = [line.points for line in panel.lines]
    positions = style.strength_axis(axes, kind, points)
    style.dense_line(axes, wanted.dense)
    if panel.dense is not None:
        axes.axhspan(*style.seed_range(panel.dense), color=wanted.dense["color"], alpha=0.12, linewidth=0)
    for place, line in enumerate(panel.lines):
        own = positions
        if wanted.spread_levels and len(positions) == 1:  # the levels would cover each other at a single strength
            beside = 0.15 * (place - (len(panel.lines) - 1) / 2)
            own = {strength: at + beside for strength, at in positions.items()}
        style.curve(axes, own, line.points, line.look, wanted.bounds)
        if wanted.own_floors:
            style.chance_line(axes, line.points, line.look["color"])
    if not wanted.own_floors:
        style.chance_line(axes, points[0], "0.3")
    style.limits(axes, panel.shown or points, wanted.bounds, wanted.room)
    style.warning(axes, {line.name: line.points for line in panel.lines}, wanted.reference, wanted.unit)
    axes.set_title(panel.title)
    if panel.ylabel:
        axes.set_ylabel(panel.ylabel)
    if wanted.legend_columns:
        below = 0.6 if wanted.spread_levels and kind == "rank" else 0.45  # ranks have a second line of labels
        style.slope_legend(axes, panel.legend_title, wanted.legend_columns, below)
    elif not axes.get_subplotspec().is_last_row():
        axes.set_xlabel("")


def _transfer_legend(figure: Figure, transfers: frozenset[str]) -> None:
    shown = [look for transfer, look in TRANSFER_STYLE.items() if transfer in transfers | {DENSE}]
    handles = [Line2D([], [], **look) for look in shown]
    columns = 4 if figure.get_figwidth() > 8.5 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def slope_label(points: list[Row], name: str, slope: str = "theil_sen_slope") -> str:
    """The name of a curve with its slope, for a legend."""
    statistics = curve_statistics(points)
    return f"{name}: {style.slope_text(statistics, statistics[slope])}"


def data_adequacy(table: list[Row]) -> Figure:
    """Sparse transfer by amount of training data, a panel for each task and kind of sparsity.

    Args:
        table: rows of table.POINT_COLUMNS of one model and magnitude scope, such as data_adequacy_points.
    Raises:
        ValueError: no sparse transfer.
    Source: paper fig. 1. Added: the seeds' range, each level's slope, the chance floor, and what a panel cannot tell.
    """
    found = curves_by(table, "strength_kind", "task", "transfer", "data_fraction")
    if not found:
        raise ValueError("the runs hold no sparse_transfer in setting 1, so there is no figure of data adequacy")
    panels: dict[tuple, Panel] = {}
    for (kind, task, _, fraction), points in found.items():
        metric = _metric(table, task)
        panel = panels.setdefault(
            (kind, task),
            Panel(f"{layout.title(task_name(task))} ({metric})", [],
                  legend_title="training data: Theil-Sen slope (strengths)"),
        )  # fmt: skip
        label = slope_label(points, percent(fraction))
        look = {"color": style.fraction_color(fraction), "marker": "o", "label": label}
        panel.lines.append(Line(percent(fraction), points, look))
    columns = min(4, max(sum(key[0] == kind for key in panels) for kind in KINDS))
    width = min(4.2, max(3.1, 11 / columns))
    return draw(
        PanelFigure(
            panels, columns, (width, 0.6 * width + 1.7), TRANSFER_STYLE[DENSE], "dense transfer",
            _tuning_caption(table, "Slope: normalized drop per unit of sparsity. ", _has_intervals(table)),
            ylabel="Score (% of dense transfer)", unit=" data", room=TUNING_ROOM,
            bounds=style.band if _has_intervals(table) else style.seed_range,
        )
    )  # fmt: skip


def data_adequacy_points(table: list[Row]) -> list[Row]:
    """The points of data_adequacy: dense and sparse transfer in setting 1; none without sparse transfer."""
    points = [point for point in table if point["setting"] == 1 and point["transfer"] in (DENSE, SPARSE)]
    if not any(point["strength_kind"] == "sparsity" for point in points):  # other kinds have no scope
        points = [{**point, "magnitude_scope": None} for point in points]
    return points if any(point["transfer"] == SPARSE for point in points) else []


def four_transfers(table: list[Row]) -> Figure:
    """The four ways of transfer, a panel for each task, data fraction and kind of sparsity.

    Args:
        table: rows of table.POINT_COLUMNS of one model and magnitude scope, such as four_transfers_points.
    Raises:
        ValueError: no compressed run.
    Source: paper fig. 8 (panels of one task) and fig. 9 (panels of 100 % data). Added: the seeds' range, the chance
        floor, and what a panel cannot tell.
    """
    found = curves_by(table, "strength_kind", "task", "transfer", "data_fraction")
    if not found:
        raise ValueError("the runs hold neither dense_transfer_freezing nor sparse_to_dense, so nothing to compare")
    references = {
        (point["task"], point["data_fraction"]): point
        for point in table
        if point["transfer"] == DENSE and point["dense_above_chance"] is not False and len(point["seeds"]) > 1
    }
    panels: dict[tuple, Panel] = {}
    for (kind, task, transfer, fraction), points in found.items():
        # One range for all fractions of a task, so that its panels can be compared.
        shown = [own for key, own in found.items() if key[:2] == (kind, task)]
        title = f"{layout.title(task_name(task))}, {percent(fraction)} data"
        panel = Panel(title, [], shown, dense=references.get((task, fraction)))
        lines = panels.setdefault((kind, (task, fraction)), panel).lines
        lines.append(Line(transfer, points, TRANSFER_STYLE[transfer]))
    columns = _transfer_columns([[key for own, key in panels if own == kind] for kind in KINDS])
    width = min(4.0, max(2.4, 9 / columns))
    tasks: dict[str, list[str]] = {}
    for task in dict.fromkeys(key[1] for key in found):
        tasks.setdefault(_metric(table, task), []).append(task_name(task))
    metrics = " ".join(f"{metric}: {', '.join(names)}." for metric, names in tasks.items())
    return draw(
        PanelFigure(
            panels, columns, (width, 0.6 * width + 0.65), TRANSFER_STYLE[DENSE], "dense transfer",
            _tuning_caption(table, metrics), ylabel="Score (% of dense)", room=TUNING_ROOM,
            legend_columns=None, own_floors=False, transfers=frozenset(key[2] for key in found),
        )
    )  # fmt: skip


def four_transfers_points(table: list[Row]) -> list[Row]:
    """The points of four_transfers, with their dense points.

    They are those of the tasks, data fractions and kinds of strength that have more than dense and sparse transfer.
    """
    place = ("task", "data_fraction", "strength_kind")
    compared = {tuple(point[name] for name in place) for point in table if point["transfer"] not in (DENSE, SPARSE)}
    compared |= {(task, fraction, None) for task, fraction, _ in compared}
    return [point for point in table if tuple(point[name] for name in place) in compared]


def _transfer_columns(places: list[list[tuple]]) -> int:
    """Columns of four_transfers: one row if all panels fit, a row for each task if all have as many, else full rows."""
    most_columns, most = 5, max(places, key=len)
    per_task = {len(list(group)) for _, group in itertools.groupby(most, key=lambda place: place[0])}
    count = len(most) if len(most) <= most_columns or len(per_task) > 1 or per_task == {1} else per_task.pop()
    return math.ceil(count / math.ceil(count / most_columns))


def easy_and_hard_tasks(table: list[Row], gaps: list[Row]) -> Figure:
    """An easy and a hard task of each category, in percent of dense and below it in percent of dense above chance.

    Args:
        table, gaps: rows of table.POINT_COLUMNS of one setting, model and scope, and their human_gap.gap_table.
    Raises:
        ValueError: no sparse transfer of a task whose human score is known.
    Source: paper, appendix B; its first version (setting 4) draws the upper panels alone, where Matthews and
        correlations may fall to 0 and accuracies only to their floor, so that the two curves cannot be compared.
    """
    points = human_gap.figure_table(table, gaps)
    if not points:
        raise ValueError("the runs hold no sparse_transfer of a task with a known human score, so nothing to compare")
    shown = human_gap.easy_and_hard(gaps)
    categories = [name for name in human_gap.CATEGORIES if any(category == name for _, category in shown)]
    panels: dict[tuple, Panel | None] = {}
    for kind in [kind for kind in KINDS if any(own == kind for own, _ in shown)]:
        first = next(name for name in categories if (kind, name) in shown)
        for measure, name in itertools.product(GAP_AXIS, categories):
            panel = _gap_panel(kind, measure, shown[kind, name], points) if (kind, name) in shown else None
            if panel is not None:
                title = name.capitalize() if measure == RAW else ""
                panel = Panel(title, panel.lines, [], GAP_AXIS[measure] if name == first else None, panel.legend_title)
            panels[kind, (measure, name)] = panel
    width = min(4.4, max(3.2, 11 / len(categories)))
    notes = ["Slope: drop per unit of sparsity. Chance is 0 for correlations.", *human_gap.left_out(table, gaps)]
    return draw(
        PanelFigure(
            panels, len(categories), (width, 0.55 * width + 1.35), {**TRANSFER_STYLE[DENSE], "label": None},
            "dense transfer", _tuning_caption(points, " ".join(notes), _has_intervals(points)), room=TUNING_ROOM,
            legend_columns=1, bounds=style.band if _has_intervals(points) else style.seed_range,
        )
    )  # fmt: skip


def _gap_panel(kind: str, measure: str, shown: dict[str, Row], table: list[Row]) -> Panel:
    """The curves of one category's tasks by one measure."""
    lines = []
    for place, gap in shown.items():
        points = [point for point in table if (point["task"], point["strength_kind"]) == (gap["task"], kind)]
        points = points if measure == RAW else list(map(human_gap.from_the_floor, points))
        look = {**GAP_STYLE[place], "label": _gap_label(place, gap, measure)}
        lines.append(Line(task_name(gap["task"]), points, look))
    raw, floor = "metric: slope (strengths)", "gap to people: slope from the floor (strengths)"
    return Panel("", lines, legend_title=raw if measure == RAW else floor)


def _gap_label(place: str, gap: Row, measure: str) -> str:
    """ "RTE (hard), accuracy: -0.42", and below it "RTE, +9.9 %: -1.30"."""
    name = layout.shortened(task_name(gap["task"]), LONGEST_TASK)
    if measure == RAW:
        metric, _, _ = gap["metric"].partition("_")
        return f"{name} ({place}), {metric}: {style.slope_text(gap, gap['theil_sen_slope'])}"
    difficulty = "people not measured" if gap["difficulty"] is None else f"{100 * gap['difficulty']:+.1f} %"
    return f"{name}, {difficulty}: {style.slope_text(gap, gap['corrected_slope'])}"


def levels(table: list[Row]) -> Figure:
    """Each level's score by strength, a panel for each compression and kind of strength.

    Args:
        table: a table.level_table of one setting, model and task, with intervals (intervals.with_intervals).
    Raises:
        ValueError: no compressed run.
    Source: paper figs. 2 to 6. Added: bands, each level's slope, the chance floor, and what a panel cannot tell.
    """
    found = level_curves(table)
    if not found:
        raise ValueError("the runs hold no compressed model at a level of difficulty, so there is nothing to draw")
    shown = dict.fromkeys(point["level"] for point in table if not point["reference_only"])
    unknown = _unknown(table)
    looks = style.level_looks([name for name in shown if name not in unknown], unknown)
    everything = [points for of_level in found.values() for points in of_level.values()]
    panels: dict[tuple, Panel] = {}
    for (kind, *method), of_level in found.items():
        lines = []
        for level, points in of_level.items():
            label = slope_label(points, layout.shortened(level, LONGEST_LEVEL))
            lines.append(Line(level, points, {**looks[level], "label": label}))
        # One range for all panels, so that the compressions can be compared.
        title = _method_title(*method)
        panels[kind, tuple(method)] = Panel(title, lines, everything, None, "level: Theil-Sen slope (strengths)")
    counts, most = [sum(key[0] == kind for key in panels) for kind in KINDS], 4
    columns = sum(counts) if sum(counts) <= most else min(most, max(counts))
    width = min(4.2, max(3.2, 11 / columns))
    legend_columns = 1 if max(map(len, looks)) > LONGEST_PAIRED_NAME else 2
    legend_lines = 1 + math.ceil((len(looks) + 1) / legend_columns)
    data = list(dict.fromkeys(point["dataset"] for point in table if point["dataset"] and not point["reference_only"]))
    title = set_title(table[0]["setting"], table[0]["task"])
    return draw(
        PanelFigure(
            panels, columns, (width, 0.6 * width + 0.75 + 0.19 * legend_lines), COMPRESSION_STYLE["dense"],
            "dense run", _level_caption(table), ylabel=f"{style.metric_name(table)} (% of dense)",
            title=f"{title} ({data[0]})" if len(data) == 1 else title, legend_columns=legend_columns,
            bounds=style.band, layout=style.WIDE, spread_levels=True,
        )
    )  # fmt: skip


def domains(table: list[Row]) -> Figure:
    """Every domain's (or pair of languages') score by strength, a panel for each condition and transfer.

    Args:
        table: the contrasts.domain_table of one setting, model and task.
    Raises:
        ValueError: no compressed run.
    Source: the figure "Majority v.s. Minority" of the paper's first version. Added: bands, slopes, the floor of each
        domain, and every domain instead of two.
    """
    found = curves_by(table, "strength_kind", "condition", "transfer", "magnitude_scope", "level")
    if not found:
        raise ValueError("the runs hold no compressed model scored by domain, so there is nothing to draw")
    looks = domain_looks(table)
    has_shares = any(point["share"] is not None for point in table)
    panels: dict[tuple, Panel] = {}
    for (kind, condition, transfer, scope, level), points in found.items():
        what = "domain" if table[0]["setting"] == MULTI_DOMAIN else "languages"
        # A mixture of many domains breaks after its commas.
        lines = textwrap.wrap(condition.replace(",", ", "), LONGEST_CONDITION)
        title = "\n".join([style.transfer_title(transfer, scope), *lines])
        legend = f"{what}{', share' if has_shares else ''}: Theil-Sen slope"
        # One range for all panels, so that conditions and transfers can be compared.
        panel = Panel(title, [], list(found.values()), legend_title=legend)
        share = "" if points[0]["share"] is None else f", {percent(points[0]['share'])}"
        label = slope_label(points, layout.shortened(level, LONGEST_DOMAIN) + share)
        lines = panels.setdefault((kind, (condition, transfer, scope)), panel).lines
        lines.append(Line(level, points, {**looks[level], "label": label}))
    columns = domain_columns([[key for own, key in panels if own == kind] for kind in KINDS])
    width = min(4.4, max(3.3, 11 / columns))
    return draw(
        PanelFigure(
            panels, columns, (width, 0.7 * width + 0.9 + 0.19 * (len(looks) + 1)), TRANSFER_STYLE[DENSE],
            "dense run", _domain_caption(table), title=_domain_title(table),
            ylabel=f"{_domain_metric(table)} (% of dense)", legend_columns=1, bounds=style.band,
            layout=style.WIDE,
        )
    )  # fmt: skip


def domain_looks(table: list[Row]) -> dict[str, dict]:
    """Colour and marker of each domain, the same in every panel: by name; of pairs of languages by difficulty."""
    names = list(dict.fromkeys(point["level"] for point in table))
    return style.level_looks(sorted(names) if table[0]["setting"] == MULTI_DOMAIN else names)


def domain_columns(places: list[list[tuple]]) -> int:
    """How many panels stand in a row: all where they are few, else as many as a condition has transfers."""
    most_columns, most = 4, max(places, key=len)
    if len(most) <= most_columns:
        return len(most)
    per_condition = math.ceil(len(most) / len({place[0] for place in most}))
    return min(most_columns, max(2, per_condition))


def _metric(table: list[Row], task: str) -> str:
    return next(point["metric"] for point in table if point["task"] == task).replace("_", " ").capitalize()


def _method_title(compression: str, scope: str | None) -> str:
    point = {"compression": compression, "magnitude_scope": "global" if scope == "global" else None}
    return compression_name(point)


def _domain_title(table: list[Row]) -> str:
    return f"{set_title(table[0]['setting'], table[0]['task'])}: {table[0]['task']}"


def _domain_metric(table: list[Row]) -> str:
    return "BLEU" if table[0]["metric"] == "bleu" else table[0]["metric"].replace("_", " ").capitalize()


def _has_intervals(table: list[Row]) -> bool:
    """Whether the bands of a figure of sparse transfer are intervals: those over two or three seeds would cover it."""
    return {len(point["seeds"]) for point in table} == {1} and any(point["drop_low"] is not None for point in table)


def _tuning_caption(table: list[Row], more: str, of_items: bool = False) -> str:
    scope = table[0]["magnitude_scope"]
    pruned = "" if scope is None else f", magnitude threshold: {scope}"
    bands = "One seed; band: 95 % interval over items of one training." if of_items else style.seeds_note(table)
    return f"{table[0]['model']}{pruned}. {bands} Dotted: chance level. {more}"


def _unknown(table: list[Row]) -> list[str]:
    """The names of the levels whose difficulty is not known."""
    shown = [point for point in table if not point["reference_only"]]
    return list(dict.fromkeys(point["level"] for point in shown if point["difficulty"] is None))


def _level_caption(table: list[Row]) -> str:
    shown = [point for point in table if not point["reference_only"]]
    readers = ", ".join(dict.fromkeys(point["reader"] for point in shown if point["reader"]))
    seeds = style.compressed_seeds(shown)
    quantized = any(has_bits(point) for point in shown)
    return (
        f"{style.model_text(table)}. {count_span(point['num_examples'] for point in shown)} items per level"
        f"{f', read by {readers}' if readers else ''}. {seeds} seed{'' if seeds == '1' else 's'}. "
        f"Band: {style.band_note(shown)}. Dotted: chance level. Slope: normalized drop per unit of weights removed"
        f"{f' (bits: 1 - bits/{DENSE_BITS})' if quantized else ''}."
        f"{' Grey: difficulty not known.' if _unknown(table) else ''}"
    )


def _domain_caption(table: list[Row]) -> str:
    return (
        f"{table[0]['model']}. {count_span(point['num_examples'] for point in table)} items per level. "
        f"{style.seeds_text(table)} Band: 95 % interval over items, each compared with the dense run's outcome on it, "
        "widened to the range of the seeds. Dotted: chance level. Slope: normalized drop per unit of sparsity."
    )
