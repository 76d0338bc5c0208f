"""Ours beside the paper's: every number and claim that the paper prints and a tree of runs can be compared with.

paper_numbers.json holds what the paper prints and where; claims are quoted. (The slopes in the legends of its figures
are in no text that we have.) The paper's models are larger than most that this is run with, so that signs and orders
are compared, and values are set side by side.
"""

import functools
import itertools
import json
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import scipy.special

from analysis import estimators
from analysis.contrasts import HIGHER, LOWER, SHORT
from analysis.estimators import STRAIGHT_LINE
from analysis.names import compression_name, markdown, strength_text, task_name
from analysis.replicates import DATA_SETTING, is_of_category
from analysis.table import DENSE, FREEZING, INTERPOLATION, Row, grouped, is_fine_tuning_run, level_sets, sets
from analysis.verdicts import CANNOT_TELL, CURVE_KEYS, RAW, Trends

NUMBERS = Path(__file__).with_name("paper_numbers.json")
TUNED = "fine-tuned tasks"  # the task of numbers on GLUE and multiple choice


class What(StrEnum):
    """What a number or claim is about."""

    SPEARMAN = "spearman"
    DIFFICULTY = "difficulty"
    SCORE = "dense_score"
    DROP = "drop"
    FREEZING = "freezing"
    TRANSFER = "transfer"
    ORDER = "order"
    BARRIER = "barrier"
    LEVELS = "levels"


TITLE = {
    What.SPEARMAN: "Spearman of compression with loss",
    What.DIFFICULTY: "difficulty, (human - dense) / human",
    What.SCORE: "dense score",
    What.DROP: "normalized drop",
    What.FREEZING: "(dense with freezing - dense) / dense",
    What.TRANSFER: "transfers against each other",
    What.ORDER: "each harder level falls faster",
    What.BARRIER: "barrier of one task against another's",
    What.LEVELS: "number of levels",
}
CONTRAST = ("magnitude", "gptq")
LARGEST_NO_LOSS = 0.05  # of the dense score; a claim of no loss holds where the interval allows no larger one
ALPHA = 0.05
SAME, OTHER, SAME_SIGN, OTHER_SIGN = "same", "other", "same sign", "other sign"
NO_LOSS, LOSS, NOT_TOLD = "no loss seen", "ours loses", "ours cannot tell"
KIND = {"magnitude": "sparsity", "gptq": "bits", "low_rank": "rank"}  # of strength in the paper's tables
PAPER_COLUMNS = ("place", "what", "setting", "task", "item", "model", "compression", "strength", "value", "quote")
OUR_COLUMNS = (
    "what", "setting", "task", "item", "where", "model", "compression", "method", "strength", "value", "low", "high",
    "p_value", "note",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "place", "what", "setting", "task", "item", "strength", "paper_model", "paper_compression", "paper_value",
    "our_model", "our_compression", "our_value", "our_low", "our_high", "p_value", "holm_p", "verdict", "note",
)  # fmt: skip
GROUP_COLUMNS = (
    "place", "what", "setting", "task", "paper_model", "paper_compression", "our_model", "our_compression",
)  # fmt: skip
VERDICT_COLUMNS = (*GROUP_COLUMNS, "agreement", "text")


class Measured(NamedTuple):
    """What a tree of runs was measured for that the paper prints too.

    Fields:
        trends: verdicts of all curves.
        levels: table.level_table of all settings without training.
        gaps: human_gap.gap_table of each set of fine-tuning runs.
        differences: contrasts.difference_table of all of them.
        barriers: lines.barrier_table of each set of lines.
    """

    trends: Trends = Trends([], [], [])
    levels: Iterable[Row] = ()
    gaps: Iterable[list[Row]] = ()
    differences: Iterable[Row] = ()
    barriers: Iterable[list[Row]] = ()


def printed() -> list[Row]:
    """What the paper prints, rows of PAPER_COLUMNS.

    Returns:
        place is a table, figure or section; item is a level or task by our names. value is a number (a fraction) or,
        where the paper claims an order, verdicts.MONOTONIC or NOT_MONOTONIC. strength is the sparsity of a claim of no
        loss, and quote the claim.
    """
    return [
        {
            **{name: block.get(name) for name in ("place", "what", "setting", "task", "model", "strength", "quote")},
            "item": item,
            "compression": compression,
            "value": value,
        }
        for block in _blocks()
        for compression in block["compressions"]
        for item, value in block["values"].items()
    ]


@functools.cache
def _blocks() -> tuple[Row, ...]:
    return tuple(json.loads(NUMBERS.read_text(encoding="utf-8"))["blocks"])


def our_numbers(rows: list[Row], measured: Measured) -> list[Row]:
    """Every number and verdict of a tree that the paper prints too, rows of OUR_COLUMNS.

    Args:
        rows: what run_folder.read_runs returned.
        measured: on the same runs.
    Returns:
        compression is the paper's name of the method and `method` ours, with the scope of magnitude; where is the task
        or category of an order. low and high are the 95 % interval, None where there is none. p_value is that of
        another value than 0, of a drop that of a loss, before any correction.
    """
    return [
        *_spearmans(measured.trends.levels), *_orders(measured.trends.orders), *_drops(measured.trends.points),
        *_level_difficulties(measured.levels), *_tuned_difficulties(measured.gaps),
        *_freezing(measured.differences), *_transfer_orders(measured.differences), *_barrier_orders(measured.barriers),
        *_level_counts(rows),
    ]  # fmt: skip


def _row(what: str, setting: int | str, task: str, item: str, **others: object) -> Row:
    return {**dict.fromkeys(OUR_COLUMNS), "what": what, "setting": setting, "task": task, "item": item, **others}


def _method(row: Row) -> Row:
    """The columns that name model and method, from a row of analysis.verdicts."""
    kind = "" if row["strength_kind"] == KIND.get(row["compression"], "sparsity") else f", {row['strength_kind']}"
    return {
        "model": row["model"],
        "compression": row["compression"],
        "method": compression_name(row) + kind,
    }


def _spearmans(levels: Iterable[Row]) -> list[Row]:
    return [
        _row(
            What.SPEARMAN, level["setting"], level["task"], level["level"], **_method(level), value=level["spearman"],
            p_value=level["spearman_p"], note=f"number of strengths: {level['points']}",
        )
        for level in levels
        if level["strength_kind"] == KIND.get(level["compression"])
    ]  # fmt: skip


def _orders(orders: Iterable[Row]) -> list[Row]:
    """The verdicts on raw slopes, which the paper uses; those on chance-corrected slopes stand in the note."""
    found: dict[tuple, Row] = {}
    for order in orders:
        key = tuple(order[name] for name in CURVE_KEYS)
        tuned = order["setting"] == DATA_SETTING or is_of_category(order["setting"], order["task"])
        if order["measure"] == RAW and order["levels"] > 1:
            task, where = (TUNED, task_name(order["task"])) if tuned else (order["task"], None)
            found[key] = _row(
                What.ORDER, order["setting"], task, RAW, **_method(order), where=where, value=order["verdict"]
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


def _level_difficulties(levels: Iterable[Row]) -> list[Row]:
    """Score and difficulty of setting 5's levels."""
    dense = [point for point in levels if point["setting"] == 5 and point["compression"] == "dense"]
    return [
        found
        for point in dense
        if point["human"] is not None
        for found in _difficulty(5, point["task"], point["level"], point, point["human"], point["difficulty"])
    ]


def _tuned_difficulties(tables: Iterable[list[Row]]) -> list[Row]:
    """Score and difficulty of fine-tuned tasks."""
    of_task: dict[tuple[str, str], Row] = {}  # once, though tables of two magnitude scopes have the same dense runs
    for gap in itertools.chain.from_iterable(tables):
        if gap["human"] is not None:
            of_task.setdefault((gap["model"], gap["task"]), gap)
    found = []
    for (model, task), gap in of_task.items():
        stderr = None if gap["difficulty_stderr"] is None else gap["difficulty_stderr"] * gap["human"]
        dense = {"model": model, "mean_score": gap["dense_mean_score"], "mean_stderr": stderr}
        found += _difficulty(DATA_SETTING, TUNED, task, dense, gap["human"], gap["difficulty"])
    return found


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
    """Two-sided p-value of a distance from 0, by the normal approximation."""
    return 2 * float(scipy.special.ndtr(-abs(distance) / stderr)) if stderr else None


def _around(value: float, half: float | None) -> tuple[float | None, float | None]:
    return (None, None) if half is None else (value - half, value + half)


def _freezing(differences: Iterable[Row]) -> list[Row]:
    """What freezing changes, as a share of the dense score; bounds are those of the difference, by the same score."""
    names = {"difference": "value", "difference_low": "low", "difference_high": "high"}
    return [
        _row(
            What.FREEZING, DATA_SETTING, TUNED, row["task"], strength=row["strength"], p_value=row["p_value"],
            **{own: row[name] and row[name] / row["against_score"] for name, own in names.items()},
            note=row["reason"] or None, **_method({**row, "compression": "magnitude"}),
        )
        for row in differences
        if (row["transfer"], row["against"]) == (FREEZING, DENSE) and row["strength_kind"] == "sparsity"
        and row["dense_above_chance"] is not False and row["against_score"]
    ]  # fmt: skip


def _transfer_orders(differences: Iterable[Row]) -> list[Row]:
    """For each task, kind of strength and pair of transfers, the verdict that no strength contradicts."""
    judged = (row for row in differences if row["dense_above_chance"] is not False)
    names = ("model", "magnitude_scope", "task", "strength_kind", "transfer", "against")
    found = []
    for (*_, task, _, first, other), own in grouped(judged, names).items():
        told = [row["verdict"] for row in own]
        sure = {HIGHER, LOWER} & set(told)
        counts = ", ".join(f"{name} in {told.count(name)}" for name in (HIGHER, LOWER))
        named = f"{task_name(task)}, {SHORT[first]} - {SHORT[other]}"
        found.append(
            _row(
                What.TRANSFER, DATA_SETTING, TUNED, f"{first} - {other}", where=named,
                value=CANNOT_TELL if not sure else sure.pop() if len(sure) == 1 else "both",
                note=f"{counts} of {len(told)}", **_method({**own[0], "compression": "magnitude"}),
            )
        )  # fmt: skip
    return found


def _barrier_orders(tables: Iterable[list[Row]]) -> list[Row]:
    """For the paper's pairs of tasks, which has the higher barrier in error, as a share of what dense learned."""
    pairs = {row["item"]: row["item"].split(" - ") for row in printed() if row["what"] == What.BARRIER}
    found = []
    for barriers in tables:
        lines: dict[str, dict[tuple, Row]] = {}
        for row in barriers:
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
        value = HIGHER
    elif one["share_high"] < other["share_low"]:
        value = LOWER
    where = f"{task_name(one['task'])} - {task_name(other['task'])}, {strength_text(one)}"
    note = f"{one['share_of_learned']:.3f} and {other['share_of_learned']:.3f} of what dense learned"
    method = _method({**one, "compression": "magnitude"})
    return _row(What.BARRIER, INTERPOLATION, TUNED, item, where=where, value=value, note=note, **method)


def _level_counts(rows: list[Row]) -> list[Row]:
    found = []
    for (setting, model, task), members in level_sets(rows).items():
        levels = {row["level"] for row in members if not row.get("facts", {}).get("reference_only")}
        found.append(_count(setting, task, model, len(levels)))
    for (setting, model), members in sets(rows, is_fine_tuning_run, ("setting", "model")).items():
        shares: dict[str, set[float]] = {}
        for row in members:
            shares.setdefault(row["task"], set()).add(row["data_fraction"])
        found.append(_count(setting, TUNED, model, max(map(len, shares.values()))))
    return found


def _count(setting: int | str, task: str, model: str, count: int) -> Row:
    same = {"model": model, "compression": "dense", "method": "Dense"}
    return _row(What.LEVELS, setting, task, "levels", **same, value=count)


def compare(ours: list[Row]) -> list[Row]:
    """One row of COMPARISON_COLUMNS for each number of the paper and each of ours that corresponds to it.

    Args:
        ours: rows of OUR_COLUMNS; those without a counterpart are passed over.
    Returns:
        In the paper's order. verdict says of a correlation or difficulty whether the sign is the same, of a claim of no
        loss whether ours loses or its interval rules out more than LARGEST_NO_LOSS, of an order whether our verdict is
        the same, of a score or count how ours differs; NOT_TOLD where ours is missing or allows both. Signs and losses
        are told where holm_p, corrected over the rows of one table or claim, model and method, is at most ALPHA.
    """
    found = []
    for paper, own in itertools.product(printed(), ours):
        same = all(own[name] == paper[name] for name in ("what", "setting", "task", "item", "compression"))
        if same and paper["strength"] in (None, own["strength"]):
            found.append(_beside(paper, own))
    for members in grouped(found, GROUP_COLUMNS).values():
        for row, corrected in zip(members, estimators.holm([row["p_value"] for row in members]), strict=True):
            row["holm_p"] = corrected
            row["verdict"] = _verdict(row)
    return found


def _beside(paper: Row, own: Row) -> Row:
    shown = ("place", "what", "setting", "task", "strength")
    return {
        **{name: paper[name] for name in shown},
        "item": own["where"] or own["item"],
        **{f"paper_{name}": paper[name] for name in ("model", "compression", "value")},
        "our_model": own["model"],
        "our_compression": own["method"],
        **{f"our_{name}": own[name] for name in ("value", "low", "high")},
        **{name: own[name] for name in ("p_value", "note")},
    }


def _verdict(row: Row) -> str:
    what, paper, is_told = row["what"], row["paper_value"], row["holm_p"] is not None and row["holm_p"] <= ALPHA
    value, low, high = row["our_value"], row["our_low"], row["our_high"]
    if value is None or value == CANNOT_TELL:
        return NOT_TOLD
    if what in (What.TRANSFER, What.ORDER, What.BARRIER, What.LEVELS):
        return SAME if value == paper else OTHER
    if what == What.SCORE:
        if low is not None and low <= paper <= high:
            return "alike"
        return "ours higher" if value > paper else "ours lower"
    if what in (What.DROP, What.FREEZING):
        if is_told and value < 0:
            return LOSS
        return NO_LOSS if low is not None and low > -LARGEST_NO_LOSS else NOT_TOLD
    if value == 0 or not is_told:
        return NOT_TOLD
    return SAME_SIGN if value * paper > 0 else OTHER_SIGN


def verdicts(comparison: list[Row]) -> list[Row]:
    """One row of VERDICT_COLUMNS for each table or claim of the paper and each model and method of ours.

    Args:
        comparison: what `compare` returned.
    Returns:
        agreement in a few words and text as a sentence. Numbers whose value depends on the model alone (scores, counts)
        have no verdict. What agrees or not is said where it was tested; text also counts the pairs of levels whose
        estimates are in the paper's order, of those that differ in both. A table of two compressions has a further row
        with the levels at which the estimate of either is closer.
    """
    groups = grouped(comparison, GROUP_COLUMNS)
    judged = {
        **dict.fromkeys((What.SPEARMAN, What.DIFFICULTY), _signs),
        **dict.fromkeys((What.DROP, What.FREEZING), _losses),
        **dict.fromkeys((What.TRANSFER, What.ORDER, What.BARRIER), _claims),
    }
    found = []
    for key, members in groups.items():
        row = dict(zip(GROUP_COLUMNS, key, strict=True))
        if row["what"] in judged:
            agreement, text = judged[row["what"]](members)
            found.append({**row, "agreement": agreement, "text": f"{_heading(row)}: {agreement}; {text}."})
    return found + _contrasts(groups)


def _heading(row: Row) -> str:
    method = "" if row["paper_compression"] == "dense" else f", {row['our_compression']}"
    place = f"{row['place'][0].upper()}{row['place'][1:]}"
    beside = f"{row['our_model']} beside {row['paper_model']}"
    return f"{place}, {TITLE[row['what']]}, setting {row['setting']}{method}, {beside}"


def _signs(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members if row["verdict"] != NOT_TOLD]
    known = [row for row in members if row["our_value"] is not None]
    held, total = pairs_in_order([row["paper_value"] for row in known], [row["our_value"] for row in known])
    text = f"the sign is the same in {told.count(SAME_SIGN)} of {len(members)}"
    text += (
        f"; of the estimates, {held} of {total} pairs are in its order" if total else "; no pair has an order in both"
    )
    return OTHER_SIGN if OTHER_SIGN in told else SAME_SIGN if told else NOT_TOLD, text


def pairs_in_order(one: list[float], other: list[float]) -> tuple[int, int]:
    """The number of pairs of indices that both lists order alike, and the number that both lists order at all."""
    pairs = itertools.combinations(zip(one, other, strict=True), 2)
    signs = [(first[0] - second[0]) * (first[1] - second[1]) for first, second in pairs]
    return sum(sign > 0 for sign in signs), sum(sign != 0 for sign in signs)


def _losses(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members]
    items = ", ".join(f"{_item(row)} {_value(row, row['our_value'])}" for row in members)
    agreement = LOSS if LOSS in told else NO_LOSS if set(told) == {NO_LOSS} else NOT_TOLD
    return agreement, f"the paper sees none, ours is sure of a loss in {told.count(LOSS)} of {len(told)} ({items})"


def _claims(members: list[Row]) -> tuple[str, str]:
    told = [row["verdict"] for row in members]
    agreement = OTHER if OTHER in told else SAME if SAME in told else NOT_TOLD
    paper = ", ".join(dict.fromkeys(row["paper_value"] for row in members))
    counts = ", ".join(f"{value} in {told.count(value)}" for value in (SAME, OTHER, NOT_TOLD) if value in told)
    return agreement, f"the paper says {paper}; ours: {counts} of {len(told)}"


def _contrasts(groups: dict[tuple, list[Row]]) -> list[Row]:
    """For tables with both compressions of CONTRAST, at how many levels the first one's estimate is closer.

    Correlations have no interval, so that which of two is closer is not told.
    """
    found = []
    for (key, members), (other_key, others) in itertools.product(groups.items(), repeat=2):
        row, other = (dict(zip(GROUP_COLUMNS, each, strict=True)) for each in (key, other_key))
        same = ("place", "what", "setting", "paper_model", "our_model")
        if row["what"] != What.SPEARMAN or any(row[name] != other[name] for name in same):
            continue
        if (row["paper_compression"], other["paper_compression"]) != CONTRAST:
            continue
        beside = {each["item"]: each for each in others}
        pairs = [(each, beside[each["item"]]) for each in members if each["item"] in beside]
        paper = [one["paper_value"] > two["paper_value"] for one, two in pairs]
        ours = [(one["our_value"], two["our_value"]) for one, two in pairs]
        signs = [(one > two) - (one < two) for one, two in ours if None not in (one, two)]
        named = {name: f"{row[name]} against {other[name]}" for name in ("paper_compression", "our_compression")}
        text = f"by the estimates the first is closer in {signs.count(1)}, less close in {signs.count(-1)} "
        text += f"of {len(pairs)} levels, in the paper closer in {sum(paper)} of {len(paper)}"
        row |= named
        found.append({**row, "agreement": NOT_TOLD, "text": f"{_heading(row)}: {NOT_TOLD}; {text}."})
    return found


def comparison_lines(compared: list[Row]) -> list[str]:
    """The verdicts and the numbers behind them in Markdown; empty without a comparison."""
    if not compared:
        return []
    head = ["where", "what", "item", "paper", "paper's model", "ours", "our model", "our compression", "verdict"]
    body = [
        [
            row["place"], TITLE[row["what"]], _item(row), _value(row, row["paper_value"]), row["paper_model"],
            _ours(row), row["our_model"], row["our_compression"],
            row["verdict"] + (f" ({row['note']})" if row["note"] else ""),
        ]
        for row in compared
    ]  # fmt: skip
    sentences = [f"- {row['text']}" for row in verdicts(compared)]
    return [*sentences, *([""] if sentences else []), *markdown(head, body)]


def _item(row: Row) -> str:
    strength = "" if row["strength"] is None else f" at {row['strength']:g}"
    return f"{task_name(row['item'])}{strength}"


def _ours(row: Row) -> str:
    text = _value(row, row["our_value"])
    if row["our_low"] is None or row["our_high"] is None:
        return text
    return f"{text} [{_value(row, row['our_low'])}, {_value(row, row['our_high'])}]"


def _value(row: Row, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:.3f}" if row["what"] != What.LEVELS else f"{value}"
