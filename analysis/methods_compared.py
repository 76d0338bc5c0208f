"""Methods beside each other at equal bytes: what each loses, flips and moves, and whether it hurts hard levels more.

A row is a method at one strength in one setting. Its flips and KL are means over the levels, its drop over those that
the dense model answers above chance. All methods are resampled on the same draws of items.
scripts/compare_methods.py measures them at equal bytes.
"""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis import layout, resampling, style, verdicts
from analysis.flips import FLIPS, KL, RANGES, Compared, Points, with_interval
from analysis.names import compression_name, markdown, number, strength_text, with_bounds
from analysis.replicates import Columns, CurveKey, LevelCurve, curve_replicates
from analysis.resampling import Replicates
from analysis.sizes import PAIRS
from analysis.table import KINDS, Row, compression_rank, grouped, select
from analysis.verdicts import CURVE_KEYS, RAW

DROP, SCORE = "drop", "junk_dna_score"
MEASURES = (DROP, FLIPS, KL)
NO_DROP = "no drop: "  # before the reason
COMPARED_COLUMNS = (
    "setting", "task", "model", "compression", "magnitude_scope", "strength_kind", "strength", "bytes_fraction",
    "seeds", "levels", "drop_levels", *(f"{name}{ending}" for name in MEASURES for ending in ("", "_low", "_high")),
    SCORE, "junk_dna_low", "junk_dna_high", "reason",
)  # fmt: skip
METHOD = ("compression", "magnitude_scope", "strength_kind")  # makes a curve, by columns of CurveKey
PANELS = {
    DROP: ("Drop (% of dense)", 100), FLIPS: ("Items that flip (%)", 100), KL: ("KL over the options (nats)", 1),
}  # fmt: skip
MORE_MARKERS = f"{style.LEVEL_MARKERS}<>hpd8H1234"  # for methods whose usual looks are another's
SPREAD = 0.35  # of the least distance between a curve's points, over which the methods at one size are spread
WIDEST = 8.0  # percent of the bytes
NARROWEST = 40  # percent of the bytes that the axis shows at least, so that what stands side by side looks so
EQUAL = 0.05  # sizes that are compared in words differ by no more, as shares of the dense bytes


def compared_table(
    curves: Mapping[CurveKey, list[LevelCurve]], compared: Points, orders: Iterable[Row], resamples: int, seed: int = 0
) -> list[Row]:
    """Every compressed point of a setting whose bytes are known, rows of COMPARED_COLUMNS; none of fewer than two
    methods.

    Args:
        curves: of the setting (replicates.resampled_curves).
        compared: flips.compared_points of the same points.
        orders: rows of verdicts.ORDER_COLUMNS, which hold the Junk DNA scores.
        resamples, seed: of the draws.
    Returns:
        From many bytes to few. flips and kl are means over `levels` with their 95 % intervals; drop is that of the
        normalized drop over `drop_levels`, where the dense model is above chance. The Junk DNA score is that of the
        whole curve. reason: why something is None.
    """
    scores = {tuple(row[name] for name in CURVE_KEYS[3:]): row for row in orders if row["measure"] == RAW}
    rows: dict[tuple, Row] = {}
    for key, levels in curves.items():
        points = {point["strength"]: point for level in levels for point in level.points}
        for strength, point in points.items():
            if point["bytes_fraction"] is not None:
                rows[key, strength] = {**point, **_drop(levels, strength), **_score(scores.get(tuple(key)))}
                rows[key, strength]["reason"] = "; ".join(filter(None, (
                    rows[key, strength]["no_drop"], rows[key, strength]["reason"],
                )))  # fmt: skip
    if len({key for key, _ in rows}) < 2:
        return []
    named = {place: set(row["levels"]) for place, row in rows.items()}
    for name in (FLIPS, KL):
        for place, found in _means(name, compared, named, resamples, seed).items():
            rows[place] |= found
    ordered = sorted(rows.values(), key=lambda row: (-row["bytes_fraction"], compression_rank(row["compression"])))
    return [select(row, COMPARED_COLUMNS) for row in ordered]


def _drop(levels: list[LevelCurve], strength: float | int | str) -> Row:
    """The mean drop at a strength over the levels where it means something, and the names of these and of all."""
    parts, lowest, names, everywhere, reasons = [], [], [], [], []
    for level in levels:
        index = next((place for place, point in enumerate(level.points) if point["strength"] == strength), None)
        if index is None:
            continue
        everywhere.append(level.points[0]["level"])
        if reason := verdicts.missing_reason(level):
            reasons.append(reason)
        else:
            parts.append(verdicts.drops(level, 0.0).point(index))
            lowest.append(level.replicates.dense.lowest_drop[index])
            names.append(level.points[0]["level"])
    found = {"levels": tuple(everywhere), "drop_levels": tuple(names), "no_drop": ""}
    if not parts:
        found["no_drop"] = NO_DROP + ", ".join(dict.fromkeys(reasons))
        return found | dict.fromkeys((DROP, f"{DROP}_low", f"{DROP}_high"))
    return found | with_interval(DROP, _mean(parts), (float(np.mean(lowest)), None))


def _score(order: Row | None) -> Row:
    if order is None:
        return {"reason": ""}
    same = {name: order[name] for name in (SCORE, "junk_dna_low", "junk_dna_high")}
    return same | {"reason": "" if order[SCORE] is not None else f"no Junk DNA score: {order['text']}"}


def _means(
    name: str, compared: Points, levels: Mapping[tuple, set[str]], resamples: int, seed: int
) -> dict[tuple, Row]:
    """A measure of flips.compare, its mean over levels, by curve and strength; none where a level lacks it.

    Args:
        levels: by curve and strength, those to average over.
    """
    values: dict[str | None, dict[tuple, Compared]] = {}
    for point, own in compared:
        place = CurveKey(point["strength_kind"], point["compression"], point["magnitude_scope"]), point["strength"]
        if point["level"] in levels.get(place, ()) and isinstance(own, Compared) and name in own.values:
            values.setdefault(point["dataset"], {})[place, point["level"]] = own
    parts: dict[tuple, list[Replicates]] = {place: [] for place in levels}
    for dataset, own in values.items():
        for (place, _), found in _replicates(name, own, resamples, (seed, dataset)).items():
            parts[place].append(found)
    complete = {place: own for place, own in parts.items() if own and len(own) == len(levels[place])}
    return {place: with_interval(name, _mean(own), RANGES[name]) for place, own in complete.items()}


def _replicates(
    name: str, points: Mapping[tuple, Compared], resamples: int, seed: tuple[int, str | None]
) -> dict[tuple, Replicates]:
    """The replicates of a measure of points on one data set, all of the same draws."""
    universe = np.unique(np.concatenate([own.groups for own in points.values()]))
    # curve_replicates sets curves beside a dense model: here one that differs from itself in nothing.
    columns = {
        place: Columns(
            own.groups,
            np.vstack([np.zeros(len(own.groups)), own.values[name]]),
            [{0: 0}, {seed: 1 + row for row, seed in enumerate(own.seeds)}],
        )
        for place, own in points.items()
    }
    found = {}
    for place, own in curve_replicates(columns, universe, resamples, seed).items():
        # Of KL, which has no upper end, the unseen unit is as far off as the farthest item of the sample, as in flips.
        highest = RANGES[name][1] or float(points[place].values[name].max())
        found[place] = resampling.compare(lambda scores, _: scores, own.points._replace(highest=highest), own.dense)
    return {place: own.point(0) for place, own in found.items()}


def _mean(parts: list[Replicates]) -> Replicates:
    return resampling.weighted_sum(parts, [1 / len(parts)] * len(parts))


def looks(rows: Iterable[Row]) -> dict[tuple, dict]:
    """How the methods of a figure are drawn, by METHOD: in their usual looks, but no two alike in colour and marker."""
    found: dict[tuple, dict] = {}
    taken: set[tuple[str, str, str | None]] = set()
    others = itertools.product(MORE_MARKERS, style.NEW_COLORS)
    for row in sorted(rows, key=lambda row: (compression_rank(row["compression"]), KINDS.index(row["strength_kind"]))):
        key = tuple(row[name] for name in METHOD)
        if key in found:
            continue
        look = {**style.compression_look(key[0], key[1]), "linestyle": "--" if key[2] in PAIRS else "-"}
        if "nm" in key[2]:
            look |= {"label": f"{look['label']}, N:M", "markerfacecolor": "white", "linestyle": ":"}
        while _seen(look) in taken and (other := next(others, None)):
            look |= {"marker": other[0], "color": other[1]}
        taken.add(_seen(look))
        found[key] = look
    return found


def _seen(look: dict) -> tuple[str, str, str | None]:
    return look["color"], look["marker"], look.get("markerfacecolor")


def methods_compared(sets: Mapping[str, list[Row]]) -> Figure:
    """A column for each setting; from above the drop, flips and KL by bytes, a curve a method, and Junk DNA scores.

    The scores have no row where no method has one.

    Args:
        sets: by title, a compared_table.
    Raises:
        ValueError: no rows.
    """
    if not any(sets.values()):
        raise ValueError("fewer than two methods have a known size and a dense run beside them: nothing to compare")
    of_method = looks(row for rows in sets.values() for row in rows)
    has_scores = any(row[SCORE] is not None for rows in sets.values() for row in rows)
    with style.style(style.WIDE):
        size = (
            max(6.5, 4.6 * len(sets)),
            (10.4 if has_scores else 7.6) + 0.25 * math.ceil(len(of_method) / max(3, 2 * len(sets))),
        )
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(PANELS) + has_scores, len(sets), squeeze=False)
        handles = {}
        for column, (title, rows) in enumerate(sets.items()):
            for line, (name, (label, unit)) in enumerate(PANELS.items()):
                axes = grid[line, column]
                handles |= _panel(axes, rows, of_method, name, unit)
                axes.set_ylabel(label if column == 0 else "")
            grid[0, column].set_title(layout.title(title))
            grid[len(PANELS) - 1, column].set_xlabel("Size (% of the dense weights' bytes)")
            if has_scores:
                _scores(grid[-1, column], rows, of_method)
                grid[-1, column].set_ylabel("Junk DNA score" if column == 0 else "")
        labels = [look["label"] for look in of_method.values() if look["label"] in handles]
        figure.legend(
            handles=[handles[label] for label in labels], labels=labels, loc="outside upper center", frameon=False,
            ncols=max(3, 2 * len(sets)),
        )  # fmt: skip
        style.caption(figure, _caption(sets, has_scores))
    return figure


def _panel(axes: Axes, rows: list[Row], of_method: Mapping[tuple, dict], name: str, unit: int) -> dict:
    """Draw one measure of one setting by bytes; returns a handle for each method, by label."""
    handles = {}
    places = positions(rows)
    for key, own in grouped([row for row in rows if row[name] is not None], METHOD).items():
        look = {**of_method[key], "linewidth": 1.0, "markersize": 5}
        where = [places[key, row["strength"]] for row in own]
        heights = [unit * row[name] for row in own]
        (handles[look["label"]],) = axes.plot(where, heights, **look, zorder=3)
        for place, row in zip(where, own, strict=True):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            if low is not None and high is not None:
                axes.vlines(place, unit * low, unit * high, color=look["color"], alpha=0.45, linewidth=1.3, zorder=2)
    sizes = [*places.values(), *(100 * row["bytes_fraction"] for row in rows)]
    axes.set_xlim(max(max(sizes) + 3, min(sizes) + NARROWEST), min(sizes) - 3)
    if name == DROP:
        axes.axhline(0, color="0.3", linestyle="--", linewidth=1.0, zorder=1)
        heights = [0.0, *(unit * row[DROP] for row in rows if row[DROP] is not None)]
        ends = [
            unit * row[f"{DROP}_{end}"] for row in rows for end in ("low", "high") if row[f"{DROP}_{end}"] is not None
        ]
        # An interval may reach to many times a dense score that is near 0: it then leaves the panel.
        axes.set_ylim(min(*heights, *ends, -5) - 3, min(max(*heights, *ends, 5), max(heights) + style.MOST_ABOVE) + 3)
    known = [row[KL] for row in rows if row[KL]]
    if name == KL and known and max(known) > 20 * min(known):
        axes.set_yscale("log")
        axes.set_ylim(min(known) / 4, 2 * max(row["kl_high"] or row[KL] for row in rows if row[KL]))
    if not handles:
        told = "not recorded at every level"
        if name == DROP:  # the same for all: it is of the dense model's items
            told = rows[0]["reason"].partition("; ")[0].removeprefix(NO_DROP)
        axes.text(0.5, 0.6, textwrap.fill(told, 36), transform=axes.transAxes, ha="center", color="0.4")
    return handles


def positions(rows: list[Row]) -> dict[tuple, float]:
    """Where each point stands, in percent of the bytes: points of about one size side by side, so that bars are seen.

    They are spread over WIDEST, or over SPREAD of the least distance of two points of one method if that is less. A
    point that has no other so near stands at its size.

    Returns:
        By METHOD and strength.
    """
    methods = grouped(sorted(rows, key=lambda row: compression_rank(row["compression"])), METHOD)
    sizes = [sorted({100 * row["bytes_fraction"] for row in own}) for own in methods.values()]
    gaps = [after - before for own in sizes for before, after in itertools.pairwise(own)]
    width = min([WIDEST, *(SPREAD * gap for gap in gaps)])
    points = [((key, row["strength"]), 100 * row["bytes_fraction"]) for key, own in methods.items() for row in own]
    order = {point: place for place, (point, _) in enumerate(points)}
    neighbours: list[list[tuple[tuple, float]]] = []
    for point, size in sorted(points, key=lambda one: one[1]):
        if not neighbours or size - neighbours[-1][-1][1] > width:
            neighbours.append([])
        neighbours[-1].append((point, size))
    found = {}
    for beside in neighbours:
        shifts = np.linspace(width / 2, -width / 2, len(beside)) if len(beside) > 1 else [0.0]
        for (point, size), shift in zip(sorted(beside, key=lambda one: order[one[0]]), shifts, strict=True):
            found[point] = size + float(shift)
    return found


def _scores(axes: Axes, rows: list[Row], of_method: Mapping[tuple, dict]) -> None:
    """The Junk DNA score of each method, in the order of the legend; methods without one are named so."""
    first = {key: own[0] for key, own in grouped(rows, METHOD).items()}
    shown = [key for key in of_method if key in first]
    for index, key in enumerate(shown):
        row, look = first[key], of_method[key]
        if row[SCORE] is None:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axes.text(index, 0, "none", rotation=90, ha="center", va="center", fontsize=8, color="0.4", bbox=box)
            continue
        if row["junk_dna_low"] is not None and row["junk_dna_high"] is not None:
            axes.vlines(
                index, row["junk_dna_low"], row["junk_dna_high"], color=look["color"], alpha=0.45, linewidth=1.8
            )
        axes.plot([index], [row[SCORE]], **{**look, "linestyle": "none", "markersize": 6})
    if all(first[key][SCORE] is None for key in shown):
        axes.set_ylim(-1, 1)
        axes.set_yticks([0])
    axes.axhline(0, color="0.3", linestyle="--", linewidth=1.0, zorder=1)
    names = [of_method[key]["label"] for key in shown]
    axes.set_xticks(range(len(shown)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(shown) - 0.4)


def _caption(sets: Mapping[str, list[Row]], has_scores: bool) -> str:
    rows = [row for own in sets.values() for row in own]
    models = list(dict.fromkeys(row["model"] for row in rows))
    seeds = sorted({len(row["seeds"]) for row in rows})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{', '.join(models)}. Means over the levels, of drops where the dense model is above chance; {count} "
        f"seed{'' if count == '1' else 's'}. Bars: 95 % over groups of items and seeds, the same draws for all. Points "
        "of about one size stand side by side; the CSV has their bytes."
        f"{' Junk DNA score: above 0 where hard levels fall faster.' if has_scores else ''}"
    )


def compared_section(title: str, rows: list[Row]) -> list[str]:
    """The lines of one setting; `rows` are its compared_table."""
    head = ["compression", "strength", "bytes", "drop %", "flips %", "KL", "Junk DNA score", "levels of drop"]
    body = [
        [
            compression_name(row), strength_text(row), f"{100 * row['bytes_fraction']:.1f} %", _percent(row, DROP),
            _percent(row, FLIPS), with_bounds(row[KL], row["kl_low"], row["kl_high"]), _score_text(row),
            f"{len(row['drop_levels'])} of {len(row['levels'])}",
        ]
        for row in rows
    ]  # fmt: skip
    return [f"**{title}**", "", *markdown(head, body), ""]


def _score_text(row: Row) -> str:
    return with_bounds(row[SCORE], row["junk_dna_low"], row["junk_dna_high"]) or row["reason"]


def _percent(row: Row, name: str) -> str:
    value, *bounds = (row[f"{name}{ending}"] for ending in ("", "_low", "_high"))
    if value is None:
        return ""
    if None in bounds:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"


ABOUT = (
    "Every method at the sizes that it was measured at, bytes counted with masks, scales and factors. Drop: mean of "
    "(compressed - dense) / dense over the levels where the dense model is above chance. Flips and KL: as below Flips "
    "and distances, mean over the levels. 95 % intervals over groups of items and seeds; methods share the draws, so "
    "that two of them may differ for sure though their intervals overlap. The Junk DNA score is of the method's whole "
    "curve."
)


def of_compared(title: str, rows: list[Row]) -> str:
    """Which method flips fewest answers at the fewest bytes that all have, and whether its interval is apart."""
    methods = grouped([row for row in rows if row[FLIPS] is not None], METHOD)
    if len(methods) < 2:
        return ""
    size = max(min(row["bytes_fraction"] for row in own) for own in methods.values())
    near = [min(own, key=lambda row: abs(row["bytes_fraction"] - size)) for own in methods.values()]
    near = [row for row in near if abs(row["bytes_fraction"] - size) <= EQUAL]
    if len(near) < 2:
        return ""
    best, *rest = sorted(near, key=lambda row: row[FLIPS])
    text = (
        f"{title}: at about {100 * size:.0f} % of the bytes {compression_name(best)} flips fewest of {len(near)} "
        f"methods: {_percent(best, FLIPS)} % of the answers, KL {number(best[KL]) or 'unknown'}"
    )
    alike = [row for row in rest if None in (row["flips_low"], best["flips_high"])
             or row["flips_low"] <= best["flips_high"]]  # fmt: skip
    apart = [row for row in rest if row not in alike]
    ends = {"its interval is apart from": apart, "it overlaps with": alike}
    return "; ".join([text, *(f"{end} {_listed(own)}" for end, own in ends.items() if own)]) + "."


def _listed(rows: list[Row]) -> str:
    return ", ".join(map(compression_name, rows[:4])) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
