"""Tables of runs: means over seeds beside the dense reference, and the statistics of each curve.

Rows of runs are what run_folder.read_runs returns. In fine-tuning a point is one task, data fraction, transfer and
strength: the mean over its seeds; a curve is the points of one task, data fraction, transfer and kind of strength. In
perplexity a point is one text, compression and strength, and higher is worse. The settings without training have
theirs in analysis.levels.level_tables.
"""

import csv
import hashlib
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis import estimators
from harness import run_folder

DENSE = "dense_transfer"
FREEZING = "dense_transfer_freezing"
SPARSE = "sparse_transfer"
SPARSE_TO_DENSE = "sparse_to_dense"
TRANSFERS = (DENSE, FREEZING, SPARSE, SPARSE_TO_DENSE)
FINE_TUNING_SETTINGS = (1, 5)  # others with a transfer, such as several domains in one run, have tables of their own
TWO_STRENGTHS = "two strengths give a difference, not a slope: measure a third"
KINDS = ("sparsity", "nm", "bits", "rank")
PERPLEXITY = "perplexity"
COMPRESSIONS = ("dense", "magnitude", "wanda", "ria", "sparsegpt", "rtn", "gptq", "low_rank")

POINT_COLUMNS = (
    "setting", "model", "magnitude_scope", "task", "data_fraction", "difficulty", "transfer",
    "strength_kind", "strength", "requested_sparsity", "measured_sparsity",
    "metric", "mean_score", "interval_low", "interval_high", "lowest_score", "highest_score", "seeds",
    "dense_mean_score", "relative_percent", "normalized_drop", "corrected_drop", "chance", "mean_stderr",
    "dense_above_chance",
)  # fmt: skip
SHARED_BY_SEEDS = (
    "setting", "task", "data_fraction", "difficulty", "transfer",
    "strength_kind", "strength", "requested_sparsity", "metric",
)  # fmt: skip
PERPLEXITY_COLUMNS = (
    "model", "text", "compression", "magnitude_scope", "strength_kind", "strength", "requested_sparsity",
    "measured_sparsity", "parameter_ratio", "mean_perplexity", "lowest_perplexity", "highest_perplexity", "mean_stderr",
    "loss_difference", "loss_difference_stderr", "vocabulary", "windows", "calibrated", "seeds",
)  # fmt: skip

TASK_NAME = {
    "cola": "CoLA", "mnli": "MNLI", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "rte": "RTE", "sst2": "SST-2",
    "stsb": "STS-B", "wnli": "WNLI", "commonsense_qa": "CommonsenseQA", "winogrande": "WinoGrande",
    "mawps": "MAWPS", "svamp": "SVAMP",
}  # fmt: skip

LONGEST_FILE_NAME = 60  # of a model, task or text in it

Row = dict[str, Any]


def task_name(task: str) -> str:
    """The task as its authors write it."""
    return TASK_NAME.get(task, task)


def is_fine_tuning_run(row: Row) -> bool:
    """Whether a row is a run of one fine-tuned task: GLUE, multiple choice, or a user's files."""
    return row["setting"] in FINE_TUNING_SETTINGS and row.get("transfer") is not None


def figure_sets(rows: list[Row]) -> dict[tuple[int, str, str | None], list[Row]]:
    """The fine-tuning runs that belong in one figure, by setting, model and magnitude scope.

    A run to which the scope does not matter (dense, N:M) stands in the set of every scope of its setting and model;
    the scope is None where no run has one.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    groups: dict[tuple[int, str], list[Row]] = {}
    for row in filter(is_fine_tuning_run, rows):
        groups.setdefault((row["setting"], row["model"]), []).append(row)
    sets = {}
    for setting, model in sorted(groups):
        scopes = [run_folder.coordinates(row)["magnitude_scope"] for row in groups[setting, model]]
        for scope in sorted(set(scopes) - {None}) or [None]:
            members = zip(groups[setting, model], scopes, strict=True)
            sets[setting, model, scope] = [row for row, own in members if own in (scope, None)]
    return sets


def model_name(model: str) -> str:
    """Last part of a hub id or path; of roberta-base/model, the folder above."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def text_name(text: str) -> str:
    """A text's name, or the last part of its path without the endings that say how it is stored."""
    last = text.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return re.sub(r"(?<=.)(\.(txt|jsonl|parquet|gz))+$", "", last)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """The names fit for file names on any system, with a hash where letters are lost or several would be the same."""
    return _distinct(names, _fit_for_files)


def _fit_for_files(name: str) -> str:
    fit = re.sub(r"[^A-Za-z0-9._]+", "-", name)
    loses = len(fit) > LONGEST_FILE_NAME or any(letter.isalnum() and not letter.isascii() for letter in name)
    return f"{fit[:LONGEST_FILE_NAME].rstrip('-')}-{_short_hash(name)}" if loses else fit


def _short_hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:6]


def model_names(models: Iterable[str]) -> dict[str, str]:
    """The model_name of each, with a hash where several models would have the same."""
    return _distinct(models, model_name)


def with_short_names(rows: list[Row], names: Mapping[str, str]) -> list[Row]:
    """The rows, with short names in the place of hub ids and paths; `names` as of model_names and text_names."""
    return [{**row, "model": names[row["model"]], "task": names.get(row["task"], row["task"])} for row in rows]


def text_names(texts: Iterable[str]) -> dict[str, str]:
    """The text_name of each, with a hash where several texts would have the same."""
    return _distinct(texts, text_name)


def _distinct(originals: Iterable[str], shorten: Callable[[str], str]) -> dict[str, str]:
    names = {original: shorten(original) for original in originals}
    counts = Counter(names.values())
    return {
        original: name if counts[name] == 1 else f"{name}-{_short_hash(original)}" for original, name in names.items()
    }


def seed_means(rows: list[Row]) -> list[Row]:
    """One row of POINT_COLUMNS per point, from the easiest level to the hardest and from weak compression to strong.

    Args:
        rows: runs of one setting, model and magnitude scope; those of no fine-tuned task are passed over.
    Returns:
        The model goes by its model_name. Scores are fractions; the interval is Student's over seeds at 95 %, None with
        one seed; mean_stderr is the standard error over items, mean over seeds. The dense reference is the mean over
        the seeds of the dense transfer with the same task and data fraction: what needs it is None where there is
        none, and dense_above_chance is None where chance or standard error is unknown. corrected_drop is relative to
        the dense score above chance, None where that is not above.
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


def against_dense(score: float, dense: float | None, chance: float | None, learned: bool | None) -> Row:
    """The columns that compare a score with the dense model's, None where there is nothing to compare.

    Args:
        learned: whether the dense model is above chance, None where that is not known; above its chance a score is
            compared unless it is known not to be.
    """
    drop = corrected = None
    if dense is not None:
        drop = estimators.normalized_drop(score, dense)
        if chance is not None and learned is not False:
            corrected = estimators.normalized_drop(score - chance, dense - chance)
    return {
        "dense_mean_score": dense,
        "dense_above_chance": learned,
        "relative_percent": None if drop is None else 100 * score / dense,
        "normalized_drop": drop,
        "corrected_drop": corrected,
    }


def _mean_over_seeds(point: list[Row], dense: list[Row]) -> Row:
    first, scores = point[0], [row["score"] for row in point]
    mean, low, high = estimators.mean_interval(scores)
    dense_mean, chance, learned = mean_of(dense, "score"), mean_of(point, "chance"), is_above_chance(dense)
    return {
        **{name: first[name] for name in SHARED_BY_SEEDS},
        "measured_sparsity": mean_of(point, "measured_sparsity"),
        "mean_score": mean,
        "interval_low": low,
        "interval_high": high,
        "lowest_score": min(scores),
        "highest_score": max(scores),
        "seeds": tuple(sorted(row["seed"] for row in point)),
        **against_dense(mean, dense_mean, chance, learned),
        "chance": chance,
        "mean_stderr": mean_of(point, "stderr"),
    }


def mean_of(rows: list[Row], name: str) -> float | None:
    """None where any row lacks the value: the mean of the rest would be that of another set."""
    values = [row.get(name) for row in rows]
    return None if not values or None in values else statistics.fmean(values)


def is_above_chance(runs: list[Row]) -> bool | None:
    """Whether the mean score of runs on the same items is above chance; None without runs, chance or standard error."""
    values = [mean_of(runs, name) for name in ("score", "chance", "stderr")]
    return None if None in values else estimators.above_chance(*values, items=runs[0]["num_examples"])


def _place(point: Row) -> tuple:
    return (
        point["task"],
        -point["data_fraction"],
        TRANSFERS.index(point["transfer"]),
        compression_order(point),
    )


def compression_rank(compression: str) -> tuple[int, str]:
    """Sort key: the order of COMPRESSIONS, then methods that are not among them, by name."""
    known = compression in COMPRESSIONS
    return COMPRESSIONS.index(compression) if known else len(COMPRESSIONS), compression


def compression_order(point: Row) -> tuple[int, float, int]:
    """Sort key: dense, then KINDS, each from weak to strong; 2:4 after 4:8, which removes as much more freely."""
    kind, strength = point["strength_kind"], point["strength"]
    amount = -strength if kind in ("bits", "rank") else point["requested_sparsity"]
    m_group = int(strength.partition(":")[2]) if kind == "nm" else 0
    return -1 if kind is None else KINDS.index(kind), amount, -m_group


def data_adequacy_table(rows: list[Row]) -> list[Row]:
    """The points of figures.data_adequacy: dense and sparse transfer in setting 1; empty without sparse transfer."""
    shown = [row for row in rows if row["setting"] == 1 and row.get("transfer") in (DENSE, SPARSE)]
    table = seed_means(shown)
    return table if any(point["transfer"] == SPARSE for point in table) else []


def four_transfers_table(rows: list[Row]) -> list[Row]:
    """The points of figures.four_transfers.

    Returns:
        Of the tasks, data fractions and kinds of strength that have more than dense and sparse transfer, with their
        dense points; empty where there is none.
    """
    table = seed_means(rows)
    place = ("task", "data_fraction", "strength_kind")
    compared = {
        tuple(point[name] for name in place) for point in table if point["transfer"] in (FREEZING, SPARSE_TO_DENSE)
    }
    compared |= {(task, fraction, None) for task, fraction, _ in compared}
    return [point for point in table if tuple(point[name] for name in place) in compared]


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
        data_fraction, difficulty, dense_mean_score, dense_above_chance and strengths of the curve; spearman, and per
        unit of requested sparsity the theil_sen_slope of the normalized drop and the corrected_slope of the
        chance-corrected one; None where they are not defined.
    """
    sparsity = [point["requested_sparsity"] for point in points]
    same = ("data_fraction", "difficulty", "dense_mean_score", "dense_above_chance")
    return {
        **{name: points[0][name] for name in same},
        "strengths": tuple(point["strength"] for point in points),
        "spearman": estimators.spearman(sparsity, [point["mean_score"] for point in points]),
        "theil_sen_slope": _slope(sparsity, [point["normalized_drop"] for point in points]),
        "corrected_slope": _slope(sparsity, [point["corrected_drop"] for point in points]),
    }


def _slope(sparsity: list[float], drops: list[float | None]) -> float | None:
    return None if None in drops else estimators.theil_sen_slope(sparsity, drops)


def slope_order(levels: list[Row]) -> tuple[bool | None, str]:
    """Whether the slopes of levels that differ in nothing else steepen with difficulty, as the hypothesis says.

    Args:
        levels: curve_statistics, or level_tables.level_statistics, of the levels to compare.
    Returns:
        True, False, or None where it cannot be told; and how many levels were compared, or why it cannot be told.
        Levels that are not comparable (is_comparable) are left out.
    """
    kept = [level for level in levels if is_comparable(level)]
    if len(kept) < 2:
        return None, f"{len(kept)} of {len(levels)} levels can be compared"
    if len({level["strengths"] for level in kept}) > 1:
        return None, "the levels were measured at different strengths"
    if len(set(kept[0]["strengths"])) < estimators.MIN_STRENGTHS:
        return None, TWO_STRENGTHS
    difficulty = [level["difficulty"] for level in kept]
    if None in difficulty:
        return None, "the difficulty of some levels is not known"
    if len(set(difficulty)) < len(difficulty):
        return None, "several levels have the same difficulty"
    in_order = estimators.is_monotonic(difficulty, [level["theil_sen_slope"] for level in kept])
    return in_order, f"{len(kept)} of {len(levels)} levels compared"


def is_comparable(level: Row) -> bool:
    """Whether a level's slope (curve_statistics) means something: it has one, and its dense model learned the task."""
    return level["theil_sen_slope"] is not None and level["dense_above_chance"] is not False


def perplexity_sets(rows: list[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """The perplexity runs that belong in one figure, by PERPLEXITY, model and text.

    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    run_folder.check_runs(rows)
    sets: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["setting"] == PERPLEXITY:
            sets.setdefault((PERPLEXITY, row["model"], row["level"]), []).append(row)
    return dict(sorted(sets.items()))


def perplexity_table(rows: list[Row]) -> list[Row]:
    """One row of PERPLEXITY_COLUMNS per model, text, compression and strength, dense first, from weak to strong.

    Args:
        rows: runs of any setting; those of another than perplexity are passed over.
    Returns:
        Model and text go by model_name and text_name. Perplexities are means over seeds; mean_stderr is their standard
        error over windows. loss_difference is the mean over windows of the loss (nats per token, mean over seeds) above
        dense, with its standard error over windows: paired, so the windows' own difficulty cancels. Both are None
        without a dense run on the same windows, the error also with one window. vocabulary is the perplexity of a model
        that knows nothing. calibrated: whether the seed, which draws the calibration text, makes a difference.
    Raises:
        ValueError: runs that must not be averaged or compared (run_folder.check_runs).
    """
    table = []
    for members in perplexity_sets(rows).values():
        points: dict[tuple, list[Row]] = {}
        for row in members:
            place = run_folder.coordinates(row)
            key = ("compression", "strength_kind", "strength", "magnitude_scope")
            points.setdefault(tuple(place[name] for name in key), []).append(row)
        dense = _window_losses(points.get(("dense", None, None, None), []))
        found = [_perplexity_point(point, dense) for point in points.values()]
        table += sorted(found, key=lambda point: (compression_order(point), compression_rank(point["compression"])))
    return table


def _perplexity_point(point: list[Row], dense_losses: np.ndarray | None) -> Row:
    first, scores = point[0], [row["score"] for row in point]
    difference, error = _paired_difference(_window_losses(point), dense_losses)
    return {
        "model": model_name(first["model"]),
        "text": text_name(first["level"]),
        **{name: first[name] for name in ("compression", "strength_kind", "strength", "requested_sparsity")},
        "magnitude_scope": run_folder.coordinates(first)["magnitude_scope"],
        "measured_sparsity": mean_of(point, "measured_sparsity"),
        "parameter_ratio": mean_of(point, "parameter_ratio"),
        "mean_perplexity": statistics.fmean(scores),
        "lowest_perplexity": min(scores),
        "highest_perplexity": max(scores),
        "mean_stderr": mean_of(point, "stderr"),
        "loss_difference": difference,
        "loss_difference_stderr": error,
        "vocabulary": first["chance"],
        "windows": first["num_examples"],
        "calibrated": first.get("compression_recipe") is not None,
        "seeds": tuple(sorted(row["seed"] for row in point)),
    }


def _window_losses(runs: list[Row]) -> np.ndarray | None:
    """Loss of each window, mean over runs; None without runs, where one lacks its items, or on different windows."""
    folders = [Path(row["folder"]) for row in runs]
    if not runs or not all((folder / run_folder.ITEMS_FILE).is_file() for folder in folders):
        return None
    losses = [run_folder.read_items(folder)["window_loss"] for folder in folders]
    return None if len({len(each) for each in losses}) > 1 else np.mean(losses, axis=0)


def _paired_difference(losses: np.ndarray | None, dense: np.ndarray | None) -> tuple[float | None, float | None]:
    """Mean of the windows' differences to dense and its standard error; None where they are not defined."""
    if losses is None or dense is None or len(losses) != len(dense):
        return None, None
    differences = losses - dense
    count = len(differences)
    stderr = float(differences.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return float(differences.mean()), stderr


def perplexity_curves(table: list[Row]) -> dict[tuple[str, str, str | None], list[Row]]:
    """The compressed points of one model and text: by kind of strength, compression and magnitude scope, in order."""
    found: dict[tuple[str, str, str | None], list[Row]] = {}
    for point in sorted(table, key=lambda point: compression_rank(point["compression"])):
        if point["strength_kind"] is not None:
            key = (point["strength_kind"], point["compression"], point["magnitude_scope"])
            found.setdefault(key, []).append(point)
    return found


def csv_text(table: Iterable[Row], columns: Iterable[str] = POINT_COLUMNS) -> str:
    """The table as CSV with a header line; a missing value is an empty field, several seeds are parted by spaces."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in table:
        cells = {name: " ".join(map(str, cell)) if isinstance(cell, tuple) else cell for name, cell in row.items()}
        writer.writerow(cells)
    return stream.getvalue()
