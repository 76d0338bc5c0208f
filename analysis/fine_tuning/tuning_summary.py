"""What summary.md says of one set of fine-tuning runs: how fast its scores fall, the scores, what to beware of."""

import math
from collections import Counter

from analysis import tables
from analysis.drawing import percent
from analysis.fine_tuning import human_gap, transfers, tuning_trends
from analysis.tables import Row, task_name
from analysis.uncertainty.trends import Trends
from analysis.wording import (
    against_chance,
    dense_caution,
    markdown,
    misses_sparsity,
    number,
    spearman_text,
    uneven_seeds,
)


def section(members: list[Row], table: list[Row], found: Trends) -> list[str]:
    """The lines of one of tables.figure_sets.

    Args:
        members: its runs.
        table: their seed_means.
        found: tuning_trends.measure of them.
    """
    titles = {
        "### How sure that is": tuning_trends.summary_lines(found),
        "### Tasks by the gap to people (appendix B)": human_gap.summary_lines(members),
        "### The transfers against each other (section 5)": transfers.summary_lines(found.differences),
    }
    more = [line for title, lines in titles.items() if lines for line in (title, "", *lines, "")]
    return [
        "### How fast the score falls", "", *_slope_table(table), "", *more,
        "### Scores", "", *_score_tables(table),
    ]  # fmt: skip


def cautions(members: list[Row], table: list[Row]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to."""
    return [*_reference_cautions(members, table), *_seed_cautions(table), *_point_cautions(table)]


def _reference_cautions(members: list[Row], table: list[Row]) -> list[str]:
    found = []
    dense_runs = [row for row in members if row["transfer"] == tables.DENSE]
    # A dict, not a set, for the order of the table.
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        where = f"{task_name(task)}, {percent(fraction)} data"
        runs = [row for row in dense_runs if (row["task"], row["data_fraction"]) == (task, fraction)]
        said = dense_caution(runs) if runs else "NO DENSE TRANSFER, so no drop is defined."
        if said:
            found.append(f"{where}: {said}")
        else:
            failed = [row for row in runs if not tables.is_above_chance([row])]
            found += [
                f"{where}: dense transfer with seed {row['seed']} is not above chance ({against_chance([row])}) "
                "and moves the mean that all drops are relative to."
                for row in failed
            ]
    return found


def _seed_cautions(table: list[Row]) -> list[str]:
    found = []
    single = sum(len(point["seeds"]) == 1 for point in table)
    if single:
        found.append(f"{single} of {len(table)} points rest on one seed: no interval, no band.")
    places: dict[tuple[str, float], Counter] = {}
    for point in table:
        places.setdefault((point["task"], point["data_fraction"]), Counter())[point["seeds"]] += 1
    for (task, fraction), counts in places.items():
        if len(counts) > 1:
            found.append(f"{task_name(task)}, {percent(fraction)} data: the points {uneven_seeds(counts)}")
    return found


def _point_cautions(table: list[Row]) -> list[str]:
    found = []
    curves = tables.curves(table)
    for (task, kind, transfer, fraction), points in curves.items():
        where = f"{task_name(task)}, {percent(fraction)} data, {transfer}"
        others = [other for key, other in curves.items() if key[:3] == (task, kind, transfer)]
        measured = {point["strength"] for point in points}
        lacking = {point["strength"] for other in others for point in other} - measured
        if lacking:
            found.append(f"{where}: lacks {', '.join(map(str, sorted(lacking)))}, which other amounts of data have.")
        found += [
            f"{where}: at {point['strength']} the measured sparsity is {point['measured_sparsity']:.3f}, "
            f"not {point['requested_sparsity']:.3f}."
            for point in points
            if transfer == tables.SPARSE and misses_sparsity(point)
        ]
    return found


def _slope_table(table: list[Row]) -> list[str]:
    """Spearman and Theil-Sen per curve, and after each task's levels whether the slopes stand in order."""
    levels: dict[tuple[str, str, str], list[Row]] = {}
    for (task, kind, transfer, _), points in tables.curves(table).items():
        levels.setdefault((task, kind, transfer), []).append(tables.curve_statistics(points))
    body, orders = [], []
    for (task, kind, transfer), group in levels.items():
        place = [task_name(task), kind, transfer]
        body += [
            [
                *place, percent(level["data_fraction"]), number(level["dense_mean_score"]),
                {True: "yes", False: "**no**", None: ""}[level["dense_above_chance"]],
                len(level["strengths"]), spearman_text(level), number(level["theil_sen_slope"]),
            ]
            for level in group
        ]  # fmt: skip
        in_order, basis = tables.slope_order(group)
        if in_order:
            basis += f"; by luck alone once in {math.factorial(sum(map(tables.is_comparable, group)))}"
        orders.append([*place, {True: "yes", False: "no", None: "cannot be told"}[in_order], basis])
    head = ["task", "strength", "transfer", "data", "dense score", "above chance", "points", "Spearman", "slope"]
    order_head = ["task", "strength", "transfer", "each smaller amount of data falls faster", "basis"]
    return [
        "Spearman: rank correlation of sparsity with the loss of score, 1 where every step loses. Slope: Theil-Sen, "
        "normalized drop per unit of sparsity (1 - N/M for N:M), negative where the score falls. Both are over the "
        "means of the seeds. No score falls far below chance, so a drop is bounded by chance / dense - 1.",
        "",
        *markdown(head, body),
        "",
        "The hypothesis says that the slope steepens with difficulty, which here is a smaller amount of data:",
        "",
        *markdown(order_head, orders),
    ]


def _score_tables(table: list[Row]) -> list[str]:
    lines = ["Mean over seeds ± half of its 95 % Student interval, and the normalized drop.", ""]
    for task, fraction in dict.fromkeys((point["task"], point["data_fraction"]) for point in table):
        points = [point for point in table if (point["task"], point["data_fraction"]) == (task, fraction)]
        dense = [_score(point) for point in points if point["transfer"] == tables.DENSE]
        chance = number(points[0]["chance"]) or "unknown"
        lines += [
            f"**{task_name(task)}, {percent(fraction)} data** ({points[0]['metric']}; chance {chance}): "
            f"dense transfer {dense[0] if dense else 'missing'}",
            "",
        ]
        compressed = [point for point in points if point["transfer"] != tables.DENSE]
        transfers = [name for name in tables.TRANSFERS if any(point["transfer"] == name for point in compressed)]
        cells: dict[tuple, dict[str, str]] = {}
        for point in sorted(compressed, key=tables.compression_order):
            cells.setdefault((point["strength_kind"], point["strength"]), {})[point["transfer"]] = _score(point)
        body = [[strength, *(row.get(name, "") for name in transfers)] for (_, strength), row in cells.items()]
        lines += [*markdown(["strength", *transfers], body), ""]
    return lines[:-1]


def _score(point: Row) -> str:
    """0.912 ± 0.004 (-3.1 %); without what is not known."""
    text = f"{point['mean_score']:.3f}"
    if point["interval_low"] is not None:
        text += f" ± {point['mean_score'] - point['interval_low']:.3f}"
    if point["transfer"] != tables.DENSE and point["normalized_drop"] is not None:
        text += f" ({100 * point['normalized_drop']:+.1f} %)"
    return text
