"""Where the hard knowledge lives: what is lost where some layers alone are compressed, at each level.

A single block of many often costs too little for the items to tell; how far the distribution over the options moves
(flips' KL) tells blocks apart with far fewer, and at chance too, but says nothing of the direction.

And what is gained where the same sparsity is spread over the layers in another way. Both compare every point with the
dense model on the same items, and correct their p-values for the number of points in the figure (Holm), as the tests of
trends and of flips do.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from analysis import estimators, layout, resampling, style
from analysis.flips import CHANGED, KL
from analysis.names import LAYERS, PART, base_name, compression_name, markdown, method_name, p_text, strength_text
from analysis.replicates import CurveKey, LevelCurve
from analysis.resampling import FEW_CLUSTERS, Replicates
from analysis.table import Row, grouped, level_sets
from analysis.verdicts import BOUNDS, CORRECTED, RAW, drops, floors, missing_reason

LOSES, GAINS, CANNOT_TELL = "loses", "gains", "cannot tell"
ALPHA = 0.05
MOVED = (*(f"{name}{ending}" for name in (CHANGED, KL) for ending in ("", "_low", "_high")), "kl_of")  # of a flip_table
PLACE = ("setting", "task", "model", "level", "difficulty", "metric")
SENSITIVITY_COLUMNS = (
    *PLACE, "compression", "magnitude_scope", "strength_kind", "strength", "layers", "measured_sparsity", "seeds",
    "num_examples", "dense_mean_score", "dense_above_chance", "chance", "mean_score", "normalized_drop", "drop_low",
    "drop_high", "p_value", "holm_p", "verdict", "corrected_drop", "corrected_low", "corrected_high", "reason",
    *MOVED,
)  # fmt: skip
ALLOCATION_COLUMNS = (
    *PLACE, "compression", "allocation", "strength", "num_examples", "dense_mean_score", "dense_above_chance", "chance",
    "uniform_score", "allocated_score", "difference", "difference_low", "difference_high", "p_value", "holm_p",
    "verdict", "reason",
)  # fmt: skip
METHOD = ("compression", "magnitude_scope", "strength_kind", "strength")  # of a panel of the heat map
POINT = ("level", *METHOD)
BLOCKS = re.compile(r"(\d+)(?:-(\d+))?")
PANEL_COLUMN, PANEL_ROW = 0.33, 0.34  # inches of a cell
LEAST_LIMIT = 0.25  # of the colours: smaller drops than the items can tell are not to look large
SURE, LIKELY = "o", "."  # marks of cells: by Holm's p-value, and by their own interval alone
DROP = "drop"  # what a panel shows, as KL does
BAR = {DROP: "Drop (% of dense)", KL: "KL (nats)"}
AT_CHANCE = "\N{MULTIPLICATION SIGN}"
Curves = Mapping[CurveKey, Sequence[LevelCurve]]


def layer_rows(rows: Sequence[Row]) -> list[Row]:
    """The runs that compress some layers alone, and the dense runs beside them."""
    places = {(row["setting"], row["model"], row["task"]) for row in rows if row.get("layers")}
    return [
        row
        for row in rows
        if (row["setting"], row["model"], row["task"]) in places
        and (row.get("layers") or row["compression"] == "dense")
    ]


def sensitivity_sets(rows: Sequence[Row]) -> dict[tuple, list[Row]]:
    """layer_rows by setting, model and task; raises as table.level_sets does."""
    return level_sets(layer_rows(rows))


def sensitivity_table(table: Sequence[Row], curves: Curves, flipped: Sequence[Row]) -> list[Row]:
    """The drop of every choice of layers at every level, rows of SENSITIVITY_COLUMNS, in the order of the layers.

    Args:
        table: the level_table of one of sensitivity_sets.
        curves: its replicates.resampled_curves.
        flipped: its flips.flip_table.
    Returns:
        compression: without the layers. drop_low, drop_high: the paired 95 % interval of normalized_drop over groups of
        items (and seeds); corrected_low, corrected_high likewise of the chance-corrected one. p_value: two-sided, of no
        drop; holm_p: corrected for all points of the table. verdict: LOSES or GAINS where holm_p is below 0.05. None
        where a level has no intervals, as reason says; a level whose dense model is at chance has no verdict.
        MOVED: as in flips.flip_table, None where that has none.
    """
    found, moved = [], {tuple(row[name] for name in POINT): row for row in flipped}
    for key, levels in curves.items():
        compression, _, layers = key.compression.partition(f"{PART}{LAYERS}")
        for level in levels:
            if not layers or level.points[0]["reference_only"]:
                continue
            for index, point in enumerate(level.points):
                other = moved.get(tuple(point[name] for name in POINT), {})
                own = {**point, "compression": compression, "layers": layers, **_bounds(level, index)}
                own |= {name: other.get(name) for name in MOVED}
                found.append({name: own.get(name) for name in SENSITIVITY_COLUMNS})
    _judge(found, "normalized_drop", (LOSES, GAINS))
    order = list(dict.fromkeys(point["level"] for point in table))
    return sorted(
        found, key=lambda row: (*map(str, (row[name] for name in METHOD)), layer_order(row["layers"]),
                                order.index(row["level"]))
    )  # fmt: skip


def _bounds(level: LevelCurve, index: int) -> Row:
    """Intervals and p-value of one point."""
    row: Row = {**dict.fromkeys((*BOUNDS, "p_value")), "reason": missing_reason(level)}
    for name, floor in floors(level).items():
        drawn = drops(level, floor).point(index)
        _, low, high = drawn.interval()
        if name == RAW:
            low = None if low is None else max(low, level.replicates.dense.lowest_drop[index])
            row |= {"drop_low": low, "drop_high": high, "p_value": drawn.p_other_than_zero()}
        elif name == CORRECTED:
            row |= {"corrected_low": low, "corrected_high": high}
    return row


def _judge(rows: list[Row], column: str, names: tuple[str, str]) -> None:
    """Add holm_p and verdict to the rows of one figure; `names` are those of a value below 0, and above."""
    for row, corrected in zip(rows, estimators.holm([row["p_value"] for row in rows]), strict=True):
        row["holm_p"] = corrected
        row["verdict"] = None if corrected is None else CANNOT_TELL
        if corrected is not None and corrected < ALPHA:
            row["verdict"] = names[0] if row[column] < 0 else names[1]


def layer_order(layers: str) -> tuple:
    """Sort key of a choice of layers: blocks and ranges by their first, then names."""
    found = BLOCKS.match(layers)
    return (not is_blocks(layers), int(found[1]) if found else math.inf, layers)


def is_blocks(layers: str) -> bool:
    """Whether a choice of layers is a block or a range of blocks."""
    return BLOCKS.fullmatch(layers) is not None


def heat_map(rows: Sequence[Row]) -> Figure:
    """The drop, and the KL, of each choice of layers (a column) at each level (a row), a panel of each per method.

    Args:
        rows: a sensitivity_table.
    Raises:
        ValueError: no row has one of the two.
    """
    panels = [
        (shown, own)
        for of_method in grouped(rows, METHOD).values()
        for blocks in (True, False)
        if (own := [row for row in of_method if is_blocks(row["layers"]) == blocks])
        for shown, has_one in ((DROP, is_shown), (KL, has_kl))
        if any(map(has_one, own))
    ]
    if not panels:
        raise ValueError("no run that compresses some layers alone has a drop or a KL, so there is no heat map")
    scales = {DROP: _scale_of_drops(rows), KL: _scale_of_kl(rows)}
    most = max(len({row["layers"] for row in own}) for _, own in panels)
    levels = len({row["level"] for row in rows})
    with style.style({"axes.grid": False, "axes.spines.right": True, "axes.spines.top": True}):
        height = len(panels) * (PANEL_ROW * levels + 1.3) + 1.0
        figure = Figure(figsize=(max(6.5, PANEL_COLUMN * most + 3.4), height), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (shown, own) in zip(grid, panels, strict=True):
            image = _heat_panel(axes, own, shown, scales[shown])
            figure.colorbar(image, ax=axes, pad=0.02).set_label(BAR[shown], fontsize="small")
        style.caption(figure, _heat_caption(rows))
    return figure


def _scale_of_drops(rows: Sequence[Row]) -> dict[str, Any]:
    known = [abs(row["normalized_drop"]) for row in rows if is_shown(row)]
    limit = 100 * min(1.0, max([LEAST_LIMIT, *known]))
    return {"cmap": "RdBu", "norm": Normalize(-limit, limit)}


def _scale_of_kl(rows: Sequence[Row]) -> dict[str, Any]:
    """Logarithmic: the first and the last block often move the model a hundred times as far as others."""
    known = [row[KL] for row in rows if row[KL]]
    low, high = (min(known), max(known)) if known else (0.1, 1.0)
    return {"cmap": "Purples", "norm": LogNorm(0.7 * low, 1.4 * high, clip=True)}


def is_shown(row: Row) -> bool:
    """Whether the drop of a row means something: the dense model is above chance there."""
    return row["normalized_drop"] is not None and row["dense_above_chance"] is not False


def has_kl(row: Row) -> bool:
    """Whether it is known how far the distribution over the options moves, which means something at chance too."""
    return row[KL] is not None


def _heat_panel(axes: Axes, rows: Sequence[Row], shown: str, scale: Mapping[str, Any]) -> AxesImage:
    """One panel of DROP or KL; returns the image, for the colour bar."""
    levels = list(dict.fromkeys(row["level"] for row in rows))
    columns = sorted(dict.fromkeys(row["layers"] for row in rows), key=layer_order)
    values = np.full((len(levels), len(columns)), np.nan)
    for row in rows:
        place = levels.index(row["level"]), columns.index(row["layers"])
        if shown == KL:
            values[place] = np.nan if row[KL] is None else row[KL]
        elif is_shown(row):
            values[place] = 100 * row["normalized_drop"]
            _mark(axes, row, place)
        else:
            axes.text(place[1], place[0], AT_CHANCE, ha="center", va="center", color="0.4", fontsize=8)
    axes.set_facecolor("0.93")
    image = axes.imshow(values, aspect="auto", **scale)
    names = [layout.shortened(name, 22) for name in columns]
    turned = max(map(len, names)) > 3
    axes.set_xticks(range(len(columns)), names, rotation=40 if turned else 0, ha="right" if turned else "center")
    axes.set_yticks(range(len(levels)), [layout.shortened(name, 26) for name in levels])
    axes.set_xlabel("Block that is compressed" if is_blocks(columns[0]) else "Weights that are compressed")
    what = "these layers alone" if shown == DROP else "these layers alone: KL from dense"
    axes.set_title(layout.title(f"{compression_name(rows[0])}, {strength_text(rows[0])}, {what}"))
    return image


def _mark(axes: Axes, row: Row, place: tuple[int, int]) -> None:
    """A ring where the drop is sure after correction, a dot where its own interval alone excludes 0."""
    low, high = row["drop_low"], row["drop_high"]
    if row["verdict"] in (LOSES, GAINS):
        axes.plot(place[1], place[0], SURE, color="black", markersize=6, markerfacecolor="white", markeredgewidth=1.3)
    elif low is not None and high is not None and not low <= 0 <= high:
        axes.plot(place[1], place[0], LIKELY, color="black", markersize=4)


def _heat_caption(rows: Sequence[Row]) -> str:
    chance = any(row["dense_above_chance"] is False for row in rows)
    items = style.count_span(row["num_examples"] for row in rows)
    tested = sum(row["p_value"] is not None for row in rows)
    return (
        f"{rows[0]['model']}. {items} items per level. Ring: the drop is not 0, by its p-value corrected for the "
        f"{tested} tested points of the figure (Holm, 5 %). Dot: its own 95 % interval excludes 0, as one in 20 would "
        f"by chance.{f' {AT_CHANCE}: the dense model is not above chance.' if chance else ''}"
        f"{' KL: of the distribution over the options, from dense to compressed.' if any(map(has_kl, rows)) else ''}"
    )


def sensitivity_section(rows: Sequence[Row]) -> list[str]:
    """The lines of summary.md on a sensitivity_table: the drop of each choice of layers at each level."""
    lines = [
        "What is lost where these layers alone are compressed, in % of the dense score, with paired 95 % intervals "
        "over groups of items; **bold** where it is not 0 after correction for all points of the table (Holm, 5 %). "
        "KL: of the distribution over the options, from the dense to the compressed model, in thousandths of a nat."
    ]
    for own in grouped(rows, METHOD).values():
        levels = list(dict.fromkeys(row["level"] for row in own))
        by_place = {(row["layers"], row["level"]): row for row in own}
        columns = sorted(dict.fromkeys(row["layers"] for row in own), key=layer_order)
        body = [[layers, *(_cell(by_place.get((layers, level))) for level in levels)] for layers in columns]
        dense = [_dense_cell(next(row for row in own if row["level"] == level)) for level in levels]
        head = [f"{compression_name(own[0])}, {strength_text(own[0])}", *levels]
        lines += ["", *markdown(head, [["dense score", *dense], *body])]
    return lines


def _dense_cell(row: Row) -> str:
    at_chance = " (**at chance**)" if row["dense_above_chance"] is False else ""
    return "" if row["dense_mean_score"] is None else f"{row['dense_mean_score']:.3f}{at_chance}"


def _cell(row: Row | None) -> str:
    if row is None or row["normalized_drop"] is None:
        return ""
    text = interval_text(row["normalized_drop"], row["drop_low"], row["drop_high"])
    text = f"**{text}**" if row["verdict"] in (LOSES, GAINS) else text
    return text + (f"; KL {_kl_text(row)}" if has_kl(row) else "")


def _kl_text(row: Row) -> str:
    """0.52 [0.31, 0.94], in thousandths of a nat."""
    bounds = [row[name] for name in ("kl_low", "kl_high")]
    told = "" if None in bounds else f" [{', '.join(f'{1000 * bound:.3g}' for bound in bounds)}]"
    return f"{1000 * row[KL]:.3g}{told}"


def interval_text(value: float, low: float | None, high: float | None) -> str:
    """-12.0 [-15.0, -9.0], in percent."""
    bounds = "" if low is None or high is None else f" [{100 * low:+.0f}, {100 * high:+.0f}]"
    return f"{100 * value:+.1f}{bounds}"


def sensitivity_finding(rows: Sequence[Row]) -> str:
    """In which layers which levels surely lose, or that none does, the largest drop, and the farthest move."""
    return " ".join(filter(None, (_finding_of_drops(rows), _finding_of_kl(rows))))


def _finding_of_kl(rows: Sequence[Row]) -> str:
    known = [row for row in rows if has_kl(row)]
    if not known:
        return ""
    most, least = (chosen(known, key=lambda row: row[KL]) for chosen in (max, min))
    return (
        f"The distribution over the options moves most at {most['level']} where {LAYERS}{most['layers']} alone are "
        f"compressed, by a KL of {_kl_text(most)} thousandths of a nat, and least at {least['level']} by "
        f"{LAYERS}{least['layers']}, {_kl_text(least)}."
    )


def _finding_of_drops(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if is_shown(row)]
    if not shown:
        return ""
    sure = [row for row in shown if row["verdict"] == LOSES]
    told = ", ".join(f"{row['level']} by {LAYERS}{row['layers']}" for row in sure[:8])
    more = f" and {len(sure) - 8} more" if len(sure) > 8 else ""
    worst = min(shown, key=lambda row: row["normalized_drop"])
    end = (
        f"the largest drop is that of {worst['level']} where {LAYERS}{worst['layers']} alone are compressed "
        f"({compression_name(worst)}, {strength_text(worst)}): "
        f"{interval_text(worst['normalized_drop'], worst['drop_low'], worst['drop_high'])} %"
    )
    if not sure:
        return f"Of {len(shown)} points none surely loses after correction for their number; {end}."
    return f"Of {len(shown)} points {len(sure)} surely lose ({told}{more}); {end}."


def allocation_table(table: Sequence[Row], curves: Curves) -> list[Row]:
    """Allocated sparsity against uniform, rows of ALLOCATION_COLUMNS: method by method, strength by strength, by level.

    Args:
        table, curves: the level_table of one setting, model and task, and its replicates.resampled_curves.
    Returns:
        difference: drop of the allocated model minus that of the uniform one at the same strength, in shares of the
        dense score, with its 95 % interval on the same resamples, so that what both share cancels; above 0 where the
        allocation keeps more. p_value, holm_p, verdict: as in sensitivity_table.
    """
    found = []
    for key, levels in curves.items():
        base, _, allocation = key.compression.partition(PART)
        if not allocation or LAYERS in allocation:
            continue
        uniform = {level.points[0]["level"]: level for level in curves.get(key._replace(compression=base), ())}
        for level in levels:
            other = uniform.get(level.points[0]["level"])
            if other is not None and not level.points[0]["reference_only"]:
                found += _differences(allocation, level, other)
    _judge(found, "difference", (LOSES, GAINS))
    order = list(dict.fromkeys(point["level"] for point in table))
    return sorted(found, key=lambda row: (row["compression"], row["allocation"], row["strength"],
                                          order.index(row["level"])))  # fmt: skip


def _differences(allocation: str, level: LevelCurve, uniform: LevelCurve) -> list[Row]:
    """The rows of one method, allocation and level, for strengths that both have."""
    rows, places = [], {point["strength"]: index for index, point in enumerate(uniform.points)}
    for index, point in enumerate(level.points):
        if point["strength"] not in places:
            continue
        other = uniform.points[places[point["strength"]]]
        row = {name: point.get(name) for name in ALLOCATION_COLUMNS} | {
            "compression": base_name(point["compression"]), "allocation": allocation,
            "uniform_score": other["mean_score"], "allocated_score": point["mean_score"], "difference": None,
            "reason": missing_reason(level) or missing_reason(uniform),
        }  # fmt: skip
        if point["normalized_drop"] is not None and other["normalized_drop"] is not None:
            row["difference"] = point["normalized_drop"] - other["normalized_drop"]
        if RAW in floors(level) and RAW in floors(uniform):
            drawn = _difference(drops(level, 0.0).point(index), drops(uniform, 0.0).point(places[point["strength"]]))
            _, row["difference_low"], row["difference_high"] = drawn.interval()
            row["p_value"] = drawn.p_other_than_zero()
        rows.append(row)
    return rows


def _difference(one: Replicates, other: Replicates) -> Replicates:
    return resampling.weighted_sum([one, other], [1, -1])


def allocation_plot(rows: Sequence[Row]) -> Figure:
    """What each allocation keeps more than a uniform one, in points of the dense score, with intervals.

    Args:
        rows: an allocation_table.
    Raises:
        ValueError: no row has a difference.
    """
    rows = [row for row in rows if row["difference"] is not None]
    if not rows:
        raise ValueError("no run whose sparsity is allocated stands beside a uniform one")
    panels = grouped(rows, ["strength"])
    labels = list(dict.fromkeys(row["level"] for row in rows))
    methods = list(dict.fromkeys((row["compression"], row["allocation"]) for row in rows))
    with style.style():
        size = (max(5.5, 3.4 * len(panels) + 1.2), 0.24 * len(labels) * (len(methods) + 1) + 1.9)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        for axes, ((strength,), own) in zip(grid, panels.items(), strict=True):
            _allocation_panel(axes, own, labels, methods)
            axes.set_title(f"Sparsity {100 * strength:g} %")
            axes.set_xlabel("More kept than uniform (points of % of dense)")
        grid[0].invert_yaxis()
        lines = [line for axes in grid[::-1] for line in reversed(axes.get_lines())]  # so that the first counts
        handles = {line.get_label(): line for line in lines if line.get_label()[0] != "_"}
        handles = dict(reversed(handles.items()))
        at_chance = any(row["dense_above_chance"] is False for row in rows)
        figure.legend(handles=list(handles.values()), loc="outside upper center", ncols=3, frameon=False)
        style.caption(
            figure,
            f"{rows[0]['model']}. {style.count_span(row['num_examples'] for row in rows)} items per level. Bars: "
            "paired 95 % intervals over groups of items. Ring: not 0 after Holm's correction over the figure. Both "
            "have the same number of zeros in all (uniform Wanda: to the rounding of its rows)."
            f"{' Faint: the dense model is not above chance, so it means nothing.' if at_chance else ''}",
        )
    return figure


def _allocation_panel(axes: Axes, rows: Sequence[Row], labels: list[str], methods: list[tuple[str, str]]) -> None:
    axes.axvline(0, color="0.6", linewidth=0.9)
    for row in rows:
        method = row["compression"], row["allocation"]
        look = style.compression_style(row["compression"])
        height = labels.index(row["level"]) + (methods.index(method) - (len(methods) - 1) / 2) / (len(methods) + 1)
        low, high = row["difference_low"], row["difference_high"]
        if low is not None and high is not None:
            axes.hlines(height, 100 * low, 100 * high, color=look["color"], linewidth=1.5)
        sure = row["verdict"] in (LOSES, GAINS)
        faint = {"alpha": 0.4, "markerfacecolor": "white"} if row["dense_above_chance"] is False else {}
        axes.plot(
            100 * row["difference"], height, look["marker"], color=look["color"], label=method_name(PART.join(method)),
            markersize=6, linestyle="none", markeredgecolor="black" if sure else look["color"],
            markeredgewidth=1.6 if sure else 0.8, **faint,
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), [layout.shortened(name, 26) for name in labels])


def allocation_section(rows: Sequence[Row]) -> list[str]:
    """The lines of summary.md on an allocation_table."""
    head = ["method", "strength", "level", "dense", "uniform", "allocated", "kept more, % of dense", "verdict"]
    body = [
        [
            method_name(PART.join((row["compression"], row["allocation"]))), f"{100 * row['strength']:g} %",
            row["level"], _dense_cell(row), f"{row['uniform_score']:.3f}", f"{row['allocated_score']:.3f}",
            "" if row["difference"] is None else interval_text(row["difference"], row["difference_low"],
                                                               row["difference_high"]),
            (row["verdict"] or "") + (f" ({p_text(row['holm_p'])})" if row["holm_p"] is not None else ""),
        ]
        for row in rows
    ]  # fmt: skip
    about = (
        "Sparsity that is allocated against the same sparsity spread evenly; the difference of the drops, with its "
        "paired 95 % interval; verdicts two-sided, with Holm's correction over the table."
    )
    return [about, "", *markdown(head, body)]


def allocation_finding(rows: Sequence[Row]) -> str:
    """One sentence: how many differences are sure, and the largest."""
    known = [row for row in rows if row["difference"] is not None and row["dense_above_chance"] is not False]
    if not known:
        return ""
    gains, loses = (sum(row["verdict"] == verdict for row in known) for verdict in (GAINS, LOSES))
    most = max(known, key=lambda row: abs(row["difference"]))
    name = method_name(PART.join((most["compression"], most["allocation"])))
    return (
        f"Of {len(known)} points the allocation surely keeps more in {gains} and less in {loses}; the largest "
        f"difference is that of {most['level']}, {name}, {100 * most['strength']:g} %: "
        f"{interval_text(most['difference'], most['difference_low'], most['difference_high'])} points of % of dense."
    )


def few_groups(rows: Sequence[Row]) -> list[str]:
    """A caution where levels have too few groups of items for intervals."""
    few = list(dict.fromkeys(row["level"] for row in rows if row["reason"] == FEW_CLUSTERS))
    return [f"{', '.join(few)}: {FEW_CLUSTERS} in common, so no interval."] if few else []
