"""The paper's figures 2 to 6 and those of users' own tasks: how the levels of a setting fall as compression grows."""

import math
from collections.abc import Iterable

import matplotlib
from matplotlib.figure import Figure

from analysis import drawing, layout, tables
from analysis.levels import level_tables
from analysis.tables import Row
from analysis.uncertainty import trends

TITLE = {
    2: "Setting 2: number of options to choose from",
    3: "Setting 3: share of the context that is given",
    4: "Setting 4: number of worked examples",
    5: "Setting 5: gap to human performance",
    6: "Setting 6: factoid questions against multiple choice",
}
MARKERS = "os^DvPX*"
MAX_COLUMNS = 4
LONGEST_NAME = 26  # of a level in a legend
LONGEST_PAIRED_NAME = 14  # with which legends have two columns


def levels(rows: list[Row]) -> Figure:
    """Each level's score by strength in percent of the dense model's, a panel per compression and kind of strength.

    Args:
        rows: runs of one setting, model and task; those with training and perplexity are passed over.
    Raises:
        ValueError: no compressed run, or runs of several settings, models or tasks.
    Source: paper figs. 2 to 6. Added: bands, each level's slope, the chance floor, and what a panel cannot tell.
    """
    sets = level_tables.level_sets(rows)
    if len(sets) > 1:
        raise ValueError(f"the runs belong in {len(sets)} figures; take one of level_tables.level_sets")
    return draw(trends.level_table(rows))


def draw(table: list[Row]) -> Figure:
    """The figure `levels` of one level_table, with intervals (trends.with_intervals)."""
    curves = level_tables.level_curves(table)
    if not curves:
        raise ValueError("the runs hold no compressed model at a level of difficulty, so there is nothing to draw")
    looks = level_looks(list(dict.fromkeys(point["level"] for point in table if not point["reference_only"])))
    places = {kind: [key[1:] for key in curves if key[0] == kind] for kind in tables.KINDS}
    everything = [points for drawn in curves.values() for points in drawn.values()]
    with drawing.style(drawing.WIDE):
        figure, panels = _panels(places, looks)
        figure.suptitle(_title(table), fontsize=12, weight="bold")
        for (kind, method), axes in panels.items():
            drawn = curves[kind, *method]
            positions = drawing.strength_axis(axes, kind, list(drawn.values()))
            drawing.dense_line(axes, drawing.COMPRESSION_STYLE["dense"])
            for place, (level, points) in enumerate(drawn.items()):
                look = {**looks[level], "label": _label(points)}
                drawing.curve(axes, _apart(positions, place - (len(drawn) - 1) / 2), points, look, band)
                drawing.chance_line(axes, points, look["color"])
            # One range for all panels, so that the compressions can be compared.
            drawing.limits(axes, everything, band)
            drawing.warning(axes, drawn, "dense run")
            axes.set_title(_method_title(*method))
            drawing.slope_legend(axes, "level: Theil-Sen slope (strengths)", _legend_columns(looks), _below(kind))
        drawing.label_outer(panels, f"{metric_name(table)} (% of dense)")
        drawing.caption(figure, _note(table))
    return figure


def level_looks(names: list[str]) -> dict[str, dict]:
    """Colour and marker of each level: light for easy, dark for hard, the same map in all settings.

    Args:
        names: from easy to hard.
    """
    shares = [place / (len(names) - 1) for place in range(len(names))] if len(names) > 1 else [0.5]
    colors = [matplotlib.colormaps["viridis"](0.82 * (1 - share)) for share in shares]
    return {
        name: {"color": color, "marker": MARKERS[place % len(MARKERS)]}
        for place, (name, color) in enumerate(zip(names, colors, strict=True))
    }


def _apart(positions: dict[float | str, float], place: float) -> dict[float | str, float]:
    """The same positions; of a single strength, so many steps beside it, where the levels would hide each other."""
    return positions if len(positions) > 1 else {strength: at + 0.15 * place for strength, at in positions.items()}


def band(point: Row) -> tuple[float, float]:
    """The paired 95 % interval of the drop, widened to the seeds' range, in percent of the dense score."""
    low, high = drawing.seed_range(point)
    if point["drop_low"] is None or point["drop_high"] is None:
        return low, high
    return min(low, 100 + 100 * point["drop_low"]), max(high, 100 + 100 * point["drop_high"])


def set_title(setting: int | str, task: str) -> str:
    """The setting in words."""
    return TITLE.get(setting) or f"Own task: {task}"


def metric_name(table: list[Row]) -> str:
    """The metric in words, or "Score" where the levels have several."""
    metrics = {point["metric"] for point in table if not point["reference_only"]}
    return metrics.pop().replace("_", " ").capitalize() if len(metrics) == 1 else "Score"


def _panels(places: dict[str, list], looks: dict[str, dict]) -> tuple[Figure, dict]:
    total = sum(map(len, places.values()))
    columns = total if total <= MAX_COLUMNS else min(MAX_COLUMNS, max(map(len, places.values())))
    width = min(4.2, max(3.2, 11 / columns))
    legend_lines = 1 + math.ceil((len(looks) + 1) / _legend_columns(looks))
    return drawing.make_panels(places, columns, size=(width, 0.6 * width + 0.75 + 0.19 * legend_lines))


def _legend_columns(looks: dict[str, dict]) -> int:
    return 1 if max(map(len, looks)) > LONGEST_PAIRED_NAME else 2


def _below(kind: str) -> float:
    """Inches from the axis to its legend: ranks have a second line of labels."""
    return 0.6 if kind == "rank" else 0.45


def _title(table: list[Row]) -> str:
    data = list(dict.fromkeys(point["dataset"] for point in table if point["dataset"] and not point["reference_only"]))
    title = set_title(table[0]["setting"], table[0]["task"])
    return f"{title} ({data[0]})" if len(data) == 1 else title


def _method_title(compression: str, scope: str | None) -> str:
    name = drawing.compression_style(compression)["label"]
    return f"{name} (threshold: global)" if scope == "global" else name


def _label(points: list[Row]) -> str:
    level = level_tables.level_statistics(points)
    name = layout.shortened(level["level"], LONGEST_NAME)
    return f"{name}: {drawing.slope_text(level, level['theil_sen_slope'])}"


def _note(table: list[Row]) -> str:
    """What a figure needs where it stands alone."""
    shown = [point for point in table if not point["reference_only"]]
    readers = ", ".join(dict.fromkeys(point["reader"] for point in shown if point["reader"]))
    seeds = _seeds(shown)
    has_bits = any(point["strength_kind"] == "bits" for point in shown)
    return (
        f"{table[0]['model']}. {_span(point['num_examples'] for point in shown)} items per level"
        f"{f', read by {readers}' if readers else ''}. {seeds} seed{'' if seeds == '1' else 's'}. "
        f"Band: {band_note(shown)}. Dotted: chance level. Slope: normalized drop per unit of weights removed"
        f"{f' (bits: 1 - bits/{level_tables.FULL_BITS})' if has_bits else ''}."
    )


def band_note(points: list[Row]) -> str:
    """What the bands of some points of a level_table are."""
    has_seeds = _seeds(points) != "1"
    if all(point["drop_low"] is None for point in points):
        return "lowest to highest seed" if has_seeds else "none, no item is paired with the dense run"
    widened = ", widened to the range of the seeds" if has_seeds else ""
    over = "groups of items and seeds" if has_seeds else "groups of items"
    return f"95 % interval over {over}, each item compared with the dense model's outcome on it{widened}"


def _seeds(points: list[Row]) -> str:
    """How many seeds compressed points have: "1", "2 to 3"."""
    return _span(len(point["seeds"]) for point in points if point["strength_kind"] is not None)


def _span(counts: Iterable[int]) -> str:
    found = sorted(set(counts))
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
