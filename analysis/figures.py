"""The paper's figures as functions of a table: each takes the rows of results.read_runs and returns a Figure.

Nothing here needs a display or touches matplotlib's global state. Scores of fine-tuning are drawn in percent of the
dense transfer's mean at the same task and data fraction; the numbers behind a figure are those of its table in
analysis.tables.
"""

import io
import itertools
import math
import textwrap
import zlib

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from analysis import tables
from analysis.tables import Row

# Okabe and Ito's palette, told apart by colour-blind readers; the markers tell the curves apart in print.
TRANSFER_STYLE = {
    tables.SPARSE_TO_DENSE: {"label": "Sparse to Dense Transfer", "color": "#009E73", "marker": "^"},
    tables.SPARSE: {"label": "Sparse Transfer", "color": "#E69F00", "marker": "s"},
    tables.DENSE: {"label": "Dense Transfer", "color": "#D42A2A", "linestyle": "--"},
    tables.FREEZING: {"label": "Dense Transfer with Freezing", "color": "#0072B2", "marker": "o"},
}
# Of every figure that compares compressions: the palette again, and grey and brown for the seventh and eighth.
COMPRESSION_STYLE = {
    "dense": {"label": "Dense", "color": "#D42A2A", "linestyle": "--"},
    "magnitude": {"label": "Magnitude", "color": "#E69F00", "marker": "s"},
    "wanda": {"label": "Wanda", "color": "#0072B2", "marker": "o"},
    "ria": {"label": "RIA", "color": "#56B4E9", "marker": "D"},
    "sparsegpt": {"label": "SparseGPT", "color": "#009E73", "marker": "^"},
    "rtn": {"label": "Round to nearest", "color": "#666666", "marker": "X"},
    "gptq": {"label": "GPTQ", "color": "#CC79A7", "marker": "v"},
    "low_rank": {"label": "Low rank", "color": "#7A4A21", "marker": "P"},
}
NEW_COLORS = ("#6A3D9A", "#8C9A1E", "#C2185B", "#2F4B7C")  # of methods that users add
KIND_TITLE = {
    "sparsity": "Unstructured sparsity",
    "nm": "N:M sparsity (N of M kept)",
    "bits": "Quantization",
    "rank": "Low rank",
}
KIND_AXIS = {
    "sparsity": "Sparsity (%)",
    "nm": "Weights kept (N:M)",
    "bits": "Bits per weight",
    "rank": "Rank (parameters left)",
}
TASK_NAME = {
    "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2",
    "stsb": "STS-B", "wnli": "WNLI",
}  # fmt: skip
LAYOUT = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "grid.color": "0.9",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "figure.constrained_layout.h_pad": 0.06,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}
MAX_COLUMNS = 5
MAX_TICKS = 10


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
    with matplotlib.rc_context(LAYOUT):
        columns = min(4, max(map(len, tasks.values())))
        width = min(4.2, max(3.1, 11 / columns))
        figure, panels = _panels(tasks, columns, size=(width, 0.6 * width + 1.7))
        for (kind, task), axes in panels.items():
            levels = {key[-1]: points for key, points in curves.items() if key[:2] == (task, kind)}
            positions = _strength_axis(axes, kind, list(levels.values()))
            _dense_line(axes)
            for fraction, points in levels.items():
                look = {"color": fraction_color(fraction), "marker": "o", "label": _level_label(points)}
                _curve(axes, positions, points, look)
                _chance_line(axes, points, fraction_color(fraction))
            _limits(axes, list(levels.values()))
            _warning(axes, list(levels.values()))
            axes.set_title(f"{task_name(task)} ({_metric(table, task)})")
            # Below the axis title, whatever the height of the panel: inside, it would lie on some curve.
            below = axes.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=2, frameon=False,
                handlelength=1.8, columnspacing=1.2, title="training data: Theil-Sen slope",
            )  # fmt: skip
        _label_outer(panels, "Score (% of dense transfer)")
        _note(figure, table, "Slope: normalized drop per unit of sparsity. ")
    return figure


def four_transfers(rows: list[Row]) -> Figure:
    """The four ways of transfer, a panel per task, data fraction and kind of sparsity.

    Args:
        rows: runs of one setting, model and magnitude scope.
    Raises:
        ValueError: neither dense transfer with freezing nor sparse-to-dense transfer, or runs of several figures.
    Source: paper fig. 8. Added: the seeds' range, the chance floor, and what a panel cannot tell.
    """
    table = tables.four_transfers_table(rows)
    if not table:
        raise ValueError("the runs hold neither dense_transfer_freezing nor sparse_to_dense, so nothing to compare")
    curves = tables.curves(table)
    places = {
        kind: list(dict.fromkeys((task, fraction) for task, own, _, fraction in curves if own == kind))
        for kind in tables.KINDS
    }
    with matplotlib.rc_context(LAYOUT):
        columns = _columns(places)
        width = min(4.0, max(2.4, 9 / columns))
        figure, panels = _panels(places, columns, size=(width, 0.6 * width + 0.65))
        for (kind, (task, fraction)), axes in panels.items():
            ways = {key[2]: points for key, points in curves.items() if (*key[:2], key[3]) == (task, kind, fraction)}
            positions = _strength_axis(axes, kind, list(ways.values()))
            _dense_line(axes)
            _dense_band(axes, table, task, fraction)
            for transfer, points in ways.items():
                _curve(axes, positions, points, TRANSFER_STYLE[transfer])
            _chance_line(axes, next(iter(ways.values())), "0.3")
            # One range for all fractions of a task, so that its panels can be compared.
            _limits(axes, [points for key, points in curves.items() if key[:2] == (task, kind)])
            _warning(axes, list(ways.values()))
            axes.set_title(f"{task_name(task)}, {percent(fraction)} data")
            if not axes.get_subplotspec().is_last_row():
                axes.set_xlabel("")
        _label_outer(panels, "Score (% of dense)")
        _transfer_legend(figure, {key[2] for key in curves})
        tasks = dict.fromkeys(task for task, *_ in curves)
        _note(figure, table, "".join(f"{task_name(task)}: {_metric(table, task)}. " for task in tasks))
    return figure


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
    with matplotlib.rc_context(LAYOUT):
        figure = Figure(figsize=(max(5.5, 2.9 * len(kinds) + 0.6), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for kind, axes in zip(kinds, panels, strict=True):
            own = {key: points for key, points in curves.items() if key[0] == kind}
            positions = _strength_axis(axes, kind, list(own.values()))
            _perplexity_references(axes, table)
            for (_, compression, scope), points in own.items():
                _perplexity_curve(axes, positions, points, _compression_look(compression, scope))
            axes.set_title(KIND_TITLE[kind])
        _perplexity_axis(panels[0], table)
        handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        lines = math.ceil(len(handles) / max(2, int(figure.get_figwidth() / 1.7)))
        columns = math.ceil(len(handles) / lines)
        figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=columns, frameon=False)
        _caption(figure, _perplexity_note(table))
    return figure


def encode(figure: Figure, file_format: str, dpi: int) -> bytes:
    """The figure as the bytes of a png, pdf or svg file."""
    stream = io.BytesIO()
    figure.savefig(stream, format=file_format, dpi=dpi, facecolor="white")
    return stream.getvalue()


def compression_style(compression: str) -> dict[str, str]:
    """How a compression is drawn in every figure; one that the project does not know gets a look from its name."""
    if compression in COMPRESSION_STYLE:
        return COMPRESSION_STYLE[compression]
    number = zlib.crc32(compression.encode())
    return {"label": compression, "color": NEW_COLORS[number % len(NEW_COLORS)], "marker": "*"}


def fraction_color(fraction: float) -> tuple[float, float, float, float]:
    """Light for much training data, dark for little; the same in every figure."""
    # The square root spreads the usual fractions evenly; 4 % and less share the darkest colour.
    return matplotlib.colormaps["viridis"](0.88 * max(0.0, (math.sqrt(fraction) - 0.2) / 0.8))


def task_name(task: str) -> str:
    """The task as the paper writes it."""
    return TASK_NAME.get(task, task)


def percent(fraction: float) -> str:
    """0.25 -> "25 %"."""
    return f"{100 * fraction:.4g} %"


def _panels(keys_of_kind: dict[str, list], columns: int, size: tuple[float, float]) -> tuple[Figure, dict]:
    """A figure with one part per kind of sparsity that has panels; its axes by (kind, key), line by line.

    Parts of a single column stand side by side, others below each other.
    """
    kinds = [kind for kind, keys in keys_of_kind.items() if keys]
    lines = [math.ceil(len(keys_of_kind[kind]) / columns) for kind in kinds]
    width, height = size[0] * columns, size[1] * sum(lines)
    if columns == 1:
        width, height = size[0] * len(kinds), size[1] * max(lines)
    figure = Figure(figsize=(max(width, 4.8), height + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    if columns == 1:
        parts = figure.subfigures(1, len(kinds), squeeze=False)
    else:
        parts = figure.subfigures(len(kinds), 1, height_ratios=lines, squeeze=False)
    panels = {}
    for letter, kind, part, count in zip("abcd", kinds, parts.flat, lines, strict=False):
        part.suptitle(f"({letter}) {KIND_TITLE[kind]}" if len(kinds) > 1 else KIND_TITLE[kind], weight="bold")
        grid = part.subplots(count, columns, squeeze=False)
        for axes, key in itertools.zip_longest(grid.flat, keys_of_kind[kind]):
            if key is None:
                axes.set_axis_off()
            else:
                panels[kind, key] = axes
    return figure, panels


def _columns(places: dict[str, list]) -> int:
    """Columns of four_transfers: one line if all panels fit, a line per task if all have as many, full lines else."""
    most = max(places.values(), key=len)
    per_task = {len(list(group)) for _, group in itertools.groupby(most, key=lambda place: place[0])}
    count = len(most) if len(most) <= MAX_COLUMNS or len(per_task) > 1 or per_task == {1} else per_task.pop()
    return math.ceil(count / math.ceil(count / MAX_COLUMNS))


def _strength_axis(axes: Axes, kind: str, curves: list[list[Row]]) -> dict[float | str, float]:
    """Label the horizontal axis; where each strength stands on it: sparsity in percent, others evenly spaced."""
    points = {point["strength"]: point for points in curves for point in points}
    strengths = sorted(points, key=lambda strength: tables.compression_order(points[strength]))
    if kind == "sparsity":
        positions = {strength: 100 * strength for strength in strengths}
        labels = {strength: f"{100 * strength:.4g}" for strength in strengths}
    else:
        positions = {strength: float(place) for place, strength in enumerate(strengths)}
        labels = {strength: _strength_label(points[strength]) for strength in strengths}
    shown = strengths[:: math.ceil(len(strengths) / MAX_TICKS)]
    axes.set_xticks([positions[strength] for strength in shown], [labels[strength] for strength in shown])
    margin = 0.05 * (max(positions.values()) - min(positions.values())) or 1.0
    margin = margin if kind == "sparsity" else max(margin, 0.25)
    axes.set_xlim(min(positions.values()) - margin, max(positions.values()) + margin)
    axes.set_xlabel(KIND_AXIS[kind])
    return positions


def _strength_label(point: Row) -> str:
    """N:M, bits or rank, below a rank the share of the parameters that its two factors have."""
    ratio = point.get("parameter_ratio")
    return str(point["strength"]) if ratio is None else f"{point['strength']}\n({100 * ratio:.0f} %)"


def _dense_line(axes: Axes) -> None:
    axes.axhline(100, **TRANSFER_STYLE[tables.DENSE], zorder=1.5)


def _dense_band(axes: Axes, table: list[Row], task: str, fraction: float) -> None:
    """The seeds of the dense transfer itself, so that the noise of the reference is seen."""
    for point in table:
        is_reference = (point["task"], point["data_fraction"], point["transfer"]) == (task, fraction, tables.DENSE)
        if is_reference and point["dense_above_chance"] is not False and len(point["seeds"]) > 1:
            axes.axhspan(*_band(point), color=TRANSFER_STYLE[tables.DENSE]["color"], alpha=0.12, linewidth=0)


def _curve(axes: Axes, positions: dict[float | str, float], points: list[Row], look: dict) -> None:
    """Mean over seeds with the range of the seeds; faint marks alone where the dense model did not learn the task."""
    drawn = [point for point in points if point["relative_percent"] is not None]
    where = [positions[point["strength"]] for point in drawn]
    learned = points[0]["dense_above_chance"] is not False
    faint = {} if learned else {"alpha": 0.5, "markerfacecolor": "white", "linestyle": "none"}
    axes.plot(where, [point["relative_percent"] for point in drawn], **look, **faint)
    if learned and any(len(point["seeds"]) > 1 for point in drawn):
        _seed_band(axes, where, [_band(point) for point in drawn], look["color"])


def _seed_band(axes: Axes, where: list[float], bands: list[tuple[float, float]], color: str) -> None:
    """From the lowest to the highest seed; a bar where a curve has a single point."""
    low, high = zip(*bands, strict=True)
    if len(where) > 1:
        axes.fill_between(where, low, high, color=color, alpha=0.2, linewidth=0)
    else:
        axes.vlines(where, low, high, color=color, alpha=0.35, linewidth=6)


def _band(point: Row) -> tuple[float, float]:
    """Lowest and highest seed in percent of the dense mean; Student's interval of 2 seeds would hide the curves."""
    dense = point["dense_mean_score"]
    return 100 * point["lowest_score"] / dense, 100 * point["highest_score"] / dense


def _floor(points: list[Row]) -> float | None:
    """Chance in percent of the dense mean, the level below which a score does not fall for long."""
    chance, dense = points[0]["chance"], points[0]["dense_mean_score"]
    return None if chance is None or dense is None or dense <= 0 else 100 * chance / dense


def _chance_line(axes: Axes, points: list[Row], color: object) -> None:
    floor = _floor(points)
    if floor is not None and points[0]["dense_above_chance"] is not False:
        axes.axhline(floor, color=color, linestyle=":", linewidth=1.2, zorder=1)


def _limits(axes: Axes, curves: list[list[Row]]) -> None:
    """Show everything that means something: curves whose dense model is at chance do not stretch the axis."""
    learned = [points for points in curves if points[0]["dense_above_chance"] is not False]
    shown = [point for points in learned for point in points if point["relative_percent"] is not None]
    heights = [height for point in shown for height in _band(point)]
    heights += [floor for points in learned if (floor := _floor(points)) is not None] + [100.0]
    if not shown:
        heights += [0.0]
    low, high = min(heights), max(heights)
    margin = 0.05 * (high - low or 10)
    axes.set_ylim(low - margin, high + margin)


def _warning(axes: Axes, curves: list[list[Row]]) -> None:
    """Say in the panel which data fractions have no reference, or one that means nothing."""
    missing = [points[0]["data_fraction"] for points in curves if points[0]["dense_mean_score"] is None]
    at_chance = [points[0]["data_fraction"] for points in curves if points[0]["dense_above_chance"] is False]
    texts = []
    if missing:
        texts.append(f"NO DENSE TRANSFER{_at(missing, curves)}:\nno reference, not drawn")
    if at_chance:
        texts.append(f"DENSE NOT ABOVE CHANCE{_at(at_chance, curves)}:\nits drops mean nothing")
    if texts:
        # The lower left is free: scores fall to the right.
        axes.text(
            0.04, 0.08, "\n".join(texts), transform=axes.transAxes, fontsize=8.5, color="#8B0000", linespacing=1.3,
            bbox={"boxstyle": "round", "facecolor": "#FDECEA", "edgecolor": "#8B0000", "alpha": 0.9}, zorder=5,
        )  # fmt: skip


def _at(fractions: list[float], curves: list[list[Row]]) -> str:
    """At which data fractions, where it is not all that the panel shows."""
    if set(fractions) == {points[0]["data_fraction"] for points in curves}:
        return ""
    return "\nat " + ", ".join(f"{100 * fraction:.4g}" for fraction in sorted(set(fractions))) + " % data"


def _level_label(points: list[Row]) -> str:
    level = tables.curve_statistics(points)
    slope = level["theil_sen_slope"]
    if level["dense_mean_score"] is None:
        told = "no dense"
    elif level["dense_above_chance"] is False:
        told = "at chance"
    else:
        told = "no slope" if slope is None else f"{slope:+.2f}"
    return f"{percent(level['data_fraction'])}: {told}"


def _metric(table: list[Row], task: str) -> str:
    return next(point["metric"] for point in table if point["task"] == task).replace("_", " ").capitalize()


def _label_outer(panels: dict, label: str) -> None:
    for axes in panels.values():
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label)


def _transfer_legend(figure: Figure, transfers: set[str]) -> None:
    shown = [style for transfer, style in TRANSFER_STYLE.items() if transfer in transfers | {tables.DENSE}]
    handles = [Line2D([], [], **style) for style in shown]
    columns = 4 if figure.get_figwidth() > 8.5 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False)


def _compression_look(compression: str, scope: str | None) -> dict:
    """The compression's colour and marker; hollow where magnitude ranks all weights together."""
    look = compression_style(compression)
    if scope != "global":
        return look
    return {**look, "label": f"{look['label']}, global threshold", "linestyle": "-.", "markerfacecolor": "white"}


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
        _seed_band(axes, where, bands, look["color"])


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
    return f"{first['model']} on {first['windows']} windows of {first['text']}. {dense}{_seeds_note(table)}"


def _seeds_note(table: list[Row]) -> str:
    counts = sorted({len(point["seeds"]) for point in table})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return "One seed, no band." if counts == [1] else f"Mean of {seeds} seeds; band: lowest to highest seed."


def _note(figure: Figure, table: list[Row], more: str = "") -> None:
    scope = table[0]["magnitude_scope"]
    pruned = "" if scope is None else f", magnitude threshold: {scope}"
    _caption(figure, f"{table[0]['model']}{pruned}. {_seeds_note(table)} Dotted: chance level. {more}")


def _caption(figure: Figure, note: str) -> None:
    """What a figure needs where it stands alone."""
    figure.supxlabel(textwrap.fill(note, int(17 * figure.get_figwidth())), fontsize=8, color="0.3")
