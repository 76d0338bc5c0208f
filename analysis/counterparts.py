"""Ours that stand beside the paper's numbers: everything in a tree of runs that has a counterpart there."""

from collections.abc import Iterable

import scipy.special

from analysis import tables
from analysis.estimators import STRAIGHT_LINE
from analysis.fine_tuning import human_gap, transfers, tuning_trends
from analysis.levels import level_tables
from analysis.lines import interpolation_tables
from analysis.paper_numbers import TUNED, What, printed
from analysis.tables import Row, task_name
from analysis.uncertainty import trends
from analysis.uncertainty.trends import CANNOT_TELL, Trends
from analysis.wording import compression_name, strength_text

TUNED_SETTING = 1
# Of each compression the kind of strength that the paper's tables are about.
KIND = {"magnitude": "sparsity", "gptq": "bits", "low_rank": "rank"}

OUR_COLUMNS = (
    "what", "setting", "task", "item", "where", "model", "compression", "method", "strength", "value", "low", "high",
    "p_value", "note",
)  # fmt: skip


def our_numbers(rows: list[Row], found: Trends | None = None) -> list[Row]:
    """Everything in a tree of runs that has a counterpart in the paper, rows of OUR_COLUMNS.

    Args:
        rows: what results.read_runs returned.
        found: trends.measure and tuning_trends.measure of the same rows, joined (joined_trends); measured here when
            None.
    Returns:
        compression is the paper's name of the method and `method` ours, with the scope of magnitude; where is the task
        or category of an order. low and high are the 95 % interval, None where there is none; p_value is that of
        another value than 0, of a drop that of a loss, before any correction.
    Raises:
        ValueError: runs that must not be averaged or compared (results.check_runs).
    """
    found = joined_trends(rows) if found is None else found
    return [
        *_spearmans(found.levels), *_orders(found.orders), *_drops(found.points),
        *_level_difficulties(rows), *_tuned_difficulties(rows),
        *_freezing(found.differences), *_transfer_orders(found.differences), *_barrier_orders(rows),
        *_level_counts(rows),
    ]  # fmt: skip


def joined_trends(rows: list[Row]) -> Trends:
    """trends.measure and tuning_trends.measure of the same rows."""
    parts = zip(trends.measure(rows), tuning_trends.measure(rows), strict=True)
    return Trends(*([*without_training, *tuned] for without_training, tuned in parts))


def _row(what: str, setting: int | str, task: str, item: str, **others: object) -> Row:
    return {**dict.fromkeys(OUR_COLUMNS), "what": what, "setting": setting, "task": task, "item": item, **others}


def _method(row: Row) -> Row:
    """Who was compressed by what, for a row of analysis.uncertainty.trends."""
    kind = "" if row["strength_kind"] == KIND.get(row["compression"], "sparsity") else f", {row['strength_kind']}"
    return {
        "model": tables.model_name(row["model"]),
        "compression": row["compression"],
        "method": compression_name(row) + kind,
    }


def _spearmans(levels: Iterable[Row]) -> list[Row]:
    return [
        _row(
            What.SPEARMAN, level["setting"], level["task"], level["level"], **_method(level), value=level["spearman"],
            low=level["spearman_low"], high=level["spearman_high"], p_value=level["spearman_p"],
            note=f"number of strengths: {level['points']}",
        )
        for level in levels
        if level["strength_kind"] == KIND.get(level["compression"])
    ]  # fmt: skip


def _orders(orders: Iterable[Row]) -> list[Row]:
    """The verdicts on raw slopes, which are the paper's, with what is left of them above chance as a note."""
    found: dict[tuple, Row] = {}
    for order in orders:
        key = tuple(order[name] for name in trends.CURVE_KEYS)
        tuned = order["setting"] == tuning_trends.DATA_SETTING or order["task"] in human_gap.CATEGORIES
        if order["measure"] == trends.RAW and order["levels"] > 1:
            task, where = (TUNED, task_name(order["task"])) if tuned else (order["task"], None)
            found[key] = _row(
                What.ORDER, order["setting"], task, trends.RAW, **_method(order), where=where, value=order["verdict"]
            )
        elif key in found:
            found[key]["note"] = f"chance-corrected: {order['verdict']}"
    return list(found.values())


def _drops(points: Iterable[Row]) -> list[Row]:
    return [
        _row(
            What.DROP, point["setting"], point["task"], point["level"], **_method(point), strength=point["strength"],
            value=point["normalized_drop"], low=point["drop_low"], high=point["drop_high"], p_value=point["loss_p"],
        )
        for point in points
        if point["strength_kind"] == "sparsity"
    ]  # fmt: skip


def _level_difficulties(rows: list[Row]) -> list[Row]:
    """Score and difficulty of setting 5's levels."""
    runs = [row for row in rows if row["setting"] == 5 and row["compression"] == "dense"]
    dense = [point for point in level_tables.level_table(runs) if point["human"] is not None]
    return [
        found
        for point in dense
        for found in _difficulty(5, point["task"], point["level"], point, point["human"], point["difficulty"])
    ]


def _tuned_difficulties(rows: list[Row]) -> list[Row]:
    """Score and difficulty of fine-tuned tasks."""
    found = []
    for members in tables.figure_sets(rows).values():
        gaps = {gap["task"]: gap for gap in human_gap.human_gap_table(members) if gap["human"] is not None}
        for task, gap in gaps.items():
            stderr = None if gap["difficulty_stderr"] is None else gap["difficulty_stderr"] * gap["human"]
            dense = {"model": gap["model"], "mean_score": gap["dense_mean_score"], "mean_stderr": stderr}
            found += _difficulty(TUNED_SETTING, TUNED, task, dense, gap["human"], gap["difficulty"])
    return found


def _freezing(differences: list[Row]) -> list[Row]:
    return [
        _row(
            What.FREEZING, TUNED_SETTING, TUNED, row["task"], strength=row["strength"], value=row["difference"],
            low=row["difference_low"], high=row["difference_high"], p_value=row["p_value"], note=row["reason"] or None,
            **_method({**row, "compression": "magnitude"}),
        )
        for row in differences
        if (row["transfer"], row["against"]) == (tables.FREEZING, tables.DENSE) and row["strength_kind"] == "sparsity"
    ]  # fmt: skip


def _transfer_orders(differences: list[Row]) -> list[Row]:
    """For each task, kind of strength and pair of transfers, what holds at some strength and at none the contrary."""
    groups: dict[tuple, list[Row]] = {}
    for row in differences:
        if row["dense_above_chance"] is not False:
            key = ("model", "magnitude_scope", "task", "strength_kind", "transfer", "against")
            groups.setdefault(tuple(row[name] for name in key), []).append(row)
    found = []
    for (*_, task, _, first, other), own in groups.items():
        told = [row["verdict"] for row in own]
        sure = {transfers.HIGHER, transfers.LOWER} & set(told)
        counts = ", ".join(f"{name} in {told.count(name)}" for name in (transfers.HIGHER, transfers.LOWER))
        named = f"{task_name(task)}, {transfers.SHORT[first]} - {transfers.SHORT[other]}"
        found.append(
            _row(
                What.TRANSFER, TUNED_SETTING, TUNED, f"{first} - {other}", where=named,
                value=CANNOT_TELL if not sure else sure.pop() if len(sure) == 1 else "both",
                note=f"{counts} of {len(told)}", **_method({**own[0], "compression": "magnitude"}),
            )
        )  # fmt: skip
    return found


def _barrier_orders(rows: list[Row]) -> list[Row]:
    """Which of two tasks has the higher barrier in error to Sparse Transfer, as a share of what dense learned."""
    pairs = {row["item"]: row["item"].split(" - ") for row in printed() if row["what"] == What.BARRIER}
    found = []
    for members in interpolation_tables.interpolation_sets(rows).values():
        lines: dict[str, dict[tuple, Row]] = {}
        for row in interpolation_tables.barrier_table(members):
            shown = (row["split"], row["quantity"], row["definition"], row["pair"])
            if shown == ("validation", "error", STRAIGHT_LINE, "dense-sparse") and row["share_low"] is not None:
                place = (row["magnitude_scope"], row["strength_kind"], row["strength"])
                lines.setdefault(row["task"], {})[place] = row
        for item, (one, other) in pairs.items():
            for place in sorted(lines.get(one, {}).keys() & lines.get(other, {}).keys(), key=str):
                found.append(_barrier_order(item, lines[one][place], lines[other][place]))
    return found


def _barrier_order(item: str, one: Row, other: Row) -> Row:
    value = CANNOT_TELL
    if one["share_low"] > other["share_high"]:
        value = transfers.HIGHER
    elif one["share_high"] < other["share_low"]:
        value = transfers.LOWER
    where = f"{task_name(one['task'])} - {task_name(other['task'])}, {strength_text(one)}"
    note = f"{one['share_of_learned']:.3f} and {other['share_of_learned']:.3f} of what dense learned"
    method = _method({**one, "compression": "magnitude"})
    return _row(What.BARRIER, interpolation_tables.SETTING, TUNED, item, where=where, value=value, note=note, **method)


def _difficulty(setting: int, task: str, item: str, dense: Row, human: float, difficulty: float) -> list[Row]:
    half = None if dense["mean_stderr"] is None else 1.96 * dense["mean_stderr"]
    same = {"model": dense["model"], "compression": "dense", "method": "Dense"}
    return [
        _row(what, setting, task, item, **same, value=value, low=low, high=high, p_value=p_value)
        for what, value, p_value, low, high in (
            (What.SCORE, dense["mean_score"], None, *_around(dense["mean_score"], half)),
            (What.DIFFICULTY, difficulty, _p(difficulty * human, dense["mean_stderr"]),
             *_around(difficulty, None if half is None else half / human)),
        )
    ]  # fmt: skip


def _p(distance: float, stderr: float | None) -> float | None:
    """Two-sided, of a distance from 0 by the normal approximation."""
    return 2 * float(scipy.special.ndtr(-abs(distance) / stderr)) if stderr else None


def _around(value: float, half: float | None) -> tuple[float | None, float | None]:
    return (None, None) if half is None else (value - half, value + half)


def _level_counts(rows: list[Row]) -> list[Row]:
    found = []
    for (setting, model, task), members in level_tables.level_sets(rows).items():
        levels = {row["level"] for row in members if not row.get("facts", {}).get("reference_only")}
        found.append(_count(setting, task, model, len(levels)))
    for (setting, model, _), members in tables.figure_sets(rows).items():
        shares: dict[str, set[float]] = {}
        for row in members:
            shares.setdefault(row["task"], set()).add(row["data_fraction"])
        found.append(_count(setting, TUNED, model, max(map(len, shares.values()))))
    return found


def _count(setting: int | str, task: str, model: str, count: int) -> Row:
    same = {"model": tables.model_name(model), "compression": "dense", "method": "Dense"}
    return _row(What.LEVELS, setting, task, "levels", **same, value=count)
