"""Section 5: the four transfers against each other, at the same strength, with the same seeds, on the same items.

What a difference may be due to is resampled: the items on which both were evaluated, and the seeds that both have. Both
sides of a difference are scored on the same draws, so that what makes an item hard for both cancels.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from analysis import estimators, resampling, tables
from analysis.drawing import percent
from analysis.fine_tuning import prediction_scores
from analysis.fine_tuning.prediction_scores import ResampledRuns
from analysis.resampling import RESAMPLES
from analysis.tables import Row, task_name
from analysis.wording import markdown, strength_text

# What the paper's section 5 asks: does freezing cost, does growing back repair, and does it repair as much as keeping.
PAIRS = (
    (tables.FREEZING, tables.DENSE),
    (tables.SPARSE_TO_DENSE, tables.DENSE),
    (tables.SPARSE_TO_DENSE, tables.SPARSE),
    (tables.FREEZING, tables.SPARSE_TO_DENSE),
)
SHORT = {
    tables.DENSE: "dense", tables.FREEZING: "freezing", tables.SPARSE: "sparse",
    tables.SPARSE_TO_DENSE: "sparse to dense",
}  # fmt: skip
ALPHA = 0.05
HIGHER, LOWER, UNSURE = "higher", "lower", "cannot tell"

DIFFERENCE_COLUMNS = (
    "model", "magnitude_scope", "task", "data_fraction", "metric", "strength_kind", "strength", "requested_sparsity",
    "transfer", "against", "score", "against_score", "difference", "difference_low", "difference_high", "p_value",
    "holm_p", "verdict", "seeds", "items", "dense_above_chance", "reason",
)  # fmt: skip


def difference_table(rows: list[Row], resamples: int = RESAMPLES, seed: int = 0) -> list[Row]:
    """One row of DIFFERENCE_COLUMNS per task, data fraction, strength and pair of PAIRS that the tree holds.

    Args:
        rows: runs of one setting, model and magnitude scope (tables.figure_sets).
        resamples: of the items and seeds.
        seed: of the resamples.
    Returns:
        Scores are means over the seeds that both transfers have; the difference is the first's minus the other's, in
        the unit of the metric (0.01 of accuracy is one item in a hundred), with its 95 % interval over items and
        seeds. p_value is two-sided, of no difference; holm_p is corrected over all rows of the table whose dense
        transfer is above chance. verdict is HIGHER or LOWER where holm_p is at most .05, else UNSURE. Without an
        interval (no items kept, other items, no seed in common) reason says why and the verdict is UNSURE.
    Raises:
        ValueError: runs that must not be averaged, or that belong in several figures.
    """
    points = {_key(point): point for point in tables.seed_means(rows)}
    runs: dict[tuple, list[Row]] = {}
    of_task: dict[tuple, list[Row]] = {}
    for row in filter(tables.is_fine_tuning_run, rows):
        runs.setdefault(_key(row), []).append(row)
        of_task.setdefault((row["task"], row["data_fraction"]), []).append(row)
    compressed = dict.fromkeys((*key[:2], *key[3:]) for key in points if key[2] != tables.DENSE)
    table = []
    for (task, fraction), places in itertools.groupby(compressed, key=lambda place: place[:2]):
        drawn = prediction_scores.replicates(of_task[task, fraction], resamples, seed)
        for (*_, kind, strength), (first, other) in itertools.product(places, PAIRS):
            one = (task, fraction, first, kind, strength)
            against = (task, fraction, other, *((None, None) if other == tables.DENSE else (kind, strength)))
            if one in points and against in points:
                row = _difference(points[one], points[against], runs[one], runs[against])
                table.append(row | _uncertainty(row, runs[one], runs[against], drawn, seed))
    known = [row if row["dense_above_chance"] is not False else {"p_value": None} for row in table]
    for row, corrected in zip(table, estimators.holm([row["p_value"] for row in known]), strict=True):
        row["holm_p"] = corrected
        if corrected is not None and corrected <= ALPHA:
            row["verdict"] = HIGHER if row["difference"] > 0 else LOWER
    return table


def _key(row: Row) -> tuple:
    return tuple(row[name] for name in ("task", "data_fraction", "transfer", "strength_kind", "strength"))


def _difference(one: Row, against: Row, runs: list[Row], others: list[Row]) -> Row:
    """What is known of two points without their items."""
    same = ("model", "magnitude_scope", "task", "data_fraction", "metric", "strength_kind", "strength")
    seeds = sorted({run["seed"] for run in runs} & {run["seed"] for run in others})
    score, other = (tables.mean_of(_of_seeds(side, seeds), "score") for side in (runs, others))
    return {
        **{name: one[name] for name in (*same, "requested_sparsity", "transfer", "dense_above_chance")},
        "against": against["transfer"],
        "score": score,
        "against_score": other,
        "difference": score - other if seeds else None,
        "seeds": tuple(seeds),
    }


def _uncertainty(row: Row, runs: list[Row], others: list[Row], drawn: ResampledRuns, seed: int) -> Row:
    """The interval of a difference over its items and seeds, or why there is none."""
    unknown = dict.fromkeys(("difference_low", "difference_high", "p_value", "items")) | {"verdict": UNSURE}
    if not row["seeds"]:
        return {**unknown, "reason": "no seed in common"}
    paired = [[run["folder"] for run in _of_seeds(side, row["seeds"])] for side in (runs, others)]
    if not {*paired[0], *paired[1]} <= drawn.scores.keys():
        return {**unknown, "reason": "no predictions on the same items"}
    found = drawn.of_points(paired, np.random.default_rng(seed))
    difference = resampling.compare(np.subtract, found.point(0), found.point(1))
    interval = difference.interval()
    return {
        "difference_low": interval.low,
        "difference_high": interval.high,
        "p_value": difference.p_other_than_zero(),
        "items": drawn.items,
        "verdict": UNSURE,
        "reason": f"fewer than {resampling.MIN_CLUSTERS} items" if interval.low is None else "",
    }


def _of_seeds(runs: list[Row], seeds: Sequence[int]) -> list[Row]:
    return sorted((run for run in runs if run["seed"] in seeds), key=lambda run: run["seed"])


def summary_lines(table: list[Row]) -> list[str]:
    """Section 5 in Markdown: the differences with their intervals, and how often each pair differs.

    Args:
        table: a difference_table; empty text where there is no pair to compare.
    """
    if not any(row["transfer"] == tables.FREEZING or row["against"] == tables.SPARSE for row in table):
        return []
    pairs = list(dict.fromkeys((row["transfer"], row["against"]) for row in table))
    cells: dict[tuple, dict[tuple, str]] = {}
    for row in table:
        place = (task_name(row["task"]), percent(row["data_fraction"]), strength_text(row))
        cells.setdefault(place, {})[row["transfer"], row["against"]] = _cell(row)
    head = [f"{SHORT[first]} - {SHORT[other]}" for first, other in pairs]
    return [
        "Differences of scores at the same strength over the seeds that both have, with 95 % intervals over items (the "
        "same resamples for both) and seeds, each by itself; **bold** where the difference is told from 0 at 5 % after "
        "Holm's correction over all differences of this figure.",
        "",
        *markdown(["task", "data", "strength", *head], [[*place, *_line(own, pairs)] for place, own in cells.items()]),
        "",
        *[f"- {sentence}" for sentence in pair_sentences(table)],
    ]


def _line(own: dict[tuple, str], pairs: list[tuple]) -> list[str]:
    return [own.get(pair, "") for pair in pairs]


def _cell(row: Row) -> str:
    """+0.021 [+0.010, +0.032], bold where it is sure."""
    if row["difference"] is None:
        return row["reason"]
    text = f"{row['difference']:+.3f}"
    if row["difference_low"] is not None:
        text += f" [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
    return text if row["verdict"] == UNSURE else f"**{text}**"


def pair_sentences(table: Iterable[Row]) -> list[str]:
    """For each pair of transfers, in how many comparisons the first is surely higher, lower, or neither.

    Args:
        table: rows of difference_table; those whose dense transfer is not above chance do not count.
    """
    counted: dict[tuple[str, str], list[str]] = {}
    for row in table:
        if row["dense_above_chance"] is not False:
            counted.setdefault((row["transfer"], row["against"]), []).append(row["verdict"])
    return [
        f"{SHORT[first].capitalize()} against {SHORT[other]}: higher in {found.count(HIGHER)}, lower in "
        f"{found.count(LOWER)}, cannot tell in {found.count(UNSURE)} of {len(found)} comparisons."
        for (first, other), found in counted.items()
    ]
