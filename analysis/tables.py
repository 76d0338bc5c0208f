"""Tables of fine-tuning runs: means over seeds beside the dense reference, and the statistics of each curve.

Rows of runs are what results.read_runs returns. A point is one task, data fraction, transfer and strength: the mean
over its seeds. A curve is the points of one task, data fraction, transfer and kind of strength.
"""

import csv
import hashlib
import io
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from analysis import monotonicity, results

DENSE = "dense_transfer"
FREEZING = "dense_transfer_freezing"
SPARSE = "sparse_transfer"
SPARSE_TO_DENSE = "sparse_to_dense"
TRANSFERS = (DENSE, FREEZING, SPARSE, SPARSE_TO_DENSE)
KINDS = ("sparsity", "nm")

POINT_COLUMNS = (
    "setting", "model", "magnitude_scope", "task", "data_fraction", "difficulty", "transfer",
    "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "metric", "mean_score", "interval_low", "interval_high", "lowest_score", "highest_score", "seeds",
    "dense_mean_score", "relative_percent", "normalized_drop", "chance", "mean_stderr", "dense_above_chance",
)  # fmt: skip
SHARED_BY_SEEDS = (
    "setting", "task", "data_fraction", "difficulty", "transfer",
    "strength_kind", "strength", "requested_sparsity", "metric",
)  # fmt: skip

Row = dict[str, Any]


def figure_sets(rows: list[Row]) -> dict[tuple[int, str, str | None], list[Row]]:
    """The fine-tuning runs that belong in one figure, by setting, model and magnitude scope.

    A run to which the scope does not matter (dense, N:M) stands in the set of every scope of its setting and model;
    the scope is None where no run has one.

    Raises:
        ValueError: runs that must not be averaged or compared (results.check_runs).
    """
    results.check_runs(rows)
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row.get("transfer") is not None:
            groups.setdefault((row["setting"], row["model"]), []).append(row)
    sets = {}
    for setting, model in sorted(groups):
        scopes = [results.coordinates(row)["magnitude_scope"] for row in groups[setting, model]]
        for scope in sorted(set(scopes) - {None}) or [None]:
            members = zip(groups[setting, model], scopes, strict=True)
            sets[setting, model, scope] = [row for row, own in members if own in (scope, None)]
    return sets


def model_name(model: str) -> str:
    """Last part of a hub id or path, fit for a file name; of roberta-base/model, the folder above."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    name = parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]
    return re.sub(r"[^A-Za-z0-9._]+", "-", name)


def model_names(models: Iterable[str]) -> dict[str, str]:
    """The model_name of each, with a hash where several models would have the same."""
    names = {model: model_name(model) for model in models}
    counts = Counter(names.values())
    return {
        model: name if counts[name] == 1 else f"{name}-{hashlib.sha256(model.encode()).hexdigest()[:6]}"
        for model, name in names.items()
    }


def seed_means(rows: list[Row]) -> list[Row]:
    """One row of POINT_COLUMNS per point, from the easiest level to the hardest and from weak compression to strong.

    Args:
        rows: runs of one setting, model and magnitude scope; those without a transfer are passed over.
    Returns:
        The model goes by its model_name. Scores are fractions; the interval is Student's over seeds at 95 %, None with
        one seed; mean_stderr is the standard error over items, mean over seeds. The dense reference is the mean over
        the seeds of the dense transfer with the same task and data fraction: what needs it is None where there is
        none, and dense_above_chance is None where chance or standard error is unknown.
    Raises:
        ValueError: runs that must not be averaged, or that belong in several figures.
    """
    sets = figure_sets(rows)
    if len(sets) > 1:
        names = "; ".join(f"setting {setting}, model {model}, scope {scope}" for setting, model, scope in sets)
        raise ValueError(f"the runs belong in {len(sets)} figures ({names}); take one of tables.figure_sets")
    table = []
    for (_, _, scope), members in sets.items():
        points: dict[tuple, list[Row]] = {}
        for row in members:
            key = ("task", "data_fraction", "transfer", "strength_kind", "strength")
            points.setdefault(tuple(row[name] for name in key), []).append(row)
        for (task, fraction, *_), point in points.items():
            dense = points.get((task, fraction, DENSE, None, None), [])
            name = model_name(point[0]["model"])
            table.append({**_mean_over_seeds(point, dense), "model": name, "magnitude_scope": scope})
    return sorted(table, key=_place)


def _mean_over_seeds(point: list[Row], dense: list[Row]) -> Row:
    first, scores = point[0], [row["score"] for row in point]
    mean, low, high = monotonicity.mean_interval(scores)
    dense_mean = _mean(dense, "score")
    drop = None if dense_mean is None else monotonicity.normalized_drop(mean, dense_mean)
    return {
        **{name: first[name] for name in SHARED_BY_SEEDS},
        "measured_sparsity": _mean(point, "measured_sparsity"),
        "mean_score": mean,
        "interval_low": low,
        "interval_high": high,
        "lowest_score": min(scores),
        "highest_score": max(scores),
        "seeds": tuple(sorted(row["seed"] for row in point)),
        "dense_mean_score": dense_mean,
        "relative_percent": None if drop is None else 100 * mean / dense_mean,
        "normalized_drop": drop,
        "chance": _mean(point, "chance"),
        "mean_stderr": _mean(point, "stderr"),
        "dense_above_chance": is_above_chance(dense),
    }


def _mean(rows: list[Row], name: str) -> float | None:
    """None where any row lacks the value: the mean of the rest would be that of another set."""
    values = [row[name] for row in rows]
    return None if not values or None in values else statistics.fmean(values)


def is_above_chance(runs: list[Row]) -> bool | None:
    """Whether the mean score of runs on the same items is above chance; None without runs, chance or standard error."""
    values = [_mean(runs, name) for name in ("score", "chance", "stderr")]
    return None if None in values else monotonicity.above_chance(*values)


def _place(point: Row) -> tuple:
    return (
        point["task"],
        -point["data_fraction"],
        TRANSFERS.index(point["transfer"]),
        compression_order(point),
    )


def compression_order(point: Row) -> tuple[int, float, str]:
    """Sort key: dense, sparsity, N:M, each from weak to strong; 2:4 and 4:8 remove equally much and stand together."""
    kind = point["strength_kind"]
    return -1 if kind is None else KINDS.index(kind), point["requested_sparsity"], str(point["strength"])


def data_adequacy_table(rows: list[Row]) -> list[Row]:
    """The points of figures.data_adequacy: dense and sparse transfer in setting 1; empty without sparse transfer."""
    shown = [row for row in rows if row["setting"] == 1 and row.get("transfer") in (DENSE, SPARSE)]
    table = seed_means(shown)
    return table if any(point["transfer"] == SPARSE for point in table) else []


def four_transfers_table(rows: list[Row]) -> list[Row]:
    """The points of figures.four_transfers; empty where dense and sparse transfer are all there is."""
    table = seed_means(rows)
    return table if any(point["transfer"] in (FREEZING, SPARSE_TO_DENSE) for point in table) else []


def curves(table: list[Row]) -> dict[tuple[str, str, str, float], list[Row]]:
    """The compressed points of a table of seed_means: by task, kind of strength, transfer and data fraction."""
    found: dict[tuple[str, str, str, float], list[Row]] = {}
    for point in table:
        if point["strength_kind"] is not None:
            key = (point["task"], point["strength_kind"], point["transfer"], point["data_fraction"])
            found.setdefault(key, []).append(point)
    return found


def curve_statistics(points: list[Row]) -> Row:
    """Statistics of one curve, over the means of its points.

    Returns:
        data_fraction, difficulty, dense_mean_score, dense_above_chance and strengths of the curve; spearman and
        theil_sen_slope (drop per unit of requested sparsity), None where they are not defined.
    """
    sparsity = [point["requested_sparsity"] for point in points]
    drops = [point["normalized_drop"] for point in points]
    same = ("data_fraction", "difficulty", "dense_mean_score", "dense_above_chance")
    return {
        **{name: points[0][name] for name in same},
        "strengths": tuple(point["strength"] for point in points),
        "spearman": monotonicity.spearman(sparsity, [point["mean_score"] for point in points]),
        "theil_sen_slope": None if None in drops else monotonicity.theil_sen_slope(sparsity, drops),
    }


def slope_order(levels: list[Row]) -> tuple[bool | None, str]:
    """Whether the slopes of one task and transfer steepen with difficulty, as the hypothesis says.

    Args:
        levels: curve_statistics of the levels to compare.
    Returns:
        True, False, or None where it cannot be told; and how many levels were compared, or why it cannot be told.
        Levels that are not comparable (is_comparable) are left out.
    """
    kept = [level for level in levels if is_comparable(level)]
    if len(kept) < 2:
        return None, f"{len(kept)} of {len(levels)} levels can be compared"
    if len({level["strengths"] for level in kept}) > 1:
        return None, "the levels were measured at different strengths"
    difficulty = [level["difficulty"] for level in kept]
    if len(set(difficulty)) < len(difficulty):
        return None, "several levels have the same difficulty"
    in_order = monotonicity.is_monotonic(difficulty, [level["theil_sen_slope"] for level in kept])
    return in_order, f"{len(kept)} of {len(levels)} levels compared"


def is_comparable(level: Row) -> bool:
    """Whether a level's slope (curve_statistics) means something: it has one, and its dense model learned the task."""
    return level["theil_sen_slope"] is not None and level["dense_above_chance"] is not False


def csv_text(table: Iterable[Row], columns: Iterable[str] = POINT_COLUMNS) -> str:
    """The table as CSV with a header line; a missing value is an empty field, several seeds are parted by spaces."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in table:
        cells = {name: " ".join(map(str, cell)) if isinstance(cell, tuple) else cell for name, cell in row.items()}
        writer.writerow(cells)
    return stream.getvalue()
