"""What summary.md says of a setting without training: its levels, slopes and scores, and what to beware of."""

import math
from collections import Counter
from collections.abc import Iterable

from analysis import tables
from analysis.levels import level_tables
from analysis.resampling import FEW_CLUSTERS
from analysis.tables import Row
from analysis.uncertainty import trends
from analysis.uncertainty.trends import Trends
from analysis.wording import (
    compression_name,
    dense_caution,
    markdown,
    misses_sparsity,
    number,
    strength_text,
    uneven_seeds,
    with_bounds,
)

ANSWER = {True: "yes", False: "**no**", None: ""}
REFERENCE = "reference_only"
SPEARMAN_CELL = 6  # of _slope_cells
# Share of answers without a word from which a score tells whether a model answers, more than what it knows.
MANY_EMPTY = 0.1
# What the metrics of written answers say that are not called by what they are.
METRIC_NOTES = {
    "em_original": "the original's match, one of the two anywhere inside the other letter by letter, right for an "
    "empty answer too",
    "freebaseqa_original": "the original's match for FreebaseQA, an accepted answer anywhere in question and answer "
    "without spaces, also inside a longer word or in the question itself",
    "empty": "share of answers without a word",
}
ORDER = {True: "yes", False: "no", None: "cannot be told"}


def section(table: list[Row], found: Trends | None = None) -> list[str]:
    """The lines of one setting, model and task.

    Args:
        table: its level_table.
        found: trends.measure of its runs, which gives slopes their intervals and the figure its verdict.
    """
    return [
        "### Levels", "", *_levels(table), "",
        "### How fast the score falls", "", *_slopes(table, found), "",
        *([] if found is None else _verdicts(found)),
        "### Scores", "", *_scores(table), *_written_answers(table),
    ]  # fmt: skip


def _levels(table: list[Row]) -> list[str]:
    head = [
        "level", "difficulty", "data set", "metric", "read by", "items", "chance", "people", "dense ± standard error",
        "above chance", "dense by every metric", "how it was made",
    ]  # fmt: skip
    body = []
    for name, points in _by_level(table).items():
        first = points[0]
        is_dense = first["strength_kind"] is None
        body.append(
            [
                f"{name} (reference only)" if first["reference_only"] else name, _difficulty(first["difficulty"]),
                first["dataset"] or "", first["metric"], first["reader"] or "", first["num_examples"],
                number(first["chance"]), number(first["human"]),
                _with_error(first["mean_score"], first["mean_stderr"]) if is_dense else "**missing**",
                ANSWER[first["dense_above_chance"]], _listed(first["metrics"]) if is_dense else "",
                _listed(fact for fact in first["facts"] if not fact.startswith(REFERENCE) and not fact.endswith("=0")),
            ]
        )  # fmt: skip
    return ["From easy to hard.", "", *markdown(head, body)]


def _by_level(table: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for point in table:
        found.setdefault(point["level"], []).append(point)
    return found


def _listed(told: Iterable[str]) -> str:
    """("accuracy=0.5", "accuracy_norm=0.6") -> accuracy 0.5, accuracy norm 0.6"""
    return ", ".join(text.replace("_", " ").replace("=", " ") for text in told)


def _difficulty(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _with_error(score: float, error: float | None) -> str:
    return f"{score:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _slopes(table: list[Row], found: Trends | None) -> list[str]:
    bounds = {} if found is None else {_curve_place(row): row for row in found.levels}
    errors = {point["level"]: point["mean_stderr"] for point in table if point["strength_kind"] is None}
    body, orders = [], []
    for (kind, _, _), curves in level_tables.level_curves(table).items():
        levels = [level_tables.level_statistics(points) for points in curves.values()]
        place = [compression_name(next(iter(curves.values()))[0]), kind]
        for level, points in zip(levels, curves.values(), strict=True):
            own = bounds.get(_curve_place(points[0]), {})
            cells = _slope_cells(level, errors.get(level["level"]), own)
            if len({point["mean_score"] for point in points}) == 1 < len(points):
                cells[SPEARMAN_CELL] = "undefined: all scores are equal"
            body.append([*place, *cells])
        for measure, own in {"raw": levels, "chance-corrected": level_tables.corrected_levels(levels)}.items():
            in_order, basis = tables.slope_order(own)
            if in_order:
                basis += f"; by luck alone once in {math.factorial(sum(map(tables.is_comparable, own)))}"
            orders.append([*place, measure, ORDER[in_order], basis])
    head = [
        "compression", "strength", "level", "difficulty", "dense score", "chance", "above chance", "points",
        "Spearman", "slope", "chance-corrected slope",
    ]  # fmt: skip
    return [
        "Spearman: rank correlation of the weights removed with the loss of score, 1 where every step loses. Slope: "
        "Theil-Sen, normalized drop per unit of weights removed (sparsity, 1 - N/M, 1 - bits/16, or the share of the "
        "parameters that a low rank saves), negative where the score falls. Chance-corrected: of the score above "
        "chance, (score - chance) / (dense - chance) - 1. A level whose dense score is not above chance has no slope."
        + ("" if found is None else f" {_ABOUT_INTERVALS}"),
        "",
        *markdown(head, body),
        "",
        "The hypothesis says that the slope steepens with difficulty:",
        "",
        *markdown(["compression", "strength", "slopes", "each harder level falls faster", "basis"], orders),
        *_about_chance(table),
    ]


_ABOUT_INTERVALS = (
    "In brackets 95 % intervals: whole curves resampled over groups of items and over seeds, the same ones for the "
    "dense model, all strengths and all levels that share items."
)


def _curve_place(row: Row) -> tuple:
    return tuple(row[name] for name in ("strength_kind", "compression", "magnitude_scope", "level"))


def _verdicts(found: Trends) -> list[str]:
    lines = [f"- {line}" for line in trends.verdict_lines(found.orders)]
    return [
        "### Verdicts", "",
        "Whether the score falls faster at every harder level, tested one-sided at 5 % with Holm's correction over the "
        "lines of one measure. The slopes decide; Page's test of the losses, averaged over the strengths, stands "
        "beside them where all levels share groups of items that are large enough to be ranked.",
        "", *(lines or ["Nothing was compressed."]), "",
        "### Where the score begins to fall", "", *_beginnings(found.levels), "",
    ]  # fmt: skip


def _beginnings(levels: list[Row]) -> list[str]:
    head = ["compression", "strength", "level", "items", "groups", "seeds", "5 % lost at", "10 % lost at", "remark"]
    body = [
        [
            compression_name(row), row["strength_kind"], row["level"], *(_known(row[name]) for name in
            ("items", "clusters", "seeds")), _beginning(row, "amount_at_5"), _beginning(row, "amount_at_10"),
            "; ".join(filter(None, (row["reason"], row["amount_reason"]))),
        ]
        for row in levels
    ]  # fmt: skip
    return [
        "The share of the weights removed (measured as the slopes are) at which the drop reaches 5 and 10 % of the "
        "dense score, on the falling curve (isotonic) nearest to the points, with its 95 % interval; a bound that is "
        "blank lies beyond the strengths measured.",
        "",
        *markdown(head, body),
    ]


def _known(value: int | None) -> str:
    return "" if value is None else str(value)


def _beginning(row: Row, name: str) -> str:
    value, low, high = (row[f"{name}{ending}"] for ending in ("", "_low", "_high"))
    if value is None:
        return "" if row["amount_reason"] is None else "not reached" + ("" if low is None else f" [{number(low)}, ]")
    return with_bounds(value, low, high)


def _slope_cells(level: Row, error: float | None, bounds: Row) -> list:
    dense = level["dense_mean_score"]
    slope = level["theil_sen_slope"] if tables.is_comparable(level) else None
    return [
        level["level"], _difficulty(level["difficulty"]), "" if dense is None else _with_error(dense, error),
        number(level["chance"]), ANSWER[level["dense_above_chance"]], len(level["strengths"]),
        *(
            with_bounds(value, bounds.get(f"{name}_low"), bounds.get(f"{name}_high"))
            for name, value in
            (("spearman", level["spearman"]), ("slope", slope), ("corrected_slope", level["corrected_slope"]))
        ),
    ]  # fmt: skip


def _about_chance(table: list[Row]) -> list[str]:
    """That raw slopes are in order for another reason than difficulty, where the levels' chance differs."""
    chances = {point["chance"] for point in table if not point["reference_only"]} - {None}
    if table[0]["setting"] == 2:
        return [
            "",
            "The raw order alone says little here: with fewer options chance is higher, and no score falls far below "
            "it. A compression that destroys the same share of the knowledge at every number of options already gives "
            "raw drops that steepen from 2 options to 4; only its chance-corrected slopes are alike.",
        ]
    if len(chances) > 1:
        return [
            "",
            f"The levels differ in chance ({number(min(chances))} to {number(max(chances))}), below which no score "
            "falls far: the same loss of knowledge gives different raw drops, and equal chance-corrected ones.",
        ]
    return []


def _scores(table: list[Row]) -> list[str]:
    levels = _by_level(table)
    heads = [
        f"{name} (**dense at chance**)" if points[0]["dense_above_chance"] is False else name
        for name, points in levels.items()
    ]
    lines: dict[tuple, dict[str, Row]] = {}
    for point in table:
        key = tuple(point[name] for name in level_tables.POINT_KEY)
        lines.setdefault(key, {})[point["level"]] = point
    body = []
    for line in sorted(lines.values(), key=lambda line: level_tables.place(next(iter(line.values())))):
        point = next(iter(line.values()))
        cells = [_score(line[level]) if level in line else "" for level in levels]
        body.append([compression_name(point), strength_text(point), " ".join(map(str, point["seeds"])), *cells])
    return [
        "Mean over seeds; in brackets the normalized drop with its 95 % interval over groups of items and over seeds, "
        "each item compared with the dense model's outcome on it. No drop where the dense score is not above chance.",
        "",
        *markdown(["compression", "strength", "seeds", *heads], body),
    ]


def _written_answers(table: list[Row]) -> list[str]:
    """Written answers by every metric that was recorded, the original's among them; nothing without such answers."""
    points = [point for point in table if (point["reader"] or "").startswith("answer") and point["metrics"]]
    recorded = [dict(text.split("=", 1) for text in point["metrics"]) for point in points]
    names = list(dict.fromkeys(name for metrics in recorded for name in metrics))
    if not names:
        return []
    notes = [f"{name.replace('_', ' ')}: {note}" for name, note in METRIC_NOTES.items() if name in names]
    body = [
        [point["level"], compression_name(point), strength_text(point), *(metrics.get(name, "") for name in names)]
        for point, metrics in zip(points, recorded, strict=True)
    ]
    return [
        "", "### Written answers by every metric", "",
        f"`plot_results.py --metric NAME` draws another. {'. '.join(notes)}.", "",
        *markdown(["level", "compression", "strength", *(name.replace("_", " ") for name in names)], body),
    ]  # fmt: skip


def _score(point: Row) -> str:
    """0.412 (-12.3 [-15.5, -9.1] %); without what is not known."""
    text = f"{point['mean_score']:.3f}"
    drop = point["normalized_drop"]
    if point["strength_kind"] is None or drop is None or point["dense_above_chance"] is False:
        return text
    half = ""
    if point["drop_low"] is not None and point["drop_high"] is not None:
        half = f" [{100 * point['drop_low']:.1f}, {100 * point['drop_high']:.1f}]"
    return f"{text} ({100 * drop:+.1f}{half} %)"


def cautions(members: list[Row], table: list[Row]) -> list[str]:
    """One sentence for everything that keeps a number from meaning what it seems to.

    Args:
        members: runs of one setting, model and task.
        table: their level_table.
    """
    return [
        *_reference_cautions(members, table),
        *_empty_cautions(members),
        *_seed_cautions(table),
        *_pairing_cautions(table),
        *_strength_cautions(table),
        *_fact_cautions(members),
    ]


def _reference_cautions(members: list[Row], table: list[Row]) -> list[str]:
    dense = level_tables.with_errors([row for row in members if row["compression"] == "dense"])
    if not dense:
        return ["NO DENSE RUN, so no drop is defined."]
    found = []
    for level in _by_level(table):
        runs = [row for row in dense if row["level"] == level]
        said = dense_caution(runs) if runs else "NOT IN THE DENSE RUN, so no drop is defined."
        if said:
            found.append(f"{level}: {said}")
    return found


def _empty_cautions(members: list[Row]) -> list[str]:
    """Levels at which models give many empty answers: a compression may silence a model that still knows."""
    levels: dict[str, dict[str, float]] = {}
    for row in members:
        share = row.get("metrics", {}).get("empty")
        if share is not None:
            name = f"{compression_name(row)} at {strength_text(row)}" if row["strength_kind"] else "dense"
            shares = levels.setdefault(row["level"], {})
            shares[name] = max(share, shares.get(name, 0.0))
    found = []
    for level, shares in levels.items():
        if max(shares.values()) >= MANY_EMPTY:
            told = ", ".join(f"{name}: {100 * share:.0f} %" for name, share in shares.items())
            found.append(
                f"{level}: MANY ANSWERS ARE EMPTY ({told}), so that its drops say whether the model answers as much as "
                "what it knows; --chat_template, where the model has one, or --min_new_tokens 8 asks for an answer."
            )
    return found


def _seed_cautions(table: list[Row]) -> list[str]:
    found = []
    calibrated = Counter(point["seeds"] for point in table if point["calibrated"])
    single = sum(count for own, count in calibrated.items() if len(own) == 1)
    if single:
        found.append(
            f"{single} of {calibrated.total()} calibrated points rest on one calibration sample: the bands leave its "
            "spread out."
        )
    others = Counter(point["seeds"] for point in table if not point["calibrated"])
    for name, counts in {"calibrated points": calibrated, "points without calibration": others}.items():
        if len(counts) > 1:
            found.append(f"The {name} {uneven_seeds(counts)}")
    return found


def _pairing_cautions(table: list[Row]) -> list[str]:
    points = [point for point in table if point["strength_kind"] is not None and point["dense_mean_score"] is not None]
    none = sum(not point["paired_items"] for point in points)
    partly = [point for point in points if point["paired_items"] and point["unpaired_items"]]
    few = sum(
        bool(point["paired_items"]) and point["drop_low"] is None and point["dense_above_chance"] is not False
        for point in points
    )
    found = []
    if none:
        found.append(f"{none} of {len(points)} points have no items in common with the dense run: no interval.")
    if partly:
        worst = max(partly, key=lambda point: point["unpaired_items"])
        found.append(
            f"{len(partly)} of {len(points)} points have items that the dense run lacks, or lack some of its items: "
            f"left out of the intervals (at most {worst['unpaired_items']}: {worst['level']}, "
            f"{compression_name(worst)} at {strength_text(worst)})."
        )
    if few:
        found.append(
            f"{few} of {len(points)} points have no interval: the runs of their curve have {FEW_CLUSTERS} in common."
        )
    return found


def _strength_cautions(table: list[Row]) -> list[str]:
    found = []
    for curves in level_tables.level_curves(table).values():
        everything = {point["strength"]: point for points in curves.values() for point in points}
        for level, points in curves.items():
            own = {point["strength"] for point in points}
            lacking = [strength_text(point) for strength, point in everything.items() if strength not in own]
            if lacking:
                name = compression_name(points[0])
                found.append(f"{level}, {name}: lacks {', '.join(lacking)}, which other levels have.")
    missed = {
        (compression_name(point), strength_text(point)): point
        for point in table
        if point["strength_kind"] in ("sparsity", "nm") and misses_sparsity(point)
    }
    return found + [
        f"{name} at {strength}: the measured sparsity is {point['measured_sparsity']:.3f}, "
        f"not {point['requested_sparsity']:.3f}."
        for (name, strength), point in missed.items()
    ]


def _fact_cautions(members: list[Row]) -> list[str]:
    """What the construction of the levels left out or cut, levels with the same facts together; not its means."""
    facts: dict[str, dict[str, set[float]]] = {}
    for row in members:
        own = facts.setdefault(row["level"], {})
        for name, value in row.get("facts", {}).items():
            if value and name != REFERENCE and not name.startswith("mean_"):
                own.setdefault(name, set()).add(value)
    told: dict[str, list[str]] = {}
    for level, own in facts.items():
        text = ", ".join(f"{name.replace('_', ' ')} {_range(values)}" for name, values in own.items())
        told.setdefault(text, []).append(level)
    return [f"{', '.join(levels)}: {text}." for text, levels in told.items() if text]


def _range(values: set[float]) -> str:
    return f"{min(values):g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"
