"""What every figure is built of: colours and markers, panels, axes, curves with bands, warnings, captions.

A curve is a list of points of a table, drawn in percent of the dense score. Nothing here needs a display or touches
matplotlib's global state.
"""

import contextlib
import io
import itertools
import math
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from analysis import layout
from analysis.estimators import MIN_STRENGTHS
from analysis.names import CHECKPOINT, COMPRESSIONS, base_name, count_span, method_name
from analysis.table import DENSE, FREEZING, SPARSE, SPARSE_TO_DENSE, Row, compression_order

# Okabe and Ito's palette, which colour-blind readers can tell apart; the markers tell the curves apart in print.
TRANSFER_STYLE = {
    SPARSE_TO_DENSE: {"label": "Sparse to Dense Transfer", "color": "#009E73", "marker": "^"},
    SPARSE: {"label": "Sparse Transfer", "color": "#E69F00", "marker": "s"},
    DENSE: {"label": "Dense Transfer", "color": "#D42A2A", "linestyle": "--"},
    FREEZING: {"label": "Dense Transfer with Freezing", "color": "#0072B2", "marker": "o"},
}
# The same palette, with grey and brown for the seventh and eighth.
_COMPRESSION_LOOKS = {
    "dense": {"color": "#D42A2A", "linestyle": "--"},
    "magnitude": {"color": "#E69F00", "marker": "s"},
    "wanda": {"color": "#0072B2", "marker": "o"},
    "ria": {"color": "#56B4E9", "marker": "D"},
    "sparsegpt": {"color": "#009E73", "marker": "^"},
    "rtn": {"color": "#666666", "marker": "X"},
    "gptq": {"color": "#CC79A7", "marker": "v"},
    "low_rank": {"color": "#7A4A21", "marker": "P"},
}
COMPRESSION_STYLE = {name: {"label": COMPRESSIONS[name], **look} for name, look in _COMPRESSION_LOOKS.items()}
LEVEL_MARKERS = "os^DvPX*"
UNKNOWN_COLORS = ("0.45", "0.65", "0.3", "0.55")  # of levels of unknown difficulty, which are neither easy nor hard
NEW_COLORS = ("#6A3D9A", "#8C9A1E", "#C2185B", "#2F4B7C")  # of methods that users add, and of checkpoints
CHECKPOINT_MARKERS = "*hp<>dH8"
ALLOCATED_DASHES = ((0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2, 2, 2)))
KIND_TITLE = {
    "sparsity": "Unstructured sparsity",
    "nm": "N:M sparsity (N of M kept)",
    "bits": "Quantization",
    "rank": "Low rank",
    "sparsity+bits": "Sparsity, then quantization",
    "nm+bits": "N:M sparsity, then quantization",
    "bytes": "Compressed elsewhere",
}
KIND_AXIS = {
    "sparsity": "Sparsity (%)",
    "nm": "Weights kept (N:M)",
    "bits": "Bits per weight",
    "rank": "Rank, and parameters left",
    "sparsity+bits": "Sparsity + bits per weight kept",
    "nm+bits": "N:M + bits per weight kept",
    "bytes": "Bytes of the files (% of the parent's)",
}
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
WIDE = {"figure.constrained_layout.w_pad": 0.1}  # for `style`: more room between panels
MAX_TICKS = 10
MAX_RANK_TICKS = 6  # whose labels are wider
MOST_ABOVE = 60  # percent of the dense score by which a panel is higher than its highest point
WARNING_WIDTH = 34  # letters in a line
WARNED_NAMES, WARNED_LETTERS = 5, 30  # that a warning lists, and of each
WARNING_ROOM = 0.3  # below the curves, as a share of their range
UNBROKEN = "\N{NO-BREAK SPACE}"

Band = Callable[[Row], tuple[float, float]]  # low and high bound of a point, in percent of the dense score


@contextlib.contextmanager
def style(more: Mapping[str, float] | None = None) -> Iterator[None]:
    """In the context, matplotlib has its defaults, LAYOUT and `more`, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**LAYOUT, **(more or {})})
        yield


def encode(figure: Figure, file_format: str, dpi: int) -> bytes:
    """The figure as the bytes of a png, pdf or svg file."""
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")  # layout.arrange says it
        figure.dpi = dpi
        layout.arrange(figure)
        dpi = min(dpi, int(layout.MAX_PIXELS / max(figure.get_size_inches())))
        stream = io.BytesIO()
        figure.savefig(stream, format=file_format, dpi=dpi, facecolor="white")
        return stream.getvalue()


def compression_style(compression: str) -> dict[str, str]:
    """How a compression is drawn in every figure; what is not of ours gets a colour by its name.

    Of two in a row it is the colour of the first and the marker of the second. One whose sparsity is allocated, or of
    some layers, has its method's colour, other dashes and hollow markers.
    """
    if compression in COMPRESSION_STYLE:
        return COMPRESSION_STYLE[compression]
    if (base := base_name(compression)) != compression:
        dashes = ALLOCATED_DASHES[zlib.crc32(compression.encode()) % len(ALLOCATED_DASHES)]
        return {**compression_style(base), "label": method_name(compression), "linestyle": dashes,
                "markerfacecolor": "white"}  # fmt: skip
    first, joined, second = compression.partition("+")
    if joined and not compression.startswith(CHECKPOINT):
        looks = compression_style(first), compression_style(second)
        return {"label": method_name(compression), "color": looks[0]["color"], "marker": looks[1]["marker"]}
    number = zlib.crc32(compression.encode())
    color, marker = NEW_COLORS[number % len(NEW_COLORS)], "*"
    if compression.startswith(CHECKPOINT):
        marker = CHECKPOINT_MARKERS[number // len(NEW_COLORS) % len(CHECKPOINT_MARKERS)]
    return {"label": method_name(compression), "color": color, "marker": marker}


def compression_look(compression: str, scope: str | None) -> dict:
    """The compression's colour and marker; hollow where magnitude has one global threshold."""
    look = compression_style(compression)
    if scope != "global":
        return look
    return {**look, "label": f"{look['label']}, global threshold", "linestyle": "-.", "markerfacecolor": "white"}


def fraction_color(fraction: float) -> tuple[float, float, float, float]:
    """Light for much training data, dark for little; the same in every figure."""
    # The square root spreads the usual fractions evenly; 4 % and less share the darkest colour.
    return matplotlib.colormaps["viridis"](0.88 * max(0.0, (math.sqrt(fraction) - 0.2) / 0.8))


def level_looks(names: list[str], unknown: Sequence[str] = ()) -> dict[str, dict]:
    """Colour and marker of each level: light for easy, dark for hard, the same colours in all settings.

    Args:
        names: from easy to hard.
        unknown: names of levels whose difficulty is not known, which are grey.
    """
    shares = [place / (len(names) - 1) for place in range(len(names))] if len(names) > 1 else [0.5]
    colors = [matplotlib.colormaps["viridis"](0.82 * (1 - share)) for share in shares[: len(names)]]
    colors += [UNKNOWN_COLORS[place % len(UNKNOWN_COLORS)] for place in range(len(unknown))]
    return {
        name: {"color": color, "marker": LEVEL_MARKERS[place % len(LEVEL_MARKERS)]}
        for place, (name, color) in enumerate(zip([*names, *unknown], colors, strict=True))
    }


def model_text(table: Sequence[Row]) -> str:
    """The name of a table's model, with what was done to it before anything was measured here."""
    before = next((row["parent_quantized"] for row in table if row.get("parent_quantized")), None)
    return f"{table[0]['model']}{f', once quantized {before}' if before else ''}"


def dense_line(axes: Axes, look: dict) -> None:
    axes.axhline(100, **look, zorder=1.5)


def make_panels(keys_of_kind: dict[str, list], columns: int, size: tuple[float, float]) -> tuple[Figure, dict]:
    """A figure with one part for each kind of strength that has panels, and its axes by (kind, key).

    Parts stand side by side where they have a single column or fit into one row together, else below each other. A key
    of None leaves its cell empty.
    """
    kinds = [kind for kind, keys in keys_of_kind.items() if keys]
    lines = [math.ceil(len(keys_of_kind[kind]) / columns) for kind in kinds]
    bands = [kinds] if columns == 1 else _bands({kind: len(keys_of_kind[kind]) for kind in kinds}, columns)
    heights = [max(lines[kinds.index(kind)] for kind in band) for band in bands]
    width, height = size[0] * (len(kinds) if columns == 1 else columns), size[1] * sum(heights)
    figure = Figure(figsize=(max(width, 4.8), height + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    rows = [figure]
    if len(bands) > 1 or len(kinds) == 1:
        rows = figure.subfigures(len(bands), 1, height_ratios=heights, squeeze=False).flat
    parts = []
    for band, row in zip(bands, rows, strict=True):
        counts = [min(columns, len(keys_of_kind[kind])) for kind in band]
        if len(band) == 1:
            parts.append((row, columns))
        else:
            rest = [columns - sum(counts)] if columns > sum(counts) else []
            found = row.subfigures(1, len(band) + len(rest), width_ratios=counts + rest, squeeze=False).flat
            parts += zip(found, counts, strict=False)
    panels = {}
    for letter, kind, (part, own_columns), count in zip("abcdefg", kinds, parts, lines, strict=False):
        part.suptitle(f"({letter}) {KIND_TITLE[kind]}" if len(kinds) > 1 else KIND_TITLE[kind], weight="bold")
        grid = part.subplots(count, own_columns, squeeze=False)
        for axes, key in itertools.zip_longest(grid.flat, keys_of_kind[kind]):
            if key is None:
                axes.set_axis_off()
            else:
                panels[kind, key] = axes
    return figure, panels


def _bands(counts: dict[str, int], columns: int) -> list[list[str]]:
    """Kinds that stand in one row: neighbours whose panels fit into the columns together."""
    bands: list[list[str]] = []
    for kind, count in counts.items():
        if bands and sum(counts[other] for other in bands[-1]) + count <= columns:
            bands[-1].append(kind)
        else:
            bands.append([kind])
    return bands


def strength_axis(axes: Axes, kind: str, curves: list[list[Row]]) -> dict[float | str, float]:
    """Label the horizontal axis; returns the position of each strength: sparsity in percent, others evenly spaced."""
    points = {point["strength"]: point for points in curves for point in points}
    strengths = sorted(points, key=lambda strength: compression_order(points[strength]))
    if kind == "sparsity":
        positions = {strength: 100 * strength for strength in strengths}
        labels = {strength: f"{100 * strength:.4g}" for strength in strengths}
    else:
        positions = {strength: float(place) for place, strength in enumerate(strengths)}
        labels = {strength: _strength_label(points[strength]) for strength in strengths}
    shown = strengths[:: math.ceil(len(strengths) / (MAX_RANK_TICKS if kind == "rank" else MAX_TICKS))]
    axes.set_xticks([positions[strength] for strength in shown], [labels[strength] for strength in shown])
    margin = 0.05 * (max(positions.values()) - min(positions.values())) or 1.0
    margin = margin if kind == "sparsity" else max(margin, 0.25)
    axes.set_xlim(min(positions.values()) - margin, max(positions.values()) + margin)
    axes.set_xlabel(KIND_AXIS[kind])
    return positions


def _strength_label(point: Row) -> str:
    """N:M, bits, rank or percent of bytes; below a rank the share of the parameters that its two factors have."""
    if point["strength_kind"] == "bytes":
        return f"{100 * point['strength']:.3g}"
    ratio = point.get("parameter_ratio")
    return str(point["strength"]) if ratio is None else f"{point['strength']}\n{100 * ratio:.0f} %"


def seed_range(point: Row) -> tuple[float, float]:
    """Lowest and highest seed in percent of the dense mean; Student's interval of 2 seeds would cover the curves."""
    dense = point["dense_mean_score"]
    return 100 * point["lowest_score"] / dense, 100 * point["highest_score"] / dense


def band(point: Row) -> tuple[float, float]:
    """The paired 95 % interval of the drop, widened to the seeds' range, in percent of the dense score."""
    low, high = seed_range(point)
    if point["drop_low"] is None or point["drop_high"] is None:
        return low, high
    return min(low, 100 + 100 * point["drop_low"]), max(high, 100 + 100 * point["drop_high"])


def curve(
    axes: Axes, positions: dict[float | str, float], points: list[Row], look: dict, bounds: Band = seed_range
) -> None:
    """Draw the mean over seeds within its band; faint markers alone where the dense model did not learn the task."""
    drawn = [point for point in points if point["relative_percent"] is not None]
    where = [positions[point["strength"]] for point in drawn]
    learned = points[0]["dense_above_chance"] is not False
    faint = {} if learned else {"alpha": 0.5, "markerfacecolor": "white", "linestyle": "none"}
    axes.plot(where, [point["relative_percent"] for point in drawn], **{**look, **faint})
    bands = [bounds(point) for point in drawn]
    if learned and any(low < high for low, high in bands):
        draw_band(axes, where, bands, look["color"])


def draw_band(axes: Axes, where: list[float], bands: list[tuple[float, float]], color: object) -> None:
    """Draw the bounds of each point: an area, or a bar where a curve has a single point."""
    low, high = zip(*bands, strict=True)
    if len(where) > 1:
        axes.fill_between(where, low, high, color=color, alpha=0.2, linewidth=0)
    else:
        axes.vlines(where, low, high, color=color, alpha=0.35, linewidth=6)


def floor(points: list[Row]) -> float | None:
    """Chance in percent of the dense mean."""
    chance, dense = points[0]["chance"], points[0]["dense_mean_score"]
    return None if chance is None or dense is None or dense <= 0 else 100 * chance / dense


def chance_line(axes: Axes, points: list[Row], color: object) -> None:
    height = floor(points)
    if height is not None and points[0]["dense_above_chance"] is not False:
        axes.axhline(height, color=color, linestyle=":", linewidth=1.2, zorder=1)


def limits(axes: Axes, curves: list[list[Row]], bounds: Band = seed_range, room: float = WARNING_ROOM) -> None:
    """Set the range of the vertical axis to that of the curves, without those whose dense model is at chance.

    Args:
        room: what is left free below for a warning, where a curve gets one, as a share of the range.
    """
    room = room if any(map(is_warned, curves)) else 0.0
    learned = [points for points in curves if points[0]["dense_above_chance"] is not False]
    shown = [point for points in learned or curves for point in points if point["relative_percent"] is not None]
    heights = [height for point in shown for height in (point["relative_percent"], *bounds(point))]
    heights += [height for points in learned if (height := floor(points)) is not None] + [100.0]
    if not shown:
        heights += [0.0]
    # An interval may reach to many times a dense score that is near 0, or over few seeds: it then leaves the panel.
    most = max([100.0, *(point["relative_percent"] for point in shown)]) + MOST_ABOVE
    low, high = min(heights), min(max(heights), most)
    margin = 0.05 * (high - low or 10)
    axes.set_ylim(low - margin - room * (high - low), high + margin)


def is_warned(points: list[Row]) -> bool:
    """Whether `warning` says something of the curve."""
    return points[0]["dense_mean_score"] is None or points[0]["dense_above_chance"] is False


def warning(axes: Axes, curves: dict[str, list[Row]], reference: str, unit: str = "") -> None:
    """Write in the panel which curves have no dense reference, or one at chance.

    Args:
        curves: by name.
        reference: what the scores are relative to, "dense transfer".
        unit: what follows the names, " data".
    """
    whole = {name: layout.shortened(name, WARNED_LETTERS).replace(" ", UNBROKEN) for name in curves}
    missing = [whole[name] for name, points in curves.items() if points[0]["dense_mean_score"] is None]
    at_chance = [whole[name] for name, points in curves.items() if points[0]["dense_above_chance"] is False]
    texts = []
    if missing:
        where = "" if len(missing) == len(curves) else f"\nat {_some(missing)}{unit}"
        texts.append(f"NO {reference.upper()}{where}:\nno reference, not drawn")
    if at_chance:
        where = "" if len(at_chance) == len(curves) else f"\nat {_some(at_chance)}{unit}"
        texts.append(f"DENSE NOT ABOVE CHANCE{where}:\nits drops mean nothing")
    if texts:
        warning_box(axes, "\n".join(texts))


def _some(names: list[str]) -> str:
    """The first of the names, and how many more there are."""
    rest = len(names) - WARNED_NAMES
    return ", ".join(names[:WARNED_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def warning_box(axes: Axes, text: str) -> None:
    """Write a warning in the panel, at the lower left, which is free because scores fall to the right."""
    lines = [textwrap.fill(line, WARNING_WIDTH) for line in text.splitlines()]
    axes.text(
        0.04, 0.08, "\n".join(lines).replace(UNBROKEN, " "), transform=axes.transAxes, fontsize=8.5, color="#8B0000",
        linespacing=1.3, bbox={"boxstyle": "round", "facecolor": "#FDECEA", "edgecolor": "#8B0000", "alpha": 0.9},
        zorder=5,
    )  # fmt: skip


def slope_text(level: Row, slope: float | None) -> str:
    """A curve's slope and its number of strengths for the legend, or why it has no slope.

    Args:
        level: curves.curve_statistics of the curve.
        slope: one of its slopes.
    """
    if level["dense_mean_score"] is None:
        return "no dense"
    if level["dense_above_chance"] is False:
        return "at chance"
    if slope is None:
        return "no slope"
    count = len(set(level["strengths"]))
    return f"{slope:+.2f} ({count})" if count >= MIN_STRENGTHS else f"{slope:+.2f} (difference of {count})"


def slope_legend(axes: Axes, title: str, columns: int = 2, below: float = 0.45) -> None:
    """A legend `below` inches under the axis, where it covers no curve."""
    place = axes.transAxes + ScaledTranslation(0, -below, axes.get_figure(root=True).dpi_scale_trans)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=place, ncols=columns, frameon=False,
        handlelength=1.6, columnspacing=0.8, title=title,
    )  # fmt: skip


def label_outer(panels: dict, label: str) -> None:
    for axes in panels.values():
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(label)


def seeds_note(table: list[Row]) -> str:
    """What the bands of a figure without intervals are."""
    seeds = count_span(len(point["seeds"]) for point in table)
    return "One seed, no band." if seeds == "1" else f"Mean of {seeds} seeds; band: lowest to highest seed."


def caption(figure: Figure, note: str) -> None:
    """Write what a reader must know where the figure stands alone."""
    figure.supxlabel(note, fontsize=8, color="0.3")


def metric_name(table: list[Row]) -> str:
    """The metric in words, or "Score" where the levels have several."""
    metrics = {point["metric"] for point in table if not point["reference_only"]}
    return metrics.pop().replace("_", " ").capitalize() if len(metrics) == 1 else "Score"


def band_note(points: list[Row]) -> str:
    """What the bands of points of a level_table are."""
    has_seeds = compressed_seeds(points) != "1"
    if all(point["drop_low"] is None for point in points):
        paired = any(point["paired_items"] for point in points if point["strength"] is not None)
        why = "the dense model is not above chance" if paired else "no item is paired with the dense run"
        return "lowest to highest seed" if has_seeds else f"none, {why}"
    widened = ", widened to the range of the seeds" if has_seeds else ""
    over = "groups of items and seeds" if has_seeds else "groups of items"
    return f"95 % interval over {over}, each item compared with the dense model's outcome on it{widened}"


def compressed_seeds(points: list[Row]) -> str:
    """How many seeds compressed points have: "1", "2 to 3"."""
    return count_span(len(point["seeds"]) for point in points if point["strength_kind"] is not None)


def transfer_title(transfer: str, scope: str | None) -> str:
    """The transfer in words, with the scope of magnitude where it is not the usual one."""
    name = TRANSFER_STYLE[transfer]["label"]
    return f"{name} (threshold per layer)" if scope == "layer" else name


def seeds_text(table: list[Row]) -> str:
    """ "1 seed.", "2 to 3 seeds."."""
    seeds = count_span(len(row["seeds"]) for row in table)
    return f"{seeds} seed{'' if seeds == '1' else 's'}."
