"""Tables of the settings without training (2 to 6 and users' own tasks), whose runs hold all levels of difficulty.

A point is one level, compression and strength: the mean over its seeds, beside the dense model on the same items. A
curve is the points of one level, compression, magnitude scope and kind of strength.
"""

import functools
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from analysis import estimators, storage, tables
from analysis.tables import Row, mean_of
from harness import run_folder

OWN_TASK = "own_task"
LEVEL_SETTINGS = (2, 3, 4, 5, 6, OWN_TASK)
FULL_BITS = 16  # of a weight that is not quantized

LEVEL_COLUMNS = (
    "setting", "task", "model", "level", "difficulty", "reference_only", "dataset", "reader", "metric",
    "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "parameter_ratio", "bytes_fraction", "calibrated", "seeds", "num_examples", "mean_score", "lowest_score",
    "highest_score", "mean_stderr", "metrics", "facts", "chance", "human", "dense_mean_score", "dense_above_chance",
    "relative_percent", "normalized_drop", "drop_low", "drop_high", "corrected_drop", "points_drop", "points_stderr",
    "paired_items", "unpaired_items",
)  # fmt: skip
POINT_KEY = ("compression", "magnitude_scope", "strength_kind", "strength")
DENSE_POINT = ("dense", None, None, None)
ITEM_COLUMNS = ("level", "item", "group", "score")
KEPT_RUNS = 2048  # whose items stay in memory


class Outcomes(NamedTuple):
    """The items of one run at one level.

    Fields:
        items: identities, no two alike, (items,).
        groups: what each belongs to, (items,).
        scores: what each contributes to the mean, (items,).
    """

    items: np.ndarray
    groups: np.ndarray
    scores: np.ndarray


class LevelSet(NamedTuple):
    """What the runs of one figure share."""

    setting: int | str
    model: str
    task: str


def is_level_run(row: Row) -> bool:
    """Whether a row is of a setting without training; GLUE has a setting 5 too, with a transfer."""
    return row["setting"] in LEVEL_SETTINGS and row.get("transfer") is None


def level_sets(rows: list[Row]) -> dict[LevelSet, list[Row]]:
    """The runs of settings without training that belong in one figure.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    sets: dict[LevelSet, list[Row]] = {}
    for row in filter(is_level_run, rows):
        sets.setdefault(LevelSet(row["setting"], row["model"], row["task"]), []).append(row)
    return dict(sorted(sets.items(), key=lambda entry: tuple(map(str, entry[0]))))


def with_errors(members: list[Row]) -> list[Row]:
    """The rows with the standard error over groups of items where their runs kept them, whatever was recorded."""
    return [_with_error(row) for row in members]


def _with_error(row: Row) -> Row:
    outcomes = read_outcomes(row["folder"], row.get("item_column")).get(row["level_index"])
    if outcomes is None or len(outcomes.scores) == 0:
        return row
    return {**row, "stderr": estimators.clustered_error(outcomes.scores, outcomes.groups)}


def with_metric(rows: list[Row], names: Sequence[str]) -> list[Row]:
    """The rows with another of the metrics that their runs recorded as the score.

    Args:
        names: metrics such as "accuracy_norm"; a level has the first of them that was recorded for it, or its own.
    Raises:
        ValueError: no level has one of them; names those that there are.
    """
    known = {name for row in rows if is_level_run(row) for name in row.get("metrics", {})}
    for name in names:
        if name not in known:
            raise ValueError(f"--metric {name}: the runs recorded {', '.join(sorted(known)) or 'none to choose from'}")
    return [_rescored(row, names) if is_level_run(row) else row for row in rows]


def _rescored(row: Row, names: Sequence[str]) -> Row:
    chosen = next((name for name in names if name in row.get("metrics", {})), row["metric"])
    if chosen == row["metric"]:
        return row
    return {**row, "metric": chosen, "score": row["metrics"][chosen], "item_column": chosen, "stderr": None}


def level_table(rows: list[Row]) -> list[Row]:
    """One row of LEVEL_COLUMNS per point: levels from easy to hard, references last; dense first, from weak to strong.

    Args:
        rows: runs of any setting; those with training and perplexity are passed over.
    Returns:
        The model goes by its model_name. bytes_fraction is that of storage.bytes_fraction. Scores are fractions, means
        over seeds; mean_stderr is the standard error over groups of items. What needs the dense model is None where
        that was not run: dense_above_chance is False where the interval of its score includes chance; normalized_drop
        is relative to its score, corrected_drop to its score above chance (None where it is not above), points_drop is
        the bare difference. points_stderr is that difference's standard error over groups of items, each item compared
        with the dense model's outcome on it (estimators.clustered_error). drop_low and drop_high are None here: the
        interval of the normalized drop comes with trends.with_intervals. Items that either side lacks are left out of
        these and counted as unpaired. In setting 5 a level without difficulty has that of human_gap.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    return [point for members in level_sets(rows).values() for point in _table_of_set(with_errors(members))]


def _table_of_set(members: list[Row]) -> list[Row]:
    runs = runs_of_points(members)
    dense_runs = runs.get(DENSE_POINT, {})
    read_dense = functools.cache(read_outcomes)
    dense_outcomes = {level: _by_seed(own, read_dense) for level, own in dense_runs.items()}
    difficulty = {row["level"]: _difficulty(row, dense_runs.get(row["level"], [])) for row in members}
    # One recipe, so that what holds for one run holds for all.
    arguments = run_folder.recorded_arguments(Path(members[0]["folder"])) or {}
    prompted = " in the chat template" if arguments.get("chat_template") else ""
    table = []
    for point, levels in runs.items():
        read = functools.cache(read_outcomes)  # a folder holds all levels, and is read once
        for level, own in levels.items():
            row = {**_scores(own), "difficulty": difficulty[level]}
            row["reader"] = row["reader"] and row["reader"] + prompted
            row |= _drops(row, dense_runs.get(level, []))
            compressed = {} if point == DENSE_POINT else _by_seed(own, read)
            table.append({**row, **_uncertainty(compressed, dense_outcomes.get(level, {}))})
    order = _level_order(members, difficulty)
    return sorted(table, key=lambda row: (order[row["level"]], *place(row)))


def runs_of_points(members: list[Row]) -> dict[tuple, dict[str, list[Row]]]:
    """The runs of one setting, model and task by POINT_KEY and level, one per seed."""
    runs: dict[tuple, dict[str, list[Row]]] = {}
    for row in members:
        found = run_folder.coordinates(row)
        point = tuple(found[name] for name in POINT_KEY)
        runs.setdefault(point, {}).setdefault(row["level"], []).append(row)
    return runs


def _difficulty(row: Row, dense: list[Row]) -> float | None:
    if row["difficulty"] is not None or row["setting"] != 5:
        return row["difficulty"]
    human, score = row.get("human"), mean_of(dense, "score")
    return None if human is None or score is None else estimators.human_gap(human, score)


def _level_order(members: list[Row], difficulty: dict[str, float | None]) -> dict[str, tuple]:
    """Sort keys of levels: by difficulty where all have one, else as the runs list them; references come last."""
    own = {row["level"]: bool(row.get("facts", {}).get("reference_only")) for row in members}
    known = all(difficulty[level] is not None for level, is_reference in own.items() if not is_reference)
    index = {row["level"]: row["level_index"] for row in members}
    return {
        level: (is_reference, difficulty[level] if known and not is_reference else 0.0, index[level], level)
        for level, is_reference in own.items()
    }


def place(point: Row) -> tuple:
    """Sort key of a level's points: dense, then by kind of strength, from weak to strong, by compression."""
    is_global = point["magnitude_scope"] == "global"
    return tables.compression_order(point), tables.compression_rank(point["compression"]), is_global


def _scores(point: list[Row]) -> Row:
    """What is known of a point without the dense model."""
    first, scores = point[0], [row["score"] for row in point]
    left = {name: mean_of(point, name) for name in ("measured_sparsity", "parameter_ratio", "chance")}
    same = ("setting", "task", "level", "metric", "compression", "strength_kind", "strength", "requested_sparsity")
    return {
        **{name: first[name] for name in same},
        **{name: first.get(name) for name in ("dataset", "reader", "human")},
        "model": tables.model_name(first["model"]),
        "magnitude_scope": run_folder.coordinates(first)["magnitude_scope"],
        "reference_only": bool(first.get("facts", {}).get("reference_only")),
        "calibrated": first.get("compression_recipe") is not None,
        "seeds": tuple(sorted(row["seed"] for row in point)),
        "num_examples": max(row["num_examples"] for row in point),
        "mean_score": statistics.fmean(scores),
        "lowest_score": min(scores),
        "highest_score": max(scores),
        "mean_stderr": mean_of(point, "stderr"),
        **{name: _told([row.get(name, {}) for row in point]) for name in ("metrics", "facts")},
        **left,
        "bytes_fraction": storage.run_bytes_fraction({**first, **left}),
    }


def _told(runs: list[Row]) -> tuple[str, ...]:
    """Means over runs of what each tells by name, as texts; what one of them does not tell is left out."""
    means = {name: mean_of(runs, name) for name in runs[0]}
    return tuple(f"{name}={value:.6g}" for name, value in means.items() if value is not None)


def _drops(point: Row, dense: list[Row]) -> Row:
    """The dense model's score on the level, and the point's loss against it in three measures."""
    score, reference = point["mean_score"], mean_of(dense, "score")
    return {
        **tables.against_dense(score, reference, point["chance"], tables.is_above_chance(dense)),
        "points_drop": None if reference is None else score - reference,
    }


def _uncertainty(compressed: dict[int, Outcomes], dense: dict[int, Outcomes]) -> Row:
    """Of the differences to dense, one per item; None where either side has no items."""
    names = ("points_stderr", "drop_low", "drop_high", "paired_items", "unpaired_items")
    found = dict.fromkeys(names)
    if not compressed or not dense:
        return found
    differences, groups, unpaired = paired_differences(compressed, dense)
    found |= {"paired_items": len(differences), "unpaired_items": unpaired}
    if len(differences):
        found["points_stderr"] = estimators.clustered_error(differences, groups)
    return found


def read_outcomes(folder: str, metric: str | None = None) -> dict[int, Outcomes]:
    """The items of a run by the level's place in it, not to be written into; empty where the run kept none.

    Runs that answered the same items have the very same arrays of items and groups.

    Args:
        metric: another than the run's score, at the levels for which it was recorded.
    """
    try:
        changed = os.stat(os.path.join(folder, run_folder.ITEMS_FILE)).st_mtime_ns
    except FileNotFoundError:
        return {}
    return _outcomes_as_of(changed, folder, metric)


@functools.lru_cache(maxsize=KEPT_RUNS)
def _outcomes_as_of(changed: int, folder: str, metric: str | None) -> dict[int, Outcomes]:
    """read_outcomes of a file that was last changed then; tables and intervals of one figure read the same runs."""
    columns = run_folder.read_items(Path(folder), ITEM_COLUMNS)
    if len(columns) < len(ITEM_COLUMNS):
        return {}
    places = _places(*(_Same(columns[name]) for name in ("level", "item", "group")))
    others = run_folder.read_items(Path(folder), [f"level{level}_{metric}" for level in places]) if metric else {}
    found = {}
    for level, (own, items, groups) in places.items():
        scores = others.get(f"level{level}_{metric}")
        found[level] = Outcomes(items, groups, _compact(columns["score"][own] if scores is None else scores))
    return found


class _Same:
    """An array that equals itself alone, whatever it holds, so that what is made of it can be kept."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.array is other.array


@functools.lru_cache(maxsize=32)
def _places(level: _Same, item: _Same, group: _Same) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By level: where its items stand in the columns, their identities and their groups."""
    found = {}
    for place in np.unique(level.array).tolist():
        own = np.flatnonzero(level.array == place)
        found[place] = own, _distinct(item.array[own]), group.array[own]
    return found


def _compact(scores: np.ndarray) -> np.ndarray:
    """The same numbers in a byte each where all are 0 or 1, as most are."""
    small = scores.astype(np.uint8)
    return small if np.array_equal(small, scores) else scores


def _distinct(items: np.ndarray) -> np.ndarray:
    """The identities, numbered where a data set holds the same item several times."""
    listed = items.tolist()
    if len(set(listed)) == len(listed):
        return items
    seen: Counter = Counter()
    numbered = []
    for item in listed:
        numbered.append(f"{item} #{seen[item]}")
        seen[item] += 1
    return np.array(numbered)


def _by_seed(runs: list[Row], read: Callable[[str, str | None], dict[int, Outcomes]]) -> dict[int, Outcomes]:
    """The items of one level by seed; empty where a run has none."""
    found = {row["seed"]: read(row["folder"], row.get("item_column")).get(row["level_index"]) for row in runs}
    return {} if None in found.values() else found


def paired_differences(
    compressed: dict[int, Outcomes], dense: dict[int, Outcomes]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Each item's compressed minus dense score, mean over the seeds.

    Args:
        compressed, dense: the items by seed, at least one seed each.
    Returns:
        Differences and groups of the items that both sides have, and the number of items that one side
        lacks. A seed is compared with the dense run of that seed, which was asked the same; one that has none (the seed
        draws the calibration text alone), with the item's mean over the dense runs.
    """
    scores, groups = aligned([*compressed.values(), *dense.values()])
    of_compressed, of_dense = scores[: len(compressed)], scores[len(compressed) :]
    own = dict(zip(dense, of_dense, strict=True))
    pooled = _mean_of_known(of_dense)
    references = np.array([own.get(seed, pooled) for seed in compressed])
    differences = _mean_of_known(of_compressed - references)
    known = ~np.isnan(differences)
    return differences[known], groups[known], int((~known).sum())


def aligned(runs: list[Outcomes]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (runs, items) with NaN where a run lacks an item that another has, and the items' groups."""
    first = runs[0]
    if all(run.items is first.items or np.array_equal(run.items, first.items) for run in runs):
        return np.array([run.scores for run in runs], dtype=np.float64), first.groups
    items = np.unique(np.concatenate([run.items for run in runs]))
    scores = np.full((len(runs), len(items)), np.nan)
    groups = np.empty(len(items), dtype=np.result_type(*[run.groups for run in runs]))
    for row, run in zip(scores, runs, strict=True):
        places = np.searchsorted(items, run.items)
        row[places], groups[places] = run.scores, run.groups
    return scores, groups


def _mean_of_known(scores: np.ndarray) -> np.ndarray:
    """Mean over runs of those that are no NaN, (items,); NaN where there is none."""
    counts = (~np.isnan(scores)).sum(axis=0)
    return np.where(counts > 0, np.nansum(scores, axis=0) / np.maximum(counts, 1), np.nan)


def level_curves(table: list[Row]) -> dict[tuple[str, str, str | None], dict[str, list[Row]]]:
    """The compressed points of one setting, model and task, without levels that are mere references.

    Returns:
        By kind of strength, compression and magnitude scope, in the order of panels; within, by level from easy to
        hard.
    """
    found: dict[tuple[str, str, str | None], dict[str, list[Row]]] = {}
    for point in table:
        if point["strength_kind"] is not None and not point["reference_only"]:
            key = (point["strength_kind"], point["compression"], point["magnitude_scope"])
            found.setdefault(key, {}).setdefault(point["level"], []).append(point)

    def panel(key: tuple[str, str, str | None]) -> tuple:
        return tables.KINDS.index(key[0]), tables.compression_rank(key[1]), key[2] != "layer"

    return {key: found[key] for key in sorted(found, key=panel)}


def amount(point: Row) -> float | None:
    """How much of the weights is gone: sparsity, 1 - N/M, 1 - bits/16, or the share of parameters that a rank saves."""
    if point["strength_kind"] == "bits":
        return 1 - point["strength"] / FULL_BITS
    if point["strength_kind"] == "rank":
        return None if point["parameter_ratio"] is None else 1 - point["parameter_ratio"]
    return point["requested_sparsity"]


def level_statistics(points: list[Row]) -> Row:
    """Statistics of one curve, over the means of its points.

    Returns:
        level, difficulty, dense_mean_score, dense_above_chance, chance and strengths of the curve; spearman, the
        theil_sen_slope of the normalized drop and the corrected_slope of the chance-corrected one, per unit of amount;
        None where they are not defined.
    """
    amounts = [amount(point) for point in points]
    scores = [point["mean_score"] for point in points]
    same = ("level", "difficulty", "dense_mean_score", "dense_above_chance", "chance")
    return {
        **{name: points[0][name] for name in same},
        "strengths": tuple(point["strength"] for point in points),
        "spearman": None if None in amounts else estimators.spearman(amounts, scores),
        "theil_sen_slope": _slope(amounts, [point["normalized_drop"] for point in points]),
        "corrected_slope": _slope(amounts, [point["corrected_drop"] for point in points]),
    }


def _slope(amounts: list[float | None], drops: list[float | None]) -> float | None:
    return None if None in (*amounts, *drops) else estimators.theil_sen_slope(amounts, drops)


def corrected_levels(levels: list[Row]) -> list[Row]:
    """The same statistics with the chance-corrected slope as the slope, for tables.slope_order."""
    return [{**level, "theil_sen_slope": level["corrected_slope"]} for level in levels]
