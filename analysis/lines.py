"""Lines between two models of one task (appendix C): score and loss along each and its barriers, means over seeds.

Lines differ in task, kind of pair and strength of the compressed end (LINE_KEY).
"""

import math
from typing import Any

from analysis import estimators
from analysis.estimators import STRAIGHT_LINE
from analysis.table import Row, compression_order, is_above_chance, line_sets, mean_of, only_set

CONNECTED_ERROR = 0.02  # Frankle et al. call two models connected below this barrier in error
PAIRS = ("dense-sparse", "dense-pruned", "dense-dense")
# In the order of the paper's appendix C.
TASKS = ("qqp", "stsb", "qnli", "rte")
CURVES = ("score", "train_score", "validation_loss", "train_loss")

LINE_KEY = ("task", "pair", "magnitude_scope", "strength_kind", "strength")
LINE_COLUMNS = (
    "model", "data_fraction", *LINE_KEY, "requested_sparsity", "measured_sparsity", "alpha", "metric",
    *(f"{kind}_{name}" for name in CURVES for kind in ("mean", "lowest", "highest")),
    "mean_stderr", "chance", "dense_above_chance", "num_examples", "num_train_examples", "seeds",
)  # fmt: skip
BARRIER_COLUMNS = (
    "model", "data_fraction", *LINE_KEY, "requested_sparsity", "measured_sparsity", "metric",
    "split", "quantity", "definition", "mean_barrier", "interval_low", "interval_high", "lowest_barrier",
    "highest_barrier", "alphas", "start", "end", "dense_above_chance", "share_of_learned", "share_low", "share_high",
    "connected", "seeds",
)  # fmt: skip
# By share of what was learned, the column that it is a share of.
SHARES = {"share_of_learned": "mean_barrier", "share_low": "interval_low", "share_high": "interval_high"}


def line_table(rows: list[Row]) -> list[Row]:
    """One row of LINE_COLUMNS for each line and alpha; the paper's tasks come first, and pairs in the order of PAIRS.

    Args:
        rows: runs of one set.
    Returns:
        Scores are fractions. `seeds` are texts, "41-42" where the two ends have different ones. mean_stderr is the
        standard error over items, mean over seeds. dense_above_chance is about alpha 0, None where that is no dense
        model.
    Raises:
        ValueError: runs of several sets, or lines of one kind with different alphas.
    """
    table = []
    for runs in _lines(rows):
        alphas = {tuple(row["alpha"] for row in run) for run in runs}
        if len(alphas) > 1:
            raise ValueError(f"lines of {_name(runs[0][0])} have different alphas: {_folders(runs)}; keep one kind")
        for points in zip(*runs, strict=True):
            table.append({**_shared(runs), **_point(list(points))})
    return table


def barrier_table(rows: list[Row]) -> list[Row]:
    """One row of BARRIER_COLUMNS for each line, split, quantity and definition, in the order of line_table.

    Args:
        rows: runs of one set.
    Returns:
        Losses have their own units, errors (1 - score) are fractions. The interval joins that of each run over items,
        averaged over seeds, with Student's over seeds: the squares of their distances from the mean are added, which
        counts what items add to the spread of seeds twice. start and end are the values at alpha 0 and 1.
        share_of_learned is the barrier in error as a share of what the start's score is above chance, which makes tasks
        comparable; share_low and share_high are its interval. They are None for losses and where nothing was learned.
        connected is told of the error above the straight line: True where the interval is below CONNECTED_ERROR, False
        where it is above, else None.
    """
    table = []
    for runs in _lines(rows):
        places = [{_barrier_key(found): found for found in run[0]["barriers"]} for run in runs]
        ends = {_end_key(run): (run[0], run[-1]) for run in runs}
        for key in places[0]:
            split, quantity, definition = key
            found = [place[key] for place in places]
            row = {"split": split, "quantity": quantity, "definition": definition, **_mean_barrier(found)}
            values = [[_value(end, split, quantity) for end in pair] for pair in ends.values()]
            row["start"], row["end"] = (sum(column) / len(column) for column in zip(*values, strict=True))
            learned = _learned(runs, split) if quantity == "error" else None
            for share, name in SHARES.items():
                row[share] = row[name] / learned if learned and row[name] is not None else None
            row["connected"] = _connected(row)
            table.append({**_shared(runs), **row})
    return table


def _lines(rows: list[Row]) -> list[list[list[Row]]]:
    """The runs of each line, in the order of the tables; a run is the list of its points, from alpha 0 to 1."""
    runs: dict[str, list[Row]] = {}
    for row in only_set(line_sets(rows), ("setting", "model", "data_fraction")):
        runs.setdefault(row["folder"], []).append(row)
    lines: dict[tuple, list[list[Row]]] = {}
    for run in runs.values():
        lines.setdefault(tuple(run[0][name] for name in LINE_KEY), []).append(run)
    return sorted(lines.values(), key=lambda line: _place(line[0][0]))


def _place(row: Row) -> tuple:
    tasks, pairs = TASKS.index(row["task"]) if row["task"] in TASKS else len(TASKS), len(PAIRS)
    pair = PAIRS.index(row["pair"]) if row["pair"] in PAIRS else pairs
    return tasks, row["task"], pair, row["pair"], compression_order(row), str(row["magnitude_scope"])


def _shared(runs: list[list[Row]]) -> Row:
    """The columns that all points of a line share."""
    first = runs[0][0]
    return {
        **{name: first[name] for name in ("model", "data_fraction", *LINE_KEY, "requested_sparsity", "metric")},
        "measured_sparsity": mean_of([run[0] for run in runs], "measured_sparsity"),
        "seeds": tuple(sorted(map(_end_key, runs))),
        "dense_above_chance": _above_chance([run[0] for run in runs]),
    }


def _end_key(run: list[Row]) -> str:
    return "-".join(map(str, dict.fromkeys((run[0]["seed"], run[0]["end_seed"]))))


def _above_chance(starts: list[Row]) -> bool | None:
    """Whether the dense models at alpha 0 are above chance; None where the line starts at another model."""
    if not starts[0]["pair"].startswith("dense-"):
        return None
    return is_above_chance(starts)


def _point(points: list[Row]) -> Row:
    first = points[0]
    found: dict[str, Any] = {name: first[name] for name in ("alpha", "chance", "num_examples", "num_train_examples")}
    for name in CURVES:
        values = [point[name] for point in points]
        found |= {f"mean_{name}": sum(values) / len(values), f"lowest_{name}": min(values),
                  f"highest_{name}": max(values)}  # fmt: skip
    return {**found, "mean_stderr": mean_of(points, "stderr")}


def _barrier_key(found: Row) -> tuple[str, str, str]:
    return found["split"], found["quantity"], found["definition"]


def _mean_barrier(found: list[Row]) -> Row:
    heights = [one["barrier"] for one in found]
    mean, low, high = (mean_of(found, name) for name in ("barrier", "low", "high"))
    if len(found) > 1 and low is not None and high is not None:
        over_seeds = mean - estimators.mean_interval(heights)[1]
        low, high = max(0.0, mean - math.hypot(mean - low, over_seeds)), mean + math.hypot(high - mean, over_seeds)
    return {
        "mean_barrier": mean,
        "interval_low": low,
        "interval_high": high,
        "lowest_barrier": min(heights),
        "highest_barrier": max(heights),
        "alphas": tuple(one["alpha"] for one in found),
    }


def _value(end: Row, split: str, quantity: str) -> float:
    if quantity == "loss":
        return end[f"{split}_loss"]
    return 1 - end["score" if split == "validation" else "train_score"]


def _learned(runs: list[list[Row]], split: str) -> float | None:
    """The start's score above chance; None where it is not above, and on training rows, whose chance is unknown."""
    starts = [run[0] for run in runs]
    if split != "validation" or not _above_chance(starts):
        return None
    return mean_of(starts, "score") - mean_of(starts, "chance")


def _connected(row: Row) -> bool | None:
    if (row["quantity"], row["definition"]) != ("error", STRAIGHT_LINE) or row["interval_high"] is None:
        return None
    if row["interval_high"] < CONNECTED_ERROR:
        return True
    return False if row["interval_low"] > CONNECTED_ERROR else None


def _name(row: Row) -> str:
    return ", ".join(str(row[name]) for name in ("task", "pair", "strength") if row[name] is not None)


def _folders(runs: list[list[Row]]) -> str:
    return " and ".join(run[0]["folder"] for run in runs[:2])
